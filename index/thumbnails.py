"""Small JPEG copies of the item images. Named by row number, never by id, so no id can lead out of the folder."""

import io
from pathlib import Path

from PIL import Image

from index.manifest import THUMBNAILS

LONGEST_SIDE = 320


def thumbnail_path(folder: Path, row: int) -> Path:
    return folder / THUMBNAILS / f"{row}.jpg"


def thumbnail_jpeg(image: Image.Image) -> bytes:
    """`image` (RGB) as a JPEG of at most LONGEST_SIDE pixels a side, without EXIF, comment or profile."""
    small = image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    small.info.clear()  # Pillow would carry a JPEG comment over
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()
