"""The picture behind a thumbnail: the catalogue's own, made safe to show, or else the thumbnail itself.

A picture is asked for by the SHA-256 of its thumbnail, so a visitor can name only what a result has shown. Where the
original lies is taken from the index alone, and it is shown only if its thumbnail is, byte for byte, the one asked for:
neither a file that has changed since nor an index from elsewhere can have this machine show another one.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from app.service import ARMS, Service
from fanoise.catalog import PdfPage, catalog_root
from fanoise.errors import FANoiseError
from fanoise.images import open_image
from index.search import Index
from index.thumbnails import is_digest, thumbnail_jpeg, thumbnail_path

LONGEST_SIDE = 1_600
_KEPT = 64
"""Pictures that stay in memory, of some 0.3 MB each."""
_PAGE = re.compile(r"(.+\.pdf)#([1-9]\d{0,5})", re.IGNORECASE)


class Pictures:
    """The pictures of all indices of a service. Threads may ask at once."""

    def __init__(self, service: Service, *, originals: bool = False) -> None:
        """`originals`: show the catalogues' own pictures where they are still there; else thumbnails only."""
        self._folders = [folder.parent for folder in service.thumbnail_folders()]
        backends = [service.searcher(name, arm).backend for name in service.catalogs for arm in ARMS]
        self._catalogs = [_Images(backend) for backend in backends if originals and isinstance(backend, Index)]
        self._find_kept = lru_cache(maxsize=_KEPT)(self._find)

    def find(self, digest: str) -> bytes | None:
        """A JPEG of at most LONGEST_SIDE pixels a side and without EXIF; None if there is no such thumbnail."""
        return self._find_kept(digest) if is_digest(digest) else None

    def _find(self, digest: str) -> bytes | None:
        files = [thumbnail_path(folder, digest) for folder in self._folders]
        thumbnail = next((file for file in files if file.is_file()), None)
        if thumbnail is None:
            return None
        for images in self._catalogs:
            original = images.open(digest)
            if original is not None:
                return _encode(original)
        return thumbnail.read_bytes()


class _Images:
    """Where the originals of an index lie: files and PDF pages; those in tables, tars and the web stay there."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._names = index.item_table(["image"])["image"].combine_chunks()
        self._roots = list(_roots(index))

    def open(self, digest: str) -> Image.Image | None:
        """The picture of which the index keeps the thumbnail `digest`, if it is still the same."""
        name = next((self._names[row].as_py() for row in self._index.rows_showing(digest)), None)
        if name is None:
            return None
        for root in self._roots:
            try:
                picture = open_image(_source(root, name))  # as when it was indexed, else its thumbnail differs
            except FANoiseError:  # another root may have it, and there is the thumbnail
                continue
            if hashlib.sha256(thumbnail_jpeg(picture)).hexdigest() == digest:
                return picture
        return None


def _roots(index: Index) -> Iterator[Path]:
    """The folders from which the catalogues of an index name their images, the newest first."""
    for ref in (*reversed(index.manifest.added), index.manifest.catalog):
        yield catalog_root(index.folder / ref.path)
        if "images" in ref.options:
            yield index.folder / str(ref.options["images"])


def _source(root: Path, name: str) -> Any:
    page = _PAGE.fullmatch(name)
    return root / name if page is None else PdfPage(root / page[1], int(page[2]))


def _encode(picture: Image.Image) -> bytes:
    picture = picture.copy()
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    picture.info.clear()  # a JPEG comment, or a profile, would be carried over
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()
