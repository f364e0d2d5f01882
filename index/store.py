"""`vectors.npy`: unit rows on disk at full, half or byte precision, read in pieces as float32.

    fp32, fp16   the row as it is, or rounded
    int8         round(127 · v / max|v|); the scale is not stored, since reading restores the unit length

The cosine error of int8 is about (range / rms)² / (24 · 127²), where range and rms are those of the row's entries: 2e-5
for a row of 256 normal numbers.
"""

import io
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, get_args

import numpy as np

from fanoise.errors import ArtifactError, InputError

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a unit row may be: what is lost by half precision and long sums stays below."""

_DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "int8": np.dtype("i1")}
_PRECISION_OF: dict[np.dtype[Any], Precision] = {_DTYPES[precision]: precision for precision in PRECISIONS}
_BLOCK_ROWS = 65536
_loading = threading.Lock()


class VectorStore:
    """The rows of a `vectors.npy`, memory-mapped: only what is asked for is read. Threads may share one.

    Args:
        mapped: the memory behind `stored`, where pages are to go again: each read lets go of those that earlier ones
            have mapped, which else stay in the process's memory until the system needs it. A view stays valid.
    """

    def __init__(self, stored: np.ndarray, *, mapped: mmap.mmap | None = None) -> None:
        self._stored, self._mapped = stored, mapped
        self.precision: Precision = _PRECISION_OF[stored.dtype]
        self.shape: tuple[int, int] = stored.shape
        """(N, D)"""

    @classmethod
    def open(cls, path: Path, *, in_passing: bool = False) -> Self:
        """Raises ArtifactError for a file that is no matrix at one of the three precisions.

        Args:
            in_passing: keep no pages of what has been read, as suits a build, which goes through all rows a few times.
        """
        try:
            stored = load_array(path, mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(stored, np.ndarray) or stored.ndim != 2 or stored.dtype not in _PRECISION_OF:
            what = f"{stored.dtype} of shape {stored.shape}" if isinstance(stored, np.ndarray) else "no array"
            raise ArtifactError(f"{path} holds {what}; it must hold rows of float32, float16 or int8")
        if not stored.flags.c_contiguous:
            raise ArtifactError(f"{path} is stored column by column; it must be row by row")
        mapped = stored.base if in_passing and isinstance(stored.base, mmap.mmap) else None
        return cls(np.asarray(stored), mapped=mapped)  # still mapped, without the cost of slicing a memmap object

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dim(self) -> int:
        return self.shape[1]

    def rows(self, rows: np.ndarray | slice) -> np.ndarray:
        """float32 [R, D], unit rows; a read-only view of the file where nothing has to be converted."""
        return _as_unit_rows(self.stored(rows))

    def blocks(self, size: int = _BLOCK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, float32 [≤ size, D]) over all rows, in order."""
        for start in range(0, len(self), size):
            yield start, self.rows(slice(start, start + size))

    def faulty(self, rows: slice) -> np.ndarray:
        """Positions, from the slice's start, of rows that no VectorWriter stores: not finite, or not of length 1."""
        stored = self.stored(rows)
        if self.precision == "int8":
            return np.flatnonzero(np.abs(stored.astype(np.int16)).max(axis=1) != 127)
        return non_unit_rows(stored.astype(np.float32, copy=False))

    def stored(self, rows: np.ndarray | slice) -> np.ndarray:
        """The rows as they are in the file, to be copied into another one of the same precision."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return self._stored[rows]


class VectorWriter:
    """Streams rows into a `vectors.npy`: one block is in memory, and their number need not be known before.

    NumPy pads the header of a .npy file so that the first axis can grow in place; the final header is written on close.
    """

    def __init__(self, path: Path, dim: int, precision: Precision = "fp32") -> None:
        self.precision, self._dtype = precision, _DTYPES[precision]
        self._dim, self._count = dim, 0
        self._file: IO[bytes] = path.open("wb")
        self._write_header()
        self._start = self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):  # such as a full disk, which is the error already
                self._file.close()

    def append(self, vectors: np.ndarray) -> None:
        """Add float32 [B, D], unit rows.

        Raises: InputError for another width, or a row that is not finite or not of length 1.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self._dim:
            raise InputError(f"vectors must have shape [B, {self._dim}], got {list(vectors.shape)}")
        bad = non_unit_rows(vectors)
        if len(bad):
            length = np.linalg.norm(vectors[bad[0]])
            raise InputError(f"vector {self._count + bad[0]} has length {length:.4g}; normalise it to 1 first")
        self._write(vectors if self.precision != "int8" else _quantised(vectors))

    def copy(self, store: VectorStore, rows: np.ndarray | slice = slice(None)) -> None:
        """Add rows of another file as they are stored there, block by block. Same precision and dim only."""
        if (store.precision, store.dim) != (self.precision, self._dim):
            raise InputError(
                f"cannot copy {store.precision} rows of dim {store.dim} into {self.precision} of {self._dim}"
            )
        if isinstance(rows, slice):
            rows = np.arange(len(store))[rows]
        for start in range(0, len(rows), _BLOCK_ROWS):
            self._write(store.stored(rows[start : start + _BLOCK_ROWS]))

    def close(self) -> int:
        """Complete the header and wait for the disk; returns the number of rows written."""
        with self._file:
            self._file.seek(0)
            self._write_header()
            assert self._file.tell() == self._start, "the header of vectors.npy changed its length"
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._count

    def _write(self, stored: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(stored, dtype=self._dtype).data)
        self._count += len(stored)

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count, self._dim)}
        np.lib.format.write_array_header_1_0(self._file, header)


def load_array(path: Path, *, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """`np.load` without pickle, by one thread at a time: it reads a file's header with Python's parser, which before
    Python 3.12 fails now and then (SystemError) where several threads are in it."""
    with _loading:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def read_deleted(path: Path, count: int) -> np.ndarray:
    """`deleted.npy`: int64 rows below `count`, ascending. Raises ArtifactError for anything else."""
    try:
        rows = load_array(path)
    except (OSError, EOFError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 1 or rows.dtype != np.int64:
        raise ArtifactError(f"{path} must hold a list of int64 rows")
    if len(rows) and not (rows[0] >= 0 and rows[-1] < count and (np.diff(rows) > 0).all()):
        raise ArtifactError(f"{path} must hold rows from 0 to {count - 1} in ascending order, each once")
    return rows


def write_deleted(path: Path, rows: np.ndarray) -> None:
    content = io.BytesIO()  # writing to a file, np.save would not say why it cannot
    np.save(content, np.unique(np.asarray(rows, dtype=np.int64)), allow_pickle=False)
    path.write_bytes(content.getvalue())


def rounding_loss(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    """The most that storing at `precision` can take from the cosine of each unit row [B, D] with itself: [B].

    An error of length e turns a unit row by an angle whose sine is e at most. Each entry is off by up to half a step:
    of the eleven bits of half precision, or of the 127 steps to the row's largest entry.
    """
    dim = vectors.shape[1]
    if precision == "fp32":
        square = np.zeros(len(vectors))
    elif precision == "fp16":
        square = np.full(len(vectors), 2.0**-22 + dim * 2.0**-50)
    else:
        square = dim * (np.abs(vectors).max(axis=1) / 254) ** 2
    return 1 - np.sqrt(np.maximum(0, 1 - square))


def truncated(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The first `dim` dimensions of each row, normalised again: float32 [B, dim]. A row of zeros becomes NaN.

    Source: Kusupati et al. 2022, Matryoshka Representation Learning, arXiv:2205.13147, Sec. 3. It costs accuracy unless
    the embedder was trained for it.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    if dim == vectors.shape[1]:
        return vectors
    first = vectors[:, :dim]
    with np.errstate(divide="ignore", invalid="ignore"):
        return first / np.linalg.norm(first, axis=1, keepdims=True)


def non_unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Positions of rows that are not finite or whose length is not 1 within UNIT_TOLERANCE."""
    lengths = np.linalg.norm(vectors, axis=1)
    return np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))  # NaN compares false


def _quantised(vectors: np.ndarray) -> np.ndarray:
    return np.rint(127 * vectors / np.abs(vectors).max(axis=1, keepdims=True)).astype(np.int8)


def _as_unit_rows(stored: np.ndarray) -> np.ndarray:
    if stored.dtype == np.float32:
        return stored
    rows = stored.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # a damaged row of zeros reads as NaN, which `verify` reports
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
