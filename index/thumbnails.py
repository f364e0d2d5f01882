"""Small JPEG copies of the item images, named by their content: `thumbnails/ab/<sha256>.jpg`.

Equal images share one file, and so do all generations of an index. No id or file name gets into a path.
"""

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from fanoise.storage import sha256_file, share, sync_directory
from index.manifest import THUMBNAILS
from index.parquet import UNREADABLE, read_parquet

LONGEST_SIDE = 320
_SYNCED_AT_ONCE = 8
_OURS = re.compile(r"[0-9a-f]{64}\.jpg|\.new-.*")
"""Ours, and those that a killed process did not finish."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: object) -> bool:
    """Whether this is a SHA-256 in hex, and can be a file's name."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def thumbnail_path(folder: Path, sha256: str) -> Path:
    """Where the thumbnail of this digest is; whoever has it from outside asks `is_digest` first."""
    return folder / THUMBNAILS / sha256[:2] / f"{sha256}.jpg"


def is_whole(folder: Path, sha256: str) -> bool:
    """Whether the thumbnail of this digest is there, with the content of this digest."""
    path = thumbnail_path(folder, sha256)
    try:
        return path.is_file() and sha256_file(path) == sha256
    except OSError:
        return False


def store_thumbnail(folder: Path, image: Image.Image) -> str:
    """Write the thumbnail of `image` (RGB) unless it is there, whole; returns its SHA-256. Several processes may do so.

    It is on the disk after `sync_thumbnails`.
    """
    data = thumbnail_jpeg(image)
    sha256 = hashlib.sha256(data).hexdigest()
    path = thumbnail_path(folder, sha256)
    if not is_whole(folder, sha256):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        share(Path(temporary))  # mkstemp makes private files
        Path(temporary).replace(path)
    return sha256


def thumbnail_jpeg(image: Image.Image) -> bytes:
    """`image` (RGB) as a JPEG of at most LONGEST_SIDE pixels a side, without EXIF, comment or profile."""
    # boxes of whole pixels are averaged first: several times as fast, and not to be seen
    small = image.reduce(max(1, max(image.size) // LONGEST_SIDE))
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    small.info.clear()  # Pillow would carry a JPEG comment over
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def sync_thumbnails(folder: Path, digests: Collection[str]) -> None:
    """Wait until the thumbnails of these digests are on the disk, and all names that lead to them."""
    if not digests:
        return
    paths = [thumbnail_path(folder, sha256) for sha256 in digests]
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as threads:  # files that wait together are written together
        list(threads.map(_sync, paths))
        list(threads.map(sync_directory, {path.parent for path in paths}))
    sync_directory(folder / THUMBNAILS)
    sync_directory(folder)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove_unused(folder: Path, items: Iterable[Path]) -> None:
    """Remove the thumbnails that none of `items` (items.parquet files) names; none at all if one cannot be read."""
    used = _digests(items)
    if used is None or not (folder / THUMBNAILS).is_dir():
        return
    for parent, folders, files in os.walk(folder / THUMBNAILS, topdown=False):
        kept = [name for name in folders if Path(parent, name).exists()]
        for name in files:
            if _OURS.fullmatch(name) and name.removesuffix(".jpg") not in used:
                Path(parent, name).unlink(missing_ok=True)
            else:
                kept.append(name)
        if not kept:
            Path(parent).rmdir()


def _digests(items: Iterable[Path]) -> set[str] | None:
    """The thumbnails that these files name; None if one of them cannot be read."""
    found: set[str] = set()
    for path in items:
        try:
            column = read_parquet(path, ["thumbnail_sha256"])["thumbnail_sha256"]
        except UNREADABLE:
            return None
        found.update(column.drop_null().to_pylist())
    return found
