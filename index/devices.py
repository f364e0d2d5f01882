"""Where an index is searched: by the CPU, or by the GPUs that FAISS sees, from copies of the index in the CPU's memory.

faiss-cpu is asked for nothing but the number of GPUs, which is 0; no other GPU symbol is touched then. Where there are
some, each gets a copy of the index (or, if that does not fit, its part of it), with vectors at half precision. GPU
resources must not be shared by threads, so one thread does all searching there; it joins what several threads ask for
at the same moment into one call.

What a GPU cannot do is done by the CPU, which has the index anyway, and a note says so: filters, more than 2,048
results, more than 2,048 lists, and whatever fails, as for want of memory.
"""

import threading
import warnings
import weakref
from typing import Any

import faiss
import numpy as np

from fanoise.errors import one_line
from index.dispatcher import Answer, Dispatcher
from index.faiss_file import faiss_reason, named_index
from index.memory import index_memory

_MOST_ON_GPU = 2048
"""Results, and lists searched, of FAISS on GPUs."""
_GPU_TYPES = ("IndexFlat", "IndexFlatIP", "IndexIVFFlat", "IndexIVFPQ", "IndexIVFScalarQuantizer")
_NONE_OF = "there is a GPU, but FAISS has no {} for it"
_FAILURES = (RuntimeError, MemoryError)
"""What FAISS raises, for want of memory as for all else."""
_WORKSPACE = 3 * 2**29
"""Bytes that FAISS takes of a GPU to search with, at most."""
_BLOCKS = 1.1
"""What lists take on a GPU beyond their content, being made up to whole blocks."""


class CpuIndex:
    """An index that is searched by the thread that asks."""

    note: str | None = None
    is_half = False

    def __init__(self, index: faiss.Index, why: str = "") -> None:
        self._index = index
        self.device = f"CPU ({why})" if why else "CPU"
        """What searches, for people."""

    def search(self, queries: np.ndarray, k: int, params: Any = None, mask: np.ndarray | None = None) -> Answer:
        return self._index.search(queries, k, params=params)

    def takes(self, k: int, mask: np.ndarray | None) -> bool:
        return False

    def close(self) -> None:
        pass


class GpuIndex:
    """An index on GPUs, with the one on the CPU behind it. Any number of threads may search."""

    is_half = True
    """Whether scores are those of vectors at half precision."""

    def __init__(self, index: faiss.Index, on_gpu: Any, device: str) -> None:
        self._index = index
        ivf = faiss.try_extract_index_ivf(index)
        self._probed = 0 if ivf is None else int(ivf.nprobe)
        self.device = device
        self._dispatcher = Dispatcher(on_gpu.search)
        self._close = weakref.finalize(self, self._dispatcher.close)  # its thread must not outlive a refreshed index
        self._warned = False
        self._last = threading.local()

    @property
    def note(self) -> str | None:
        """That, and why, the CPU does what this thread asked for last; None if a GPU does."""
        return getattr(self._last, "note", None)

    def search(self, queries: np.ndarray, k: int, params: Any = None, mask: np.ndarray | None = None) -> Answer:
        """Scores float32 [Q, k] and rows int64 [Q, k], as of FAISS.

        Args:
            params: FAISS's, for a search that is kept to some rows.
            mask: bool [N], the same rows; where few are outside, a GPU can search for as many more. None leaves a
                search with `params` to the CPU.
        """
        outside = _outside(mask)
        reason = self._cannot(k, outside, is_filtered=params is not None and mask is None)
        if reason is None:
            try:
                self._last.note = None
                found = self._dispatcher.search(queries, k + outside)
                return found if mask is None else _kept(*found, k, mask)
            except _FAILURES as error:
                reason = _reason(error)
                if not self._warned:
                    self._warned = True
                    warnings.warn(f"searched on the CPU, since the GPU failed: {reason}", RuntimeWarning, stacklevel=2)
        self._last.note = f"searched on the CPU: {reason}"
        return self._index.search(queries, k, params=params)

    def takes(self, k: int, mask: np.ndarray | None) -> bool:
        """Whether a GPU can search within the rows of `mask`, as in `search`. If not, the note says so from now on."""
        reason = self._cannot(k, _outside(mask), is_filtered=mask is None)
        self._last.note = None if reason is None else f"searched on the CPU: {reason}"
        return reason is None

    def close(self) -> None:
        """End the thread, after what has been asked. Later searches are an error."""
        self._close()

    def _cannot(self, k: int, outside: int, *, is_filtered: bool) -> str | None:
        if k > _MOST_ON_GPU:
            return f"{k:,} results are more than the {_MOST_ON_GPU:,} of a GPU"
        if is_filtered or k + outside > _MOST_ON_GPU:
            return "FAISS has no filters on a GPU"
        if self._probed > _MOST_ON_GPU:
            return f"nprobe {self._probed:,} is more than the {_MOST_ON_GPU:,} of a GPU"
        return None


def gpu_count() -> int:
    """GPUs that FAISS sees; 0 for faiss-cpu."""
    count = getattr(faiss, "get_num_gpus", None)
    return 0 if count is None else int(count())


def serve(index: faiss.Index) -> CpuIndex | GpuIndex:
    """The index where it is searched best: on all GPUs if there are any, it is of a type for them, and it fits."""
    count = gpu_count()
    if not count:
        return CpuIndex(index)
    odd = _not_for_gpu(index)
    if odd is not None:
        return CpuIndex(index, _NONE_OF.format(odd))
    reason = ""
    try:
        free = _free_on_gpus(count)
    except _FAILURES as error:  # of a GPU that another process has filled
        return _refused(index, _reason(error))
    for is_sharded in (False, True) if count > 1 else (False,):
        wanted = _wanted(index, index.ntotal, count if is_sharded else 1)
        # FAISS must not find out itself: of lists that do not fit, it keeps those it has copied until the process ends
        if free is not None and wanted > free:
            reason = f"it takes {wanted / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"
            continue
        options = faiss.GpuMultipleClonerOptions()
        options.useFloat16 = True
        options.shard = is_sharded
        try:
            on_gpu = faiss.index_cpu_to_all_gpus(index, co=options, ngpu=count)
        except _FAILURES as error:
            reason = _reason(error)
            continue
        if count == 1:
            return GpuIndex(index, on_gpu, "1 GPU, at half precision")
        how = "a part of the index on each" if is_sharded else "the index on each"
        return GpuIndex(index, on_gpu, f"{count} GPUs, {how}, at half precision")
    return _refused(index, reason)


def fits_gpus(index: faiss.Index, rows: int) -> bool:
    """Whether there are GPUs that would serve an index of this type with so many rows, each at least a part of it."""
    count = gpu_count()
    if not count or _not_for_gpu(index) is not None:
        return False
    try:
        free = _free_on_gpus(count)
    except _FAILURES:
        return False
    return free is None or _wanted(index, rows, count) <= free


def _refused(index: faiss.Index, reason: str) -> CpuIndex:
    warnings.warn(f"the index stays on the CPU, since the GPU does not take it: {reason}", RuntimeWarning, stacklevel=3)
    return CpuIndex(index, f"the GPU does not take it: {reason}")


def describe_device(factory: str, dim: int) -> str:
    """What would search an index of this type on this machine, should it fit; reads no file."""
    count = gpu_count()
    odd = _not_for_gpu(named_index(factory, dim)) if count else None
    if odd is not None:
        return f"CPU ({_NONE_OF.format(odd)})"
    return f"{count} GPU{'s' * (count > 1)}" if count else "CPU"


def _not_for_gpu(index: faiss.Index) -> str | None:
    """Name of the part that FAISS has no GPU form of. Left to itself, it would leave that on the CPU without a word."""
    part = faiss.downcast_index(index)
    if isinstance(part, faiss.IndexPreTransform):
        return _not_for_gpu(part.index)
    name = type(part).__name__
    if name not in _GPU_TYPES:
        return name
    return _not_for_gpu(part.quantizer) if isinstance(part, faiss.IndexIVF) else None


def _wanted(index: faiss.Index, rows: int, parts: int) -> int:
    """Bytes that an index of so many rows, or the largest of equal parts, takes of a GPU while it is copied there; an
    estimate."""
    part = faiss.downcast_index(index)
    if isinstance(part, faiss.IndexPreTransform):
        return _wanted(part.index, rows, parts)
    size = index_memory(part, rows)
    if isinstance(part, faiss.IndexFlat):
        # a whole one is sent as it is, converted, and stored; a part grows block by block, from one copy to the next
        size = 2 * size if parts == 1 else size // parts
    else:
        size = int(_BLOCKS * size) // parts
    return size + _WORKSPACE


def _free_on_gpus(count: int) -> int | None:
    """Bytes that the fullest of so many GPUs has left; None if torch does not see them."""
    import torch

    if torch.cuda.device_count() < count:
        return None
    return min(torch.cuda.mem_get_info(gpu)[0] for gpu in range(count))


def _outside(mask: np.ndarray | None) -> int:
    return 0 if mask is None else len(mask) - int(np.count_nonzero(mask))


def _kept(scores: np.ndarray, rows: np.ndarray, k: int, mask: np.ndarray) -> Answer:
    """The first `k` that the mask has, -inf and -1 after them."""
    good = (rows >= 0) & mask[rows]
    order = np.argsort(~good, axis=1, kind="stable")[:, :k]
    good = np.take_along_axis(good, order, axis=1)
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return np.where(good, scores, np.float32(-np.inf)), np.where(good, rows, -1)


def _reason(error: BaseException) -> str:
    return faiss_reason(error) if isinstance(error, RuntimeError) else one_line(error)
