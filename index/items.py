"""`items.parquet`: one line for each vector, in the same order."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ("row", "id", "text", "image", "thumbnail_sha256")


class ItemWriter:
    """Collects items and writes them with one type per field: the field's own where all rows agree, else string."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._texts: list[str | None] = []
        self._images: list[str | None] = []
        self._thumbnails: list[str | None] = []
        self._fields: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def append(
        self, *, id: str, text: str | None, image: str | None, thumbnail_sha256: str | None, fields: Mapping[str, Any]
    ) -> None:
        for name, value in fields.items():
            column = self._fields.setdefault(printable_text(str(name)), [])
            column.extend([None] * (len(self) - len(column)))
            column.append(printable_text(value) if isinstance(value, str) else value)
        self._ids.append(id)
        self._texts.append(text)
        self._images.append(image)
        self._thumbnails.append(thumbnail_sha256)

    def write(self, path: Path) -> None:
        n = len(self)
        columns: dict[str, pa.Array] = {
            "row": pa.array(range(n), pa.int64()),
            "id": pa.array(self._ids, pa.string()),
            "text": pa.array(self._texts, pa.string()),
            "image": pa.array(self._images, pa.string()),
            "thumbnail_sha256": pa.array(self._thumbnails, pa.string()),
        }
        if self._fields:  # Parquet has no struct without members
            members = [_typed_array(column + [None] * (n - len(column))) for column in self._fields.values()]
            # A struct keeps a field called "id" or "text" apart from our own columns.
            columns["fields"] = pa.StructArray.from_arrays(members, names=list(self._fields))
        pq.write_table(pa.table(columns), path, compression="zstd")


@dataclass(frozen=True)
class Items:
    """The items of an opened index. Rows are positions in the vectors."""

    ids: list[str]
    thumbnails: list[str | None]
    fields: pa.StructArray | None = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ValueError (also pyarrow's) when the file is not what ItemWriter writes."""
        table = pq.read_table(path)
        missing = [name for name in COLUMNS if name not in table.column_names]
        if missing:
            raise ValueError(f"columns missing: {', '.join(missing)}")
        if not np.array_equal(table["row"].to_numpy(), np.arange(len(table))):
            raise ValueError("its rows are not numbered 0, 1, 2, …")
        ids = table["id"].to_pylist()
        if len(set(ids)) != len(ids):
            raise ValueError("its ids are not unique")
        fields = table["fields"].combine_chunks() if "fields" in table.column_names else None
        if isinstance(fields, pa.ChunkedArray):  # pyarrow keeps chunks only where one array cannot hold the text
            fields = pa.concat_arrays(fields.chunks)
        return cls(ids=ids, thumbnails=table["thumbnail_sha256"].to_pylist(), fields=fields)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def field_names(self) -> list[str]:
        return [] if self.fields is None else [member.name for member in self.fields.type]

    def fields_of(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        if self.fields is None:
            return [{} for _ in rows]
        return self.fields.take(pa.array(rows, pa.int64())).to_pylist()


def printable_text(text: str) -> str:
    """Text that every encoder can take: lone surrogates (undecodable file names, JSON escapes) become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def json_value(value: Any) -> Any:
    """A field's value as strict JSON: NaN and infinity become null, dates and other types their text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(member) for member in value]
    return str(value)


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
    return printable_text(str(value))
