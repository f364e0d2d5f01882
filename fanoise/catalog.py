"""Catalogues: CSV, JSONL, Parquet or a folder of images, read as a stream of `Item` records.

Images are named here, never opened: a damaged one is the reader's to reject, not a reason to lose the catalogue.
"""

import csv
import json
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fanoise.errors import CatalogError
from fanoise.images import IMAGE_SUFFIXES

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to embed: a text, an image, or both. `fields` are carried along, never embedded."""

    id: str = ""
    text: str | None = None
    image: Path | str | Image.Image | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_catalog(path: str | Path, *, text: str | None = None, image: str = "image") -> Iterator[Item]:
    """Yield the catalogue's items in order.

    Args:
        path: a `.csv`, `.jsonl` or `.parquet` file, or a folder of images (sub-folder = the field `category`).
        text: what is embedded as text: a column's name or a template such as `"{title}. {description}"`. By default
            the column `text` if there is one; else items are images only.
        image: the column with the image's path, relative to the catalogue's folder or absolute.
    Every other column becomes a field. Rows without an `id` column are numbered from 1.
    Raises: CatalogError for a missing or empty catalogue, an unknown column, a duplicate id, a row without content.
    """
    path = Path(path)
    if path.is_dir():
        yield from _read_folder(path)
        return
    seen: dict[str, int] = {}
    columns: tuple[str, ...] = ()
    for number, row in read_rows(path):
        if not columns:
            columns = tuple(row)
            _check_columns(path, columns, text, image)
        item = _to_item(path, number, row, text, image)
        if item.id in seen:
            raise CatalogError(
                f"{path}: row {number}: id {item.id!r} was already used in row {seen[item.id]}; ids must be unique"
            )
        seen[item.id] = number
        yield item
    if not seen:
        raise CatalogError(f"{path}: the catalogue is empty; it needs at least one row")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, row) of a CSV, JSONL or Parquet table; empty cells are None.

    Raises: CatalogError naming file and row for what cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise CatalogError(f"{path}: no such file; give a {', '.join(TABLE_SUFFIXES)} file")
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise CatalogError(f"{path}: unknown kind {path.suffix!r}; expected one of {', '.join(TABLE_SUFFIXES)}")
    try:
        for number, row in enumerate(readers[path.suffix.lower()](path), start=1):
            yield number, {key: (None if value == "" else value) for key, value in row.items()}
    except UnicodeDecodeError:
        raise CatalogError(f"{path}: line {_first_bad_line(path)}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise CatalogError(f"{path}: cannot be read ({reason}); is it a whole {path.suffix} file?") from None


def _first_bad_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            names = reader.fieldnames or []
            if len(set(names)) != len(names):
                raise CatalogError(f"{path}: a column name occurs twice in the header: {', '.join(names)}")
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    raise CatalogError(f"{path}: row {number}: expected {len(names)} columns ({', '.join(names)})")
                yield row
        except csv.Error as error:
            raise CatalogError(f"{path}: line {reader.line_num}: {error}") from None


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CatalogError(f"{path}: line {number}: not JSON ({error.msg} at column {error.colno})") from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
                raise CatalogError(f"{path}: line {number}: not usable JSON ({error})") from None
            if not isinstance(row, dict):
                raise CatalogError(f"{path}: line {number}: expected an object, got {type(row).__name__}")
            yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise CatalogError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _read_folder(path: Path) -> Iterator[Item]:
    # pathlib's rglob does not follow directory links, so a link loop cannot trap it
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise CatalogError(f"{path}: no images found; expected {', '.join(sorted(IMAGE_SUFFIXES))} files")
    for file in files:
        relative = file.relative_to(path)
        fields = {"category": relative.parent.as_posix()} if relative.parent != Path() else {}
        yield Item(id=relative.as_posix(), image=file, fields=fields)


def _template_columns(template: str) -> list[str]:
    parts = list(string.Formatter().parse(template))
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError("a column's name may not be followed by ':' or '!'")
    return [name for _, name, _, _ in parts if name is not None]


def _fill(template: str, row: Mapping[str, Any]) -> str:
    # str.format would also follow attributes ("{title.__class__}"); looking up whole names in the row cannot
    parts = []
    for literal, name, _, _ in string.Formatter().parse(template):
        value = None if name is None else row.get(name)
        parts.append(literal + ("" if value is None else str(value)))
    return "".join(parts)


def _check_columns(path: Path, columns: Iterable[str], text: str | None, image: str) -> None:
    columns = tuple(columns)
    wanted = []
    if text is not None:
        try:
            wanted += _template_columns(text) or [text]
        except ValueError as error:
            raise CatalogError(f"text template {text!r}: {error}; write it like '{{title}}. {{description}}'") from None
    if image != "image":
        wanted.append(image)
    for name in wanted:
        if name not in columns:
            raise CatalogError(f"{path}: unknown column {name!r}; the columns are {', '.join(columns)}")
    if image not in columns and text is None and "text" not in columns:
        raise CatalogError(
            f"{path}: no column 'image' or 'text'; name yours (--image COLUMN, --text COLUMN), "
            f"the columns are {', '.join(columns)}"
        )


def _to_item(path: Path, number: int, row: dict[str, Any], text: str | None, image: str) -> Item:
    content: str | None
    if text is None:
        content = row.get("text")
    elif columns := _template_columns(text):
        content = _fill(text, row) if any(row.get(name) is not None for name in columns) else None
    else:
        content = row.get(text)
    source = row.get(image)
    if content is None and source is None:
        raise CatalogError(f"{path}: row {number}: neither a text nor an image; fill one of them or drop the row")
    return Item(
        id=str(row["id"]) if row.get("id") is not None else str(number),
        text=None if content is None else str(content),
        image=None if source is None else path.parent / str(source),
        fields={key: value for key, value in row.items() if key not in ("id", image)},
    )
