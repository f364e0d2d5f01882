"""Folders: images and PDF documents at any depth; a sub-folder is the field `category`."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fanoise.catalog.pdf import PDF_SUFFIX, PdfPage, count_pages
from fanoise.catalog.rejects import Rejects
from fanoise.errors import CatalogError, ImageError
from fanoise.images import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES

FOLDER_COLUMNS = ("id", "image", "category", "document", "page")


def read_folder(folder: Path, reject: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of every image and every page of a PDF, in the order of their paths.

    Raises: CatalogError if there are none.
    """
    number = 0
    suffixes = IMAGE_SUFFIXES | {PDF_SUFFIX}
    files = walk(folder, suffixes | OTHER_IMAGE_SUFFIXES, reject)
    for number, row in enumerate(_rows(folder, files, reject), start=1):
        yield number, row
    if not number and not reject.count:
        raise CatalogError(f"{folder}: no images found; expected {', '.join(sorted(suffixes))} files")


def read_pdfs(files: Iterable[Path], root: Path, reject: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of every page of some documents, named by their paths below `root`."""
    yield from enumerate(_rows(root, iter(files), reject), start=1)


def walk(folder: Path, suffixes: frozenset[str], reject: Rejects) -> Iterator[Path]:
    """Files below `folder` with one of the suffixes (in lower case), ordered by the parts of their paths.

    Skipped are folders whose name begins with a dot, and files with "._" in front, in which macOS keeps notes about
    others. Links to folders are not followed, so that a loop cannot trap us.
    Memory: the names in one folder, and in those above it.
    """
    levels = [entries(folder, reject)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif entry.is_dir(follow_symlinks=False):
            levels.append(entries(Path(entry.path), reject))
        elif _is_folder(entry):
            reject(_relative(entry, folder), entry.path, "a link to a folder; put the folder itself there")
        elif Path(entry.name).suffix.lower() in suffixes:
            if _is_file(entry):
                yield Path(entry.path)
            else:
                reject(_relative(entry, folder), entry.path, "not a file, or a link that leads nowhere")
        elif not entry.name.startswith("."):
            reject.pass_over(entry.name)


def entries(folder: Path, reject: Rejects) -> Iterator[os.DirEntry[str]]:
    """What `walk` sees in one folder, by name."""
    try:
        with os.scandir(folder) as found:
            return iter(sorted((entry for entry in found if not _is_skipped(entry)), key=lambda entry: entry.name))
    except OSError as error:
        reject(folder.name, folder, f"the folder cannot be read ({error.strerror})")
        return iter(())


def _is_skipped(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith("._") or (entry.name.startswith(".") and _is_folder(entry))


def _rows(folder: Path, files: Iterator[Path], reject: Rejects) -> Iterator[dict[str, Any]]:
    for file in files:
        relative = file.relative_to(folder)
        fields = {"category": relative.parent.as_posix()} if relative.parent != Path() else {}
        if file.suffix.lower() == PDF_SUFFIX:
            yield from _pages(file, relative.as_posix(), fields, reject)
        elif file.suffix.lower() in OTHER_IMAGE_SUFFIXES:
            reject(relative.as_posix(), file, not_read(file.suffix.lower()))
        else:
            yield {"id": relative.as_posix(), "image": file, **fields}


def _pages(path: Path, name: str, fields: dict[str, Any], reject: Rejects) -> Iterator[dict[str, Any]]:
    try:
        pages = count_pages(path)
    except ImageError as error:
        reject(name, path, error.reason)
        return
    for page in range(1, pages + 1):
        yield {"id": f"{name}#{page}", "image": PdfPage(path, page), **fields, "document": name, "page": page}


def not_read(suffix: str) -> str:
    """Why an image of OTHER_IMAGE_SUFFIXES is a reject."""
    return f"{suffix} images are not read; convert it, such as to JPEG"


def _relative(entry: os.DirEntry[str], folder: Path) -> str:
    return Path(entry.path).relative_to(folder).as_posix()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
