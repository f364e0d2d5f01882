"""Writing small catalogues, and reading them with their rejects."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fanoise.catalog import Item, read_catalog

RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table of the kind that the path's suffix says."""
    if path.suffix in (".csv", ".tsv"):
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        return raw(path, buffer.getvalue())
    if path.suffix == ".jsonl":
        return raw(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return raw(path, buffer.getvalue())


def raw(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path | str, **options: Any) -> tuple[list[Item], list[tuple[str, str, str]]]:
    """The items of a catalogue and its rejects: (id, path, reason)."""
    rejects: list[tuple[str, str, str]] = []
    items = list(read_catalog(path, on_reject=lambda *reject: rejects.append(reject), **options))
    return items, rejects
