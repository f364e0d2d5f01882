"""`items.parquet`: one line for each vector, in the same order."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fanoise.errors import ArtifactError, InputError, one_line
from fanoise.values import printable_text, spelled
from index.parquet import PieceWriter, Rows, open_file, read_parquet, read_pieces
from index.spelling import read_texts
from index.where import unknown_field

COLUMNS = ("row", "id", "text", "image", "thumbnail_sha256", "content_sha256")
DUPLICATE_OF = "duplicate_of"
"""Field with the id of the first near-duplicate, where these are reported."""
SIGNATURE = "signature"
"""Column, where near-duplicates were looked for: bytes that a picture is found by, see `encoding.near_duplicates`."""
_SHA256 = r"^[0-9a-f]{64}$"


class ItemWriter:
    """Collects items and writes them with one type per field: the field's own where all rows agree, else string."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._texts: list[str | None] = []
        self._images: list[str | None] = []
        self._thumbnails: list[str | None] = []
        self._contents: list[str | None] = []
        self._signatures: list[bytes | None] = []
        self._fields: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def append(
        self,
        *,
        id: str,
        text: str | None,
        image: str | None,
        thumbnail_sha256: str | None,
        content_sha256: str | None = None,
        signature: bytes | None = None,
        fields: Mapping[str, Any],
    ) -> None:
        row = len(self)
        for name, value in fields.items():
            column = self._fields.setdefault(printable_text(str(name)), [])
            if len(column) < row:
                column.extend([None] * (row - len(column)))
            # of names that are printed alike the last one counts, as of those that JSON has twice
            column[row:] = [printable_text(value) if isinstance(value, str) else value]
        self._ids.append(id)
        self._texts.append(text)
        self._images.append(image)
        self._thumbnails.append(thumbnail_sha256)
        self._contents.append(content_sha256)
        self._signatures.append(signature)

    def write(self, path: Path) -> None:
        n = len(self)
        columns: dict[str, pa.Array] = {
            "row": pa.array(range(n), pa.int64()),
            "id": pa.array(self._ids, pa.string()),
            "text": pa.array(self._texts, pa.string()),
            "image": pa.array(self._images, pa.string()),
            "thumbnail_sha256": pa.array(self._thumbnails, pa.string()),
            "content_sha256": pa.array(self._contents, pa.string()),
        }
        if any(self._signatures):
            columns[SIGNATURE] = pa.array(self._signatures, pa.binary())
        if self._fields:  # Parquet has no struct without members
            members = [_typed_array(column + [None] * (n - len(column))) for column in self._fields.values()]
            # A struct keeps a field called "id" or "text" apart from our own columns.
            columns["fields"] = pa.StructArray.from_arrays(members, names=list(self._fields))
        write_items(path, pa.table(columns))


class Items:
    """The items of an opened index. Rows are positions in the vectors.

    Ids and thumbnails are in memory; fields, which may be larger than that, are read when they are asked for. Threads
    may share one.
    """

    def __init__(self, file: pa.NativeFile, path: Path, deleted: np.ndarray | None, *, keep_bytes: int) -> None:
        """Takes an open file; use `read`."""
        self._file, self._path = file, path
        self.schema: pa.Schema = pq.read_schema(file)
        _check_columns(self.schema)
        self.field_names = field_names(self.schema)
        table = read_parquet(file, ["row", "id", "thumbnail_sha256"])
        _check_rows(table)
        # 64 bits where a text starts: those of many millions of items are more than 2 GB
        ids, digests = (table[name].cast(pa.large_string()).combine_chunks() for name in ("id", "thumbnail_sha256"))
        live = np.ones(len(table), dtype=bool)
        live[[] if deleted is None else deleted] = False
        if not are_distinct(ids.filter(pa.array(live))):
            raise ValueError("its ids are not unique")
        if not pc.all(pc.match_substring_regex(digests, _SHA256), min_count=0).as_py():  # they become file names
            raise ValueError("a thumbnail_sha256 is none")
        self.id_column: pa.LargeStringArray = ids
        self.thumbnail_column: pa.LargeStringArray = digests
        """SHA-256 of each row's thumbnail."""
        self._rows = Rows(file, ["fields"], keep_bytes=keep_bytes)

    @classmethod
    def read(cls, path: Path, deleted: np.ndarray | None = None, *, keep_bytes: int = 256 << 20) -> Self:
        """Open the file and hold it; the ids of the rows that are not `deleted` must be unique.

        Args:
            keep_bytes: of fields that hits were made of, kept for the next ones.
        Raises: ValueError (also pyarrow's) when the file is not what ItemWriter writes.
        """
        return cls(open_file(path), path, deleted, keep_bytes=keep_bytes)

    def __len__(self) -> int:
        return len(self.id_column)

    @cached_property
    def ids(self) -> list[str]:
        """Made when first asked for, since it is several times as large as `id_column`."""
        return self.id_column.to_pylist()

    def close(self) -> None:
        """Let go of the file: a removed one that is still open can keep its folder from going, as on NFS."""
        self._file.close()

    def column(self, name: str) -> pa.Array:
        """A field of all rows, read anew. Raises InputError for an unknown one, or one with 2 GB of text."""
        if name not in self.field_names:
            raise unknown_field(name, self.field_names)
        column = pc.struct_field(self.table([f"fields.{name}"])["fields"], [name])
        try:
            return pa.concat_arrays(column.chunks)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"the field {name!r} holds more text (2 GB) than can be filtered or grouped by; use another"
            ) from error

    def fields_of(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Raises: ArtifactError for a file that was damaged since it was opened."""
        if not self.field_names:
            return [{} for _ in rows]
        with self._readable():
            return [row["fields"] for row in self._rows.take(rows)]

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of items.parquet, by row, read anew: also where commits since have removed its name."""
        with self._readable():
            return read_parquet(self._file, columns)

    def pieces(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `table`, for columns that may be larger than the memory, from the first row to the last."""
        with self._readable():
            yield from read_pieces(self._file, columns)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(
                f"{self._path} cannot be read ({one_line(error)}); restore it or rebuild the index"
            ) from error


def are_distinct(ids: pa.Array | pa.ChunkedArray) -> bool:
    return len(ids.unique()) == len(ids)  # in less than half the time of `count_distinct`


def write_items(path: Path, table: pa.Table) -> None:
    with PieceWriter(path, table.schema) as writer:
        writer.write(table)


def concat_items(tables: Sequence[pa.Table]) -> pa.Table:
    """Several tables of items below each other, numbered anew.

    A field that some tables lack is null there. One that differs in type takes the wider type where every value
    survives it (whole numbers among fractions), else becomes text, as in ItemWriter.
    """
    columns: dict[str, Any] = {"row": pa.array(range(sum(map(len, tables))), pa.int64())}
    for name in COLUMNS[1:]:
        columns[name] = pa.chunked_array([chunk for table in tables for chunk in table[name].chunks], pa.string())
    if any(SIGNATURE in table.column_names for table in tables):
        columns[SIGNATURE] = pa.chunked_array([chunk for table in tables for chunk in _signatures(table)], pa.binary())
    found = [_members(table) for table in tables]
    names = list(dict.fromkeys(name for chunks in found for name in chunks))
    if names:
        lengths = [len(table) for table in tables]
        members = [
            _concat_members([_joined(one.get(name), length) for one, length in zip(found, lengths, strict=True)])
            for name in names
        ]
        columns["fields"] = pa.StructArray.from_arrays(members, names=names)
    return pa.table(columns)


def json_value(value: Any) -> Any:
    """A field's value as strict JSON: NaN and infinity become null, decimals, dates and other types their text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(member) for member in value]
    return spelled(value)


def cast_exactly(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Raises pyarrow's errors where a value does not survive it."""
    if _holds_decimals(array.type) and not _holds_decimals(kind):  # else Arrow makes 19.990000000000002 of 19.99
        found = read_texts(array.cast(pa.string()), kind) if pa.types.is_floating(kind) else None
        if found is None:
            raise pa.ArrowInvalid(f"not all of these are {kind}")
        return found
    return array.cast(kind)


def _holds_decimals(kind: pa.DataType) -> bool:
    return _holds_decimals(kind.value_type) if pa.types.is_list(kind) else pa.types.is_decimal(kind)


def _whole_as_decimal(kind: pa.DataType) -> pa.DataType:
    """Types of whole numbers as the decimals that hold all of them, since pyarrow unites them to too few digits."""
    if pa.types.is_list(kind):
        return pa.list_(_whole_as_decimal(kind.value_type))
    return pa.decimal128(20 if kind == pa.uint64() else 19, 0) if pa.types.is_integer(kind) else kind


def field_names(schema: pa.Schema) -> list[str]:
    return [member.name for member in schema.field("fields").type] if "fields" in schema.names else []


def _check_columns(schema: pa.Schema) -> None:
    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise ValueError(f"columns missing: {', '.join(missing)}")
    for name in (*COLUMNS, SIGNATURE):
        expected = {"row": pa.int64(), SIGNATURE: pa.binary()}.get(name, pa.string())
        if name in schema.names and schema.field(name).type != expected:
            raise ValueError(f"its column {name} is of type {schema.field(name).type} instead of {expected}")
    if "fields" in schema.names and not pa.types.is_struct(schema.field("fields").type):
        raise ValueError("its fields are no struct")


def _check_rows(table: pa.Table) -> None:
    if not np.array_equal(table["row"].to_numpy(), np.arange(len(table))):
        raise ValueError("its rows are not numbered 0, 1, 2, …")


def _signatures(table: pa.Table) -> list[pa.Array]:
    return table[SIGNATURE].chunks if SIGNATURE in table.column_names else [pa.nulls(len(table), pa.binary())]


def _members(table: pa.Table) -> dict[str, list[pa.Array]]:
    """The chunks of its fields by name, in one go: looking for one after the other would go through all each time."""
    names = field_names(table.schema)
    chunks = [chunk.flatten() for chunk in table["fields"].chunks] if names else []
    return {name: [chunk[number] for chunk in chunks] for number, name in enumerate(names)}


def _joined(chunks: list[pa.Array] | None, length: int) -> pa.Array:
    return pa.concat_arrays(chunks) if chunks else pa.nulls(length)


def _concat_members(arrays: Sequence[pa.Array]) -> pa.Array:
    kinds = {array.type for array in arrays if not pa.types.is_null(array.type)}
    if len(kinds) > 1:
        try:
            if any(map(_holds_decimals, kinds)):
                kinds = set(map(_whole_as_decimal, kinds))
            schemas = [pa.schema([("value", kind)]) for kind in kinds]
            kinds = {pa.unify_schemas(schemas, promote_options="permissive").field("value").type}
            return pa.concat_arrays([cast_exactly(array, *kinds) for array in arrays])
        except pa.ArrowException:  # nothing holds both, or a whole number is too large for a fraction
            texts = [[_as_string(value) for value in array.to_pylist()] for array in arrays]
            return pa.concat_arrays([pa.array(values, pa.string()) for values in texts])
    kind = kinds.pop() if kinds else pa.null()
    return pa.concat_arrays([pa.nulls(len(a), kind) if pa.types.is_null(a.type) else a for a in arrays])


def _typed_array(values: list[Any]) -> pa.Array:
    try:
        array = pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.array([_as_string(value) for value in values], pa.string())
    if "struct<>" in str(array.type):  # Parquet cannot hold it
        return pa.array([_as_string(value) for value in values], pa.string())
    return array


def _as_string(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (dict, list)):
        return printable_text(json.dumps(json_value(value), ensure_ascii=False))
    return printable_text(spelled(value) if isinstance(value, Decimal) else str(value))
