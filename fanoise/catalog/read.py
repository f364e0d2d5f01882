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
from fanoise.catalog.patterns import is_pattern, pattern_files, pattern_root
from fanoise.catalog.pdf import PDF_SUFFIX
from fanoise.catalog.rejects import OnOther, OnReject, Rejects
from fanoise.catalog.tables import TABLE_SUFFIXES, count_parquet_rows, read_tables
from fanoise.catalog.webdataset import SAMPLE_COLUMNS, TAR_SUFFIX, read_shards
from fanoise.errors import CatalogError
from fanoise.images import IMAGE_SUFFIXES
from fanoise.values import is_missing

_PARQUET = ".parquet"
_PART_SUFFIXES = (_PARQUET, TAR_SUFFIX)
_SUFFIXES = (*TABLE_SUFFIXES, PDF_SUFFIX, TAR_SUFFIX)


def read_catalog(
    path: str | Path,
    *,
    text: str | None = None,
    image: str | Sequence[str] = IMAGE,
    images: str | Path | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    required: Sequence[str] = (),
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
        required: other columns without which the catalogue is of no use; single rows may leave them empty. Of JSONL the
            first row says which columns there are.
        on_reject: called with id, path and reason of a row that is left out, after which reading goes on; without it
            the first one is an error. Such faults are: no text and no image, an image cell that is no image or may not
            be read, a PDF document or a tar that is damaged, a link in a folder that leads nowhere or to a folder.
        on_other: called with the name of each file in a folder, hidden ones left aside, and of each member of a tar's
            samples, that is passed over, being of no kind that is read.
    Every other column becomes a field, but for binary ones. Rows without an `id` are numbered from 1.
    Memory: as long as the ids are not row numbers or file names, about 80 bytes an item, to find duplicates.
    Raises: CatalogError for what is wrong with the whole: missing, empty, of an unknown kind, not UTF-8, a broken
        line, an unknown column, a duplicate id.
    """
    path = Path(path)
    columns = Columns.of(text, image, required)
    root = catalog_root(path)
    cells = ImageCells(root if images is None else images, allow_outside=allow_outside, allow_urls=allow_urls)
    reject = Rejects(root, on_reject, on_other)
    source = _open(path, reject)
    seen: set[int] | None = None if source.has_ids is False else set()
    is_first = True
    for number, row in source.rows:
        if is_first:
            columns.check(path, (*source.columns, *row))
            seen = None if source.has_ids is None and ID not in row else seen
            is_first = False
        for item in columns.items(path, number, row, cells, reject):
            if seen is not None:
                digest = hash(item.id)  # 64 bits; a hit is looked up, so that a collision is no duplicate
                if digest in seen:
                    first, other = _first_row(path, item.id, columns, cells)
                    if first != number:
                        raise _used_twice(path, item.id, {first: other, number: row})
                seen.add(digest)
            yield item
    if is_first and not reject.count:
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


def _open(path: Path, reject: Rejects) -> _Source:
    """Raises: CatalogError for a path that is no catalogue."""
    if path.is_dir():
        if is_dataset(path):
            return _Source(read_dataset(path))
        kind = _folder_kind(path)
        if kind is None:
            return _Source(read_folder(path, reject), columns=FOLDER_COLUMNS, has_ids=False)
        return _parts(kind, list(walk(path, frozenset({kind}), reject)), path, reject)
    if is_pattern(path):
        files = pattern_files(path)
        kinds = sorted({file.suffix.lower() for file in files})
        if len(kinds) > 1:
            raise CatalogError(f"{path}: names files of several kinds ({', '.join(kinds)}); name one kind")
        return _parts(kinds[0], files, pattern_root(path), reject)
    if not path.exists():
        raise CatalogError(f"{path}: no such file or folder; give a {', '.join(_SUFFIXES)} file, or a folder")
    kind = path.suffix.lower()
    if kind == PDF_SUFFIX:
        return _Source(read_pdfs([path], path.parent, reject), columns=FOLDER_COLUMNS, has_ids=False)
    if kind == TAR_SUFFIX:
        return _Source(read_shards([("", path)], reject), columns=SAMPLE_COLUMNS, has_ids=True)
    return _parts(kind, [path], path.parent, reject)


def _parts(kind: str, files: list[Path], root: Path, reject: Rejects) -> _Source:
    if kind == TAR_SUFFIX:
        named = ((f"{file.relative_to(root).with_suffix('').as_posix()}/", file) for file in files)
        return _Source(read_shards(named, reject), columns=SAMPLE_COLUMNS, has_ids=True)
    if kind == PDF_SUFFIX:
        return _Source(read_pdfs(files, root, reject), columns=FOLDER_COLUMNS, has_ids=len(files) > 1)
    if kind not in TABLE_SUFFIXES:
        raise CatalogError(f"{files[0]}: unknown kind {kind!r}; expected one of {', '.join(_SUFFIXES)}")
    return _Source(read_tables(files), has_ids=True if kind == ".jsonl" or len(files) > 1 else None)


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
        if item.id == id
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
