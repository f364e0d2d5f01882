"""What a row's vector depends on, as one digest: a row whose digest is known need not be encoded again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fanoise.catalog import ImageBytes, TarMember
from fanoise.errors import ImageError
from fanoise.images import open_image, open_regular

_VERSION = 1
"""To be raised with any change in how images are decoded or rows are put together."""
_MOST_BYTES = 1 << 30


class ContentKeys:
    """Digests over text, image and embedder."""

    def __init__(self, fingerprint: Mapping[str, str]) -> None:
        self._embedder = dict(fingerprint)

    def key(self, text: str | None, image: str | None) -> str:
        """Hex SHA-256 for a row of this text and the image of this digest; no text and empty text are the same."""
        content = [_VERSION, self._embedder, text or None, image]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_image(image: Any) -> bytes | Image.Image:
    """What an item's image holds: the bytes of its file, or the image. Raises ImageError."""
    if isinstance(image, bytes | Image.Image):
        return image
    try:
        if not isinstance(image, str | Path):
            return image.read()
        with open_regular(image) as file:
            data = file.read(_MOST_BYTES + 1)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("file not found", image) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ImageError(f"cannot be opened ({getattr(error, 'strerror', None) or error})", image) from None
    if not data:
        raise ImageError("the file is empty", image)
    if len(data) > _MOST_BYTES:
        raise ImageError(f"more than {_MOST_BYTES} bytes", image)
    return data


def is_dear(image: Any) -> bool:
    """Whether reading an image means more than reading a file: a page is drawn, a URL is fetched."""
    return not isinstance(image, str | Path | bytes | Image.Image | ImageBytes | TarMember)


def image_digest(image: Any, content: bytes | Image.Image | None = None) -> str:
    """Digest of what an item's image holds; of its name, and the size and time of its file, where that `is_dear`.

    Args:
        content: what `read_image` gave, where that is at hand.
    Raises: ImageError for a file that cannot be read, or an image that cannot be shown.
    """
    if is_dear(image):
        return _digest(f"{type(image).__name__} {image}".encode("utf-8", "surrogateescape"), *_file_facts(image))
    content = read_image(image) if content is None else content
    if isinstance(content, bytes):
        return _digest(content)
    shown = open_image(content)  # palette, transparency and orientation lie beside an image's own pixels
    return _digest(repr((shown.mode, shown.size)).encode(), shown.tobytes())


def _file_facts(source: Any) -> list[bytes]:
    """Size and time of the file that a source is part of, if any."""
    path = getattr(source, "path", None)
    if path is None:
        return []
    try:
        status = Path(path).stat()
    except OSError:
        return []
    return [repr((status.st_size, status.st_mtime_ns)).encode()]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
