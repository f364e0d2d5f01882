"""Any catalogue as a stream of items."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanoise.catalog.cells import ImageCells
from fanoise.catalog.columns import ID, IMAGE, Columns
from fanoise.catalog.folders import FOLDER_COLUMNS, entries, read_folder, read_pdfs, walk
from fanoise.catalog.huggingface import count_dataset_rows, is_dataset, read_dataset
from fanoise.catalog.item import Item
from fanoise.catalog.partitions import partition_fields
from fanoise.catalog.patterns import is_pattern, pattern_files, pattern_root
from fanoise.catalog.pdf import PDF_SUFFIX
from fanoise.catalog.rejects import OnOther, OnReject, Rejects
from fanoise.catalog.tables import TABLE_SUFFIXES, count_parquet_rows, read_tables
from fanoise.catalog.webdataset import SAMPLE_COLUMNS, TAR_SUFFIX, read_shards
from fanoise.errors import CatalogError
from fanoise.images import IMAGE_SUFFIXES
from fanoise.values import is_missing, printable_text

_PARQUET = ".parquet"
_PART_SUFFIXES = (_PARQUET, TAR_SUFFIX)
_SUFFIXES = (*TABLE_SUFFIXES, PDF_SUFFIX, TAR_SUFFIX)
_ROWS_DIFFER = 256
"""Rows that are looked at for a column which the first one lacks, where each has its own."""
_ESCAPED = "\\ud"
"""In what `printable_text` makes of a file name that is not UTF-8, and what another file may be called."""


def read_catalog(
    path: str | Path,
    *,
    text: str | None = None,
    image: str | Sequence[str] = IMAGE,
    images: str | Path | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    vectors: str | None = None,
    on_reject: OnReject | None = None,
    on_other: OnOther | None = None,
) -> Iterator[Item]:
    """Yield the catalogue's items in order. No image is opened, fetched or drawn here.

    Args:
        path: one of
            a `.csv`, `.tsv`, `.jsonl` or `.parquet` table;
            a folder of images and PDF documents, or one `.pdf` (sub-folder = the field `category`; a page is an item
            with the fields `document` and `page`, and the id `name.pdf#3`);
            a webdataset `.tar` (`.txt` = the column `text`, `.json` = more columns);
            a folder of `.parquet` or of `.tar` files, or a pattern of them such as `shard-{000..012}.tar` or `*.tar`,
            in which a sample's id has the name of its tar before it;
            a folder that Hugging Face datasets saved (`save_to_disk`).
        text: what is embedded as text: a column's name or a template such as `"{title}. {description}"`. By default
            the column `text` if there is one; else items are images only.
        image: the column with the image: a path, the file's bytes, the same as base64 or `data:` URL, or a list of
            them. Of a list, or of several columns, each image is an item `id#0`, `id#1`, … with the field `item`.
        images: the folder where relative image paths start and which no path may lead out of; by default the
            catalogue's. Links inside it are followed.
        allow_outside: let paths in a table lead anywhere. Whoever sees the index then sees a small copy of any image
            file on this machine that the table names.
        allow_urls: take http and https URLs as images (see `RemoteImage` for what is never fetched).
        vectors: the field with the items' vectors, without which the catalogue is of no use; single rows may leave it
            empty. Its lists come as NumPy rows where Parquet or Arrow has them as numbers.
        on_reject: called with id, path and reason of a row that is left out, after which reading goes on; without it
            the first one is an error. Such faults are: no text and no image, an image cell that is no image or may not
            be read, a PDF document or a tar that is damaged, a link in a folder that leads nowhere or to a folder.
        on_other: called with the name of each file in a folder, hidden ones left aside, and of each member of a tar's
            samples, that is passed over, being of no kind that is read.
    Every other column becomes a field, but for binary ones. Rows without an `id` are numbered from 1. Of JSONL and tars
    the first 256 rows say which columns there are.
    Memory: as long as the ids are not row numbers or file names, about 80 bytes an item, to find duplicates.
    Raises: CatalogError for what is wrong with the whole: missing, empty, of an unknown kind, not UTF-8, a broken
        line, an unknown column, a duplicate id.
    """
    path = Path(path)
    columns = Columns.of(text, image, vectors)
    root = catalog_root(path)
    cells = ImageCells(root if images is None else images, allow_outside=allow_outside, allow_urls=allow_urls)
    reject = Rejects(root, on_reject, on_other)
    source = _open(path, reject, columns.number_rows)
    first_rows = _first_rows(path, source, columns)
    has_ids = source.has_ids or (source.has_ids is None and bool(first_rows) and ID in first_rows[0][1])
    seen: set[int] = set()
    is_empty = not first_rows
    for number, row in itertools.chain((first_rows.pop(0) for _ in first_rows[:]), source.rows):  # no longer held then
        for item in columns.items(path, number, row, cells, reject):
            name = printable_text(item.id)  # as indices and ledgers spell it
            if has_ids or _ESCAPED in name:
                digest = hash(name)  # 64 bits; a hit is looked up, so that a collision is no duplicate
                if digest in seen:
                    first, other = _first_row(path, name, columns, cells)
                    if first != number:
                        raise _used_twice(path, name, {first: other, number: row})
                seen.add(digest)
            yield item
    if is_empty and not reject.count:
        raise CatalogError(f"{path}: the catalogue is empty; it needs at least one row")


def count_rows(path: str | Path) -> int | None:
    """How many rows a catalogue has if its files tell without being read through, else None.

    Rows are not items: several images make a row several items, a fault none. Raises: CatalogError.
    """
    path = Path(path)
    if path.is_dir() and is_dataset(path):
        return count_dataset_rows(path)
    files = [path]
    if path.is_dir():
        files = list(walk(path, frozenset({_PARQUET}), _IGNORE)) if _folder_kind(path) == _PARQUET else []
    elif is_pattern(path):
        files = pattern_files(path)
    if not files or any(file.suffix.lower() != _PARQUET for file in files):
        return None
    return sum(map(count_parquet_rows, files))


def catalog_root(path: str | Path) -> Path:
    """The folder that a catalogue's relative image paths start from."""
    path = Path(path)
    if path.is_dir():
        return path
    return pattern_root(path) if is_pattern(path) else path.parent


@dataclass(frozen=True)
class _Source:
    """The rows of a catalogue."""

    rows: Iterator[tuple[int, dict[str, Any]]]
    columns: tuple[str, ...] = ()
    """Columns that rows may have though the first one has not."""
    has_ids: bool | None = None
    """True if rows may have ids of their own, False if their ids cannot repeat, None if the first row tells."""
    rows_differ: bool = False
    """Whether each row has columns of its own."""


def _first_rows(path: Path, source: _Source, columns: Columns) -> list[tuple[int, dict[str, Any]]]:
    """Takes rows off the source until all columns that were asked for are there. Raises: CatalogError."""
    rows: list[tuple[int, dict[str, Any]]] = []
    known, fault = dict.fromkeys(source.columns), None
    for number, row in itertools.islice(source.rows, _ROWS_DIFFER if source.rows_differ else 1):
        rows.append((number, row))
        known |= dict.fromkeys(row)
        fault = columns.fault(known)
        if fault is None:
            break
    if fault is not None:
        raise CatalogError(f"{path}: {fault}")
    return rows


def _open(path: Path, reject: Rejects, vectors: str | None = None) -> _Source:
    """
    Args:
        vectors: the column that may come as NumPy rows.
    Raises: CatalogError for a path that is no catalogue.
    """
    if path.is_dir():
        if is_dataset(path):
            return _Source(read_dataset(path, vectors))
        kind = _folder_kind(path)
        if kind is None:
            return _Source(read_folder(path, reject), columns=FOLDER_COLUMNS, has_ids=False)
        return _parts(kind, list(walk(path, frozenset({kind}), reject)), path, reject, vectors)
    if is_pattern(path):
        files = pattern_files(path)
        kinds = sorted({file.suffix.lower() for file in files})
        if len(kinds) > 1:
            raise CatalogError(f"{path}: names files of several kinds ({', '.join(kinds)}); name one kind")
        return _parts(kinds[0], files, pattern_root(path), reject, vectors)
    if not path.exists():
        raise CatalogError(f"{path}: no such file or folder; give a {', '.join(_SUFFIXES)} file, or a folder")
    kind = path.suffix.lower()
    if kind == PDF_SUFFIX:
        return _Source(read_pdfs([path], path.parent, reject), columns=FOLDER_COLUMNS, has_ids=False)
    if kind == TAR_SUFFIX:
        return _Source(read_shards([("", path)], reject), columns=SAMPLE_COLUMNS, has_ids=True, rows_differ=True)
    return _parts(kind, [path], path.parent, reject, vectors)


def _parts(kind: str, files: list[Path], root: Path, reject: Rejects, vectors: str | None) -> _Source:
    if kind == TAR_SUFFIX:
        named = ((f"{file.relative_to(root).with_suffix('').as_posix()}/", file) for file in files)
        return _Source(read_shards(named, reject), columns=SAMPLE_COLUMNS, has_ids=True, rows_differ=True)
    if kind == PDF_SUFFIX:
        return _Source(read_pdfs(files, root, reject), columns=FOLDER_COLUMNS, has_ids=len(files) > 1)
    if kind not in TABLE_SUFFIXES:
        raise CatalogError(f"{files[0]}: unknown kind {kind!r}; expected one of {', '.join(_SUFFIXES)}")
    is_json = kind == ".jsonl"
    fields = partition_fields(files, root) if kind == _PARQUET else [{}] * len(files)
    rows = read_tables(zip(files, fields, strict=True), vectors)
    return _Source(rows, has_ids=True if is_json or len(files) > 1 else None, rows_differ=is_json)


def _folder_kind(folder: Path) -> str | None:
    """Of what files a folder is made: the suffix of tables or shards, or None for images and documents.

    Its own files tell; only if none of them does, the first one below.
    """
    known = {*_PART_SUFFIXES, *IMAGE_SUFFIXES, PDF_SUFFIX}
    files = (entry for entry in entries(folder, _IGNORE) if not entry.is_dir(follow_symlinks=False))
    found = {Path(entry.name).suffix.lower() for entry in files} & known
    if not found:
        found = {file.suffix.lower() for file in itertools.islice(walk(folder, frozenset(known), _IGNORE), 1)}
    parts = sorted(found & set(_PART_SUFFIXES))
    if parts and len(found) > 1:
        raise CatalogError(
            f"{folder}: holds {' and '.join(sorted(found))} files; say which by a pattern like {folder}/*{parts[0]}"
        )
    return parts[0] if parts else None


def _first_row(path: Path, id: str, columns: Columns, cells: ImageCells) -> tuple[int, dict[str, Any]]:
    """The first row with an item of this id, and its number."""
    return next(
        (number, row)
        for number, row in _open(path, _IGNORE).rows
        for item in columns.items(path, number, row, cells, _IGNORE)
        if printable_text(item.id) == id
    )


def _used_twice(path: Path, id: str, rows: dict[int, dict[str, Any]]) -> CatalogError:
    """
    Args:
        rows: the two with this id, by number.
    """
    first, second = rows
    note = "".join(
        f" (row {number} has no id, its number is it)" for number in rows if is_missing(rows[number].get(ID))
    )
    return CatalogError(f"{path}: row {second}: id {id!r} was already used in row {first}{note}; ids must be unique")


_IGNORE = Rejects(Path(), lambda *_: None)
