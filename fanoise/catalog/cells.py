"""A table's cell to an image: a path, a file's bytes, the same as base64 text, or a URL."""

import base64
import binascii
import os
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fanoise.catalog.item import ImageBytes
from fanoise.catalog.rejects import Fault
from fanoise.catalog.urls import RemoteImage
from fanoise.images import ImageSource
from fanoise.values import is_missing

LEADS_OUT = "leads out of the catalogue's folder; if it may, say so with --allow-outside"
NO_URLS = "URLs are not fetched; allow it with --allow-urls, or fetch the images first"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # two letters at least: C:// is a drive
_DATA_URL = re.compile(r"data:[^,]*,", re.IGNORECASE)
# base64 of how JPEG, PNG, GIF, WebP and both kinds of TIFF begin
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]{256,}")  # longer than a file's name: how others begin, names of files do, too
_MOST_PATH = 4096
"""Characters: no file has a longer path."""


def image_content(cell: Any, place: str) -> Path | ImageSource | str:
    """An image that is in its cell, or the path or URL, as it is spelled, that the cell has instead. Raises: Fault.

    Args:
        place: table and row; how bytes are named.
    """
    if isinstance(cell, Mapping):  # as Hugging Face's Image feature: {"bytes", "path"}
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return ImageBytes(cell, place)
    if isinstance(cell, str):
        return _text_content(cell, place)
    if isinstance(cell, Path | ImageSource):
        return cell
    raise Fault(cell, f"the image is of type {type(cell).__name__}, must be a path, bytes, or base64 text")


def is_empty(cell: Any) -> bool:
    """Whether a cell has no image."""
    if isinstance(cell, Mapping):
        return is_empty(cell.get("bytes")) and is_empty(cell.get("path"))
    return is_missing(cell) or cell == b""


def url_scheme(text: str) -> str | None:
    """What a URL has before its `://`; None for a path."""
    found = _SCHEME.match(text.strip())
    return found[1] if found else None


class ImageCells:
    """Turns cells into image sources. Nothing is opened or fetched."""

    def __init__(self, folder: str | Path, *, allow_outside: bool = False, allow_urls: bool = False) -> None:
        """
        Args:
            folder: where relative paths start, and what no path may lead out of unless `allow_outside`.
        """
        self._folder, self._real = Path(folder), Path(folder).resolve()
        # an absolute path may spell the folder with its links or without
        starts = self._real, os.path.normpath(self._folder.absolute())
        self._inside = tuple(f"{str(start).rstrip(os.sep)}{os.sep}" for start in starts)
        self._allow_outside, self._allow_urls = allow_outside, allow_urls

    def read(self, cell: Any, place: str) -> Path | ImageSource:
        """The image that `cell` gives or names. Raises: Fault.

        Args:
            place: catalogue and row; how bytes are named.
        """
        content = image_content(cell, place)
        if not isinstance(content, str):
            return content
        if scheme := url_scheme(content):
            if scheme.lower() not in ("http", "https"):
                raise Fault(content, f"{scheme}:// is not supported; fetch the images and name their paths")
            if not self._allow_urls:
                raise Fault(content, NO_URLS)
            return RemoteImage(content.strip())
        return self._read_path(content)

    def _read_path(self, cell: str) -> Path:
        may_lead_out = ".." in cell or cell.startswith(("/", "\\")) or cell[1:2] == ":"
        if self._allow_outside or not may_lead_out:
            return self._folder / cell
        # without "..", so that what is opened is what was checked, whatever is a link on the way
        path = os.path.normpath(cell)
        if not os.path.normpath(self._real / path).startswith(self._inside):
            raise Fault(cell, LEADS_OUT)
        return self._folder / path


def _text_content(cell: str, place: str) -> ImageBytes | str:
    text = cell.strip()  # but of a path, blanks may be a part
    if head := _DATA_URL.match(text):
        content = text[head.end() :]
        if ";base64" in head[0].lower():
            return ImageBytes(_decode(urllib.parse.unquote(content)), place)
        return ImageBytes(urllib.parse.unquote_to_bytes(content), place)
    if "." not in text and (text.startswith(_BASE64_STARTS) or _BASE64.fullmatch(text)):
        return ImageBytes(_decode(text), place)
    if text.startswith('["'):
        raise Fault(cell, "a list written as text; give each image a column (--image A --image B), or write JSONL")
    if url_scheme(text) is None and len(cell) > _MOST_PATH:  # which the ledger is not to repeat
        raise Fault(None, f"the image is a text of {len(cell)} characters, neither a path nor base64")
    return cell


def _decode(text: str) -> bytes:
    try:
        # line breaks and the alphabet of URLs occur; anything else is damage, which b64decode would skip
        text = "".join(text.split()).translate(str.maketrans("-_", "+/"))
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Fault(None, "the image is not valid base64") from None
