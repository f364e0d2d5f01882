"""The FAISS index over the vectors: chosen, trained and filled."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import log2, sqrt
from typing import Any

import faiss
import numpy as np

from fanoise.errors import InputError
from index.devices import fits_gpus
from index.faiss_file import check_trainable, check_types, empty_index, every_part, faiss_reason, reserve, transforms
from index.memory import free_memory, index_memory
from index.store import PRECISIONS, Precision, VectorStore
from index.tuning import RECALL

_EXACT_ROWS = 1_000_000
_EXACT_BYTES = 4e9
"""One search reads all of it: a quarter of a second on a desktop."""
_PLAIN_ROWS = 10_000_000
_SMALL_BYTES = 1e9
"""Below it nothing is gained by smaller codes."""
_CODES: dict[Precision, str] = {"fp32": "Flat", "fp16": "SQfp16", "int8": "SQ8"}
_REFINERS: dict[Precision, str] = {"fp32": "RFlat", "fp16": "Refine(SQfp16)", "int8": "Refine(SQ8)"}
_BYTES_RECALL = 0.97
"""What one byte a dimension reaches at least, alone; above it such codes are not taken."""
_TRAINING_ROWS = 65_536
"""As many as FAISS makes use of for 256 codes."""
_TRAINING_ROWS_A_CLUSTER = 64
_OPQ_BITS = 8
"""Of a code that OPQ is trained with, whatever the one after it has."""
_LEAST_ROWS_A_CLUSTER = 39
"""FAISS's own limits are 39, below which it warns, and 256, above which it leaves rows out."""


@dataclass(frozen=True)
class Choice:
    """A factory string as FAISS takes it, and why it was taken."""

    factory: str
    reason: str


def check_factory(factory: str, dim: int) -> None:
    """Raise InputError, before hours of encoding, for a string that FAISS or we do not know, or that cannot be made."""
    if factory != "auto":
        index = empty_index(factory, dim)
        check_types(index, factory)
        check_trainable(index, factory)


def choose_factory(
    factory: str,
    count: int,
    dim: int,
    *,
    precision: Precision = "fp32",
    recall: float = RECALL,
    free: int | None = None,
) -> Choice:
    """Settle `auto` by the number of vectors, their dimension and precision, the recall asked for and the memory.

    Up to a million vectors are searched one by one, which needs no training and misses nothing. Up to ten million get
    inverted lists, and above that inverted lists of 4-bit product codes (fast-scan) whose best candidates are compared
    again at the precision of the stored vectors. Where memory is short, codes of half and of a quarter of the size
    follow. Where there are GPUs with room for it, types that FAISS has for them come first. What was measured for this:
    benchmarks/README.md, index_types.py.
    Args:
        factory: `auto`, or a string that is only checked.
        free: bytes of memory; default what machine and control groups leave.
    Raises: InputError for a string that is unknown, or an index that does not fit the memory.
    """
    free = free_memory() if free is None else free
    if factory != "auto":
        check_factory(factory, dim)
        need = memory_to_build(factory, count, dim)
        if free is not None and need > free:
            raise InputError(
                _too_large(f"factory {factory!r} needs", need, free, count, dim) + ", or use --factory auto"
            )
        return Choice(factory, "as asked for" + _rows_short(factory, count, dim))
    too_large: list[tuple[str, int]] = []
    for name, why in chain(_for_gpus(count, dim, precision, recall), _candidates(count, dim, precision, recall)):
        need = memory_to_build(name, count, dim)
        if free is None or need <= free:
            reason = f"auto: {why}; about {_gigabytes(_serving(name, count, dim))} of memory"
            if too_large:
                first, wanted = too_large[0]
                reason += f", as building {first} would take {_gigabytes(wanted)} of the {_gigabytes(free or 0)} free"
            return Choice(name, reason)
        too_large.append((name, need))
    name, need = min(too_large, key=lambda one: one[1])
    assert free is not None
    raise InputError(_too_large(f"the smallest index for recall {recall:g} ({name}) needs", need, free, count, dim))


def memory_to_build(factory: str, count: int, dim: int) -> int:
    """Bytes, at most, while an index is trained and filled; an estimate. Raises InputError for an unknown factory."""
    index = empty_index(factory, dim)
    training = 0 if index.is_trained else 4 * dim * min(count, _wanted_rows(index))
    return training + index_memory(index, count, building=True)


def train_index(factory: str, vectors: VectorStore, *, seed: int = 0) -> faiss.Index:
    """An index of inner products over the rows, labelled by row; trained on a sample. Raises InputError."""
    index = empty_index(factory, vectors.dim)
    _leave_codes_unsorted(index)
    try:
        quantizers = _take_few_rows(index)
        if not index.is_trained:
            index.train(np.ascontiguousarray(vectors.rows(training_rows(index, len(vectors), seed))))
        add_rows(index, vectors)
    except RuntimeError as error:
        is_wide = any(part.d_out > len(vectors) for part in _transforms(index, faiss.PCAMatrix))
        remedy = (
            f"a PCA to at most {len(vectors)} dimensions, as it needs a vector for each"
            if is_wide
            else "fewer clusters"
        )
        raise InputError(
            f"factory {factory!r} does not suit {len(vectors)} vectors of dim {vectors.dim}: {faiss_reason(error)}; "
            f"use --factory auto or one with {remedy}"
        ) from error
    for transform, _ in quantizers:
        transform.pq = None
    return index


def _take_few_rows(index: faiss.Index) -> list[tuple[faiss.OPQMatrix, faiss.ProductQuantizer]]:
    """Let k-means do without FAISS's line on stderr for each part of a code; `_rows_short` says it once.

    Returns: the product quantizers that OPQ is to be trained with, which are to be there until it is.
    """
    for settings, _ in _clusterings(index):
        settings.min_points_per_centroid = 1
    quantizers = []
    for transform in _transforms(index, faiss.OPQMatrix):
        quantizer = faiss.ProductQuantizer(transform.d_out, transform.M, _OPQ_BITS)
        quantizer.cp.min_points_per_centroid = 1
        transform.pq = quantizer
        quantizers.append((transform, quantizer))
    return quantizers


def _rows_short(factory: str, count: int, dim: int) -> str:
    """How the rows that an index is trained with are few for its clusters, if they are."""
    index = empty_index(factory, dim)
    clusters = max(
        [clusters for _, clusters in _clusterings(index)]
        + [1 << _OPQ_BITS for _ in _transforms(index, faiss.OPQMatrix)]
        + [0]
    )
    rows, enough = min(count, _wanted_rows(index)), _LEAST_ROWS_A_CLUSTER * clusters
    return f"; {rows:,} vectors are few to train {clusters:,} clusters, {enough:,} would do" if rows < enough else ""


def _clusterings(index: faiss.Index) -> Iterator[tuple[faiss.ClusteringParameters, int]]:
    """Settings of each k-means within an index, and how many clusters it makes."""
    for part in every_part(index):
        if isinstance(part, faiss.IndexIVF):
            yield part.cp, part.nlist
        if hasattr(part, "pq"):
            yield part.pq.cp, part.pq.ksub


def _transforms(index: faiss.Index, kind: type) -> Iterator[Any]:
    for part in every_part(index):
        yield from (transform for transform in transforms(part) if isinstance(transform, kind))


def _leave_codes_unsorted(index: faiss.Index) -> None:
    """Skip what makes codes of PQ comparable by their bits (Douze et al. 2016, Polysemous codes, arXiv:1609.01882).

    FAISS does it by default, seconds for each byte of a code, for a kind of search that is none of ours; to the others
    a code is a number like any other.
    """
    for part in every_part(index):
        if isinstance(part, faiss.IndexPQ | faiss.IndexIVFPQ):
            part.do_polysemous_training = False


def add_rows(index: faiss.Index, vectors: VectorStore) -> None:
    """Add all rows of a file after those that the index has. Raises FAISS's RuntimeError."""
    reserve(index, len(vectors))
    for _, block in vectors.blocks():
        index.add(np.ascontiguousarray(block))


def _candidates(count: int, dim: int, precision: Precision, recall: float) -> Iterator[tuple[str, str]]:
    """Factory strings with their reasons, the first that fits the memory being the one to take."""
    size = 4.0 * count * dim
    n = f"{count:,} vectors of dim {dim}"
    if recall >= 1:
        yield "Flat", f"exact, since recall 1 leaves no other way ({n})"
        return
    is_exact = count <= _EXACT_ROWS and size <= _EXACT_BYTES
    is_plain = count <= _PLAIN_ROWS
    start = precision if size > _SMALL_BYTES or not (is_exact or is_plain) else "fp32"
    if start == "int8" and recall > _BYTES_RECALL:
        start = "fp16"
    stored = "" if start == "fp32" or start != precision else f", at the {precision} of the stored vectors"
    lists = _lists(count)
    for codes in PRECISIONS[PRECISIONS.index(start) :]:
        if codes == "int8" and recall > _BYTES_RECALL:
            continue
        if is_exact:
            exact = "exact, and" if codes == "fp32" else "every vector compared, which is"
            yield _CODES[codes], f"{exact} fast enough for {n}{stored}"
        elif is_plain:
            yield (
                f"IVF{lists},{_CODES[codes]}",
                f"inverted lists of whole vectors, since exact search would be slow for {n}{stored}",
            )
        else:
            codes_of = f"PQ{dim // 2}x4fs" if dim % 2 == 0 else "RaBitQ"
            yield (
                f"IVF{lists},{codes_of},{_REFINERS[codes]}",
                f"inverted lists of small codes, the best candidates compared again, for {n}{stored}",
            )


def _for_gpus(count: int, dim: int, precision: Precision, recall: float) -> Iterator[tuple[str, str]]:
    """What comes before `_candidates` where these are of types that no GPU serves, and there are GPUs with room.

    8-bit product codes are not among it: FAISS compares no candidates again on a GPU, and without that they miss 0.95.
    """
    if recall >= 1 or _EXACT_ROWS < count <= _PLAIN_ROWS:
        return
    n = f"{count:,} vectors of dim {dim}"
    if count <= _EXACT_ROWS:
        named = {"Flat": "exact"} if 4.0 * count * dim <= _EXACT_BYTES else {}
    else:
        lists, is_short = _lists(count), recall <= _BYTES_RECALL
        named = {} if precision == "int8" and is_short else {f"IVF{lists},SQfp16": "inverted lists at half precision"}
        named |= {f"IVF{lists},SQ8": "inverted lists of one byte a dimension"} if is_short else {}
    for name, what in named.items():
        if fits_gpus(empty_index(name, dim), count):
            yield name, f"{what}, since there is a GPU for it, for {n}"


def _lists(count: int) -> int:
    """The power of two next to 4 √count, within what the rows can train."""
    return 2 ** max(0, min(round(log2(4 * sqrt(count))), int(log2(max(1, count / _LEAST_ROWS_A_CLUSTER)))))


def _serving(factory: str, count: int, dim: int) -> int:
    return index_memory(empty_index(factory, dim), count)


def _wanted_rows(index: faiss.Index) -> int:
    ivf = faiss.try_extract_index_ivf(index)
    return max(_TRAINING_ROWS, 0 if ivf is None else _TRAINING_ROWS_A_CLUSTER * ivf.nlist)


def training_rows(index: faiss.Index, count: int, seed: int) -> np.ndarray | slice:
    """The rows that an index of this type is trained with, of `count`."""
    wanted = _wanted_rows(index)
    if count <= wanted:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(count, size=wanted, replace=False))


def _too_large(what: str, need: int, free: int, count: int, dim: int) -> str:
    return (
        f"{what} about {_gigabytes(need)} of memory for {count:,} vectors of dim {dim}, and {_gigabytes(free)} are "
        "free; make room, cut the vectors (--dim), store them smaller (--precision int8)"
    )


def _gigabytes(size: float) -> str:
    if size < 1e8:
        return f"{size / 1e6:.2g} MB"
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"
