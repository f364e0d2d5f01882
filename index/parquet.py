"""Parquet files in pieces: written, read through and looked into without the whole table in memory."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 65_536
GROUP_BYTES = 2 << 20
"""Of a row group as Arrow holds it: what is read for a single row of it, too."""
UNREADABLE = (OSError, ValueError, KeyError, pa.ArrowException)
"""What reading a file, or a column that it should have, may raise; not all errors of pyarrow are ValueErrors."""
_BUFFER_BYTES = 1 << 20


def read_parquet(source: Path | pa.NativeFile, columns: Sequence[str] | None = None) -> pa.Table:
    """The table, or some of its columns; an open file stays open.

    Raises: OSError or ValueError (pyarrow's) for a damaged file.
    """
    with pq.ParquetFile(source) as file:
        return file.read(columns=columns)


def read_pieces(source: Path | pa.NativeFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """All rows in order, in tables of a row group, or less of one that is larger than PieceWriter's.

    Raises: as `read_parquet`.
    """
    # page by page: by default the row group's columns would be in memory as they are in the file
    with pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            rows = max(1, min(group.num_rows, group.num_rows * 2 * GROUP_BYTES // max(1, group.total_byte_size)))
            for batch in file.iter_batches(rows, row_groups=[number], columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])


class PieceWriter:
    """Streams tables of a schema into a file, in row groups of GROUP_ROWS rows and GROUP_BYTES at most."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._rows, self._bytes = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._flush()
            self._writer.close()
        else:
            with suppress(OSError):  # such as a full disk, which is the error already
                self._writer.close()

    def write(self, table: pa.Table) -> None:
        for part in _parts(table):
            if self._rows + len(part) > GROUP_ROWS or self._bytes + part.nbytes > GROUP_BYTES:
                self._flush()
            self._waiting.append(part)
            self._rows, self._bytes = self._rows + len(part), self._bytes + part.nbytes

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=self._rows)
        self._waiting, self._rows, self._bytes = [], 0, 0


class Rows:
    """Single rows of some columns of an open file. Row groups that were needed last are kept; threads may share one.

    Args:
        keep_bytes: how much is kept, as Arrow holds it; at least the row group that was needed last is.
    """

    def __init__(self, file: pa.NativeFile, columns: Sequence[str], *, keep_bytes: int) -> None:
        self._file, self._columns, self._keep_bytes = file, list(columns), keep_bytes
        with pq.ParquetFile(file) as opened:
            self._metadata = opened.metadata
        sizes = [self._metadata.row_group(number).num_rows for number in range(self._metadata.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def take(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The rows, each with its columns by name; of row groups that are not kept, one at a time is held.

        Raises: as `read_parquet`.
        """
        wanted: dict[int, list[int]] = {}  # row group -> rows
        for row, number in zip(rows, np.searchsorted(self._ends, rows, side="right").tolist(), strict=True):
            wanted.setdefault(number, []).append(row)
        found: dict[int, dict[str, Any]] = {}
        for number, its_rows in wanted.items():
            found |= self._take_of_group(number, its_rows)
        return [found[row] for row in rows]

    def _take_of_group(self, number: int, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
        group = self._group(number)
        first = int(self._ends[number]) - len(group)
        return {row: group.slice(row - first, 1).to_pylist()[0] for row in rows}

    def _group(self, number: int) -> pa.Table:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        with pq.ParquetFile(self._file, metadata=self._metadata) as file:  # a reader of its own for each thread
            group = file.read_row_group(number, columns=self._columns)
        with self._lock:
            if number not in self._kept:  # which another thread may have read as well
                self._kept[number] = group
                self._kept_bytes += group.nbytes
            while len(self._kept) > 1 and self._kept_bytes > self._keep_bytes:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return group


def open_file(path: Path) -> pa.NativeFile:
    """Held open, it can be read again though a writer has removed its name."""
    return pa.OSFile(os.fsencode(path))


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    """The table cut until each part is within a row group's limits, or a single row."""
    if len(table) <= 1 or (len(table) <= GROUP_ROWS and table.nbytes <= GROUP_BYTES):
        yield table
        return
    half = len(table) // 2
    yield from _parts(table.slice(0, half))
    yield from _parts(table.slice(half))
