"""Tables: CSV, TSV, JSONL and Parquet, row by row."""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fanoise.catalog.arrow import BATCH_ROWS, arrow_rows
from fanoise.errors import CatalogError, one_line

MAX_CELL = 32 * 2**20
"""Characters in a cell of a CSV file or a line of a JSONL file: room for an image as base64, not for a whole file."""
_BATCH_BYTES = 64 * 2**20


def read_rows(path: Path, vectors: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, row) of a CSV, TSV, JSONL or Parquet table; empty cells are None.

    Args:
        vectors: of Parquet, a column whose lists of numbers come as NumPy rows.
    Raises: CatalogError naming file and row for what cannot be read.
    """
    path = Path(path)
    with _named(path):
        suffix = path.suffix.lower()
        rows = _read_parquet(path, vectors) if suffix == ".parquet" else _READERS[suffix](path)
        for number, row in enumerate(rows, start=1):
            yield number, _without_empty(row)


def read_batches(path: Path, rows: int) -> Iterator[tuple[int, Any]]:
    """Yield (number of the first row, record batch) of a Parquet table: at most `rows`, fewer where cells are large.

    Raises: CatalogError, as `read_rows`; what only Python cannot hold is left to `batch_rows`.
    """
    path = Path(path)
    with _named(path):
        yield from _parquet_batches(path, rows, size_bytes=_BATCH_BYTES)


def batch_rows(path: Path, first: int, batch: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """What `read_rows` yields for the rows of a record batch, whose first row has that number. Raises: CatalogError."""
    yield from enumerate(map(_without_empty, arrow_rows(batch, str(path), first)), start=first)


def read_tables(
    tables: Iterable[tuple[Path, Mapping[str, Any]]], vectors: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """`read_rows` of one table after the other, numbered on; errors number the rows of their own table.

    Args:
        tables: each with what its rows have besides their own columns.
    """
    number = 0
    for path, others in tables:
        for _, row in read_rows(path, vectors):
            number += 1
            for name, value in others.items():
                row.setdefault(name, value)
            yield number, row


def count_parquet_rows(path: Path) -> int:
    """How many rows a Parquet file has, by its footer alone. Raises: CatalogError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_arrow(path) as source:
            return int(pq.read_metadata(source).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"{path}: not a readable Parquet file ({one_line(error)})") from None


def open_arrow(path: Path) -> Any:
    """A file for pyarrow. Raises: OSError."""
    import pyarrow as pa

    return pa.OSFile(os.fsencode(path))  # as text, a name that is not UTF-8 cannot be given


def listed(columns: Sequence[str]) -> str:
    """The names of a table's columns for a message, with what seems to be wrong with them."""
    names = ", ".join(name if name and name == name.strip() else repr(name) for name in columns)
    if len(columns) == 1 and (sign := next((sign for sign in ";\t|" if sign in columns[0]), None)):
        names += f" (one column: is {sign!r} what separates them? A .csv has commas, a .tsv tabs)"
    return names


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the table in what goes wrong with its file."""
    if not path.exists():
        raise CatalogError(f"{path}: no such file; give a {', '.join(TABLE_SUFFIXES)} file")
    if path.suffix.lower() not in _READERS:
        raise CatalogError(f"{path}: unknown kind {path.suffix!r}; expected one of {', '.join(TABLE_SUFFIXES)}")
    try:
        yield
    except UnicodeDecodeError:
        raise CatalogError(f"{path}: line {_first_bad_line(path)}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({one_line(error)}); is it a whole {path.suffix} file?") from None


def _without_empty(row: dict[str, Any]) -> dict[str, Any]:
    return {key: (None if isinstance(value, str) and not value else value) for key, value in row.items()}


def _first_bad_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))  # one setting for the process; its default is 128 KiB
    with path.open(newline="", encoding="utf-8-sig") as file:
        # strict: else a quote that is never closed would swallow the rest of the file without a word
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        begin = 1
        try:
            header = list(reader.fieldnames or [])
            names = header[: len(header) - sum(1 for _ in itertools.takewhile(lambda name: not name, reversed(header)))]
            reader.fieldnames = names  # the last columns have no name where a spreadsheet once had something in them
            begin = reader.line_num + 1
            if len(set(names)) != len(names):
                raise CatalogError(f"{path}: a column name occurs twice in the header: {listed(names)}")
            for number, row in enumerate(reader, start=1):
                unnamed: Any = row.pop(None, [])  # what DictReader calls the rest
                if any(unnamed) or len(unnamed) > len(header) - len(names) or None in row.values():
                    raise CatalogError(f"{path}: row {number}: expected {len(names)} columns ({listed(names)})")
                begin = reader.line_num + 1
                yield row
        except csv.Error as error:
            raise CatalogError(
                f"{path}: line {begin}: {error}; in a quoted cell, write each quote twice and close the last"
            ) from None


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_CELL + 1), ""), start=1):
            if len(line) > MAX_CELL:
                raise CatalogError(f"{path}: line {number}: longer than {MAX_CELL} characters; write one object a line")
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip("\r\n"))
            except json.JSONDecodeError as error:
                what = f"{error.msg.removesuffix(' at')} at column {error.colno}"
                raise CatalogError(f"{path}: line {number}: not JSON ({what})") from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
                raise CatalogError(f"{path}: line {number}: not usable JSON ({error})") from None
            if not isinstance(row, dict):
                raise CatalogError(f"{path}: line {number}: expected an object, got {type(row).__name__}")
            yield row


def _read_parquet(path: Path, vectors: str | None = None) -> Iterator[dict[str, Any]]:
    for start, batch in _parquet_batches(path, BATCH_ROWS):
        yield from arrow_rows(batch, str(path), start, vectors)


def _parquet_batches(path: Path, rows: int, *, size_bytes: int | None = None) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 1
    try:
        # page by page; by default all images of a row group, which may be the whole file, would be in memory at once
        with open_arrow(path) as source, pq.ParquetFile(source, pre_buffer=False, buffer_size=2**20) as file:
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise CatalogError(f"{path}: a column name occurs twice: {', '.join(names)}")
            if size_bytes is not None:
                groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
                total = sum(group.total_byte_size for group in groups)
                rows = max(1, min(rows, size_bytes * file.metadata.num_rows // max(total, 1)))
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                yield start, batch
                start += len(batch)
    except pa.ArrowException as error:
        raise CatalogError(f"{path}: not a readable Parquet file ({one_line(error)})") from None


_READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
TABLE_SUFFIXES = tuple(_READERS)
