"""What is worth knowing about a row before it is encoded: how long it is, and whether its vector is known already."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fanoise.catalog import Item
from fanoise.errors import ImageError
from fanoise.images import FORMATS, open_regular
from index.encoding.content import ContentKeys, image_digest, is_dear, read_image
from index.encoding.known import KnownRow, KnownRows

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

_DEAR_PIXELS = 1 << 20
"""Of an image that is dear to look at: a large one."""
_MOST_PIXELS_OPEN = 1 << 29
"""All images of a batch are in memory at once, at three bytes a pixel and some more while one is decoded."""


@dataclass(frozen=True)
class Looked:
    length: float
    known: KnownRow | None
    pixels: int = 0


class Lookup:
    """Runs in threads of this process: it reads little, or hashes, and neither holds the interpreter for long."""

    def __init__(self, embedder: "Embedder", keys: ContentKeys, known: KnownRows | None) -> None:
        self._embedder, self._keys = embedder, keys
        self._known = known if known else None

    def __call__(self, item: Item) -> Looked:
        if self._known is not None:
            try:
                digest = None if item.image is None else image_digest(item.image)
            except ImageError:
                return Looked(0, None)  # preparing the row says the same
            known = self._known.find(self._keys.key(item.text, digest))
            if known is not None:
                return Looked(0, known)
        pixels = 0 if item.image is None else _pixels(item.image)
        return Looked(self._embedder.length(item.text, pixels), None, pixels)


def batches(lengths: Mapping[int, float], size: int, pixels: Mapping[int, int] | None = None) -> list[list[int]]:
    """Positions in batches of at most `size`, the longest first: what does not fit into memory shows at once.

    Args:
        pixels: of each position; a batch has no more than _MOST_PIXELS_OPEN, unless a single row has.
    """
    found: list[list[int]] = []
    open_pixels = 0
    for position in sorted(lengths, key=lambda position: (-lengths[position], position)):
        own = pixels[position] if pixels else 0
        if not found or len(found[-1]) == size or open_pixels + own > _MOST_PIXELS_OPEN:
            found.append([])
            open_pixels = 0
        found[-1].append(position)
        open_pixels += own
    return found


def _pixels(image: Any) -> int:
    try:
        width, height = _size(image)
    except Exception:  # Pillow raises about anything; preparing the row says what is wrong
        return 0
    return width * height


def _size(image: Any) -> tuple[int, int]:
    """Width and height, from the file's header alone; a dear image is not read, and taken for a large one."""
    if is_dear(image):
        return _DEAR_PIXELS, 1
    content = open_regular(image) if isinstance(image, str | Path) else read_image(image)
    if isinstance(content, Image.Image):
        return content.size
    with io.BytesIO(content) if isinstance(content, bytes) else content as file:
        return Image.open(file, formats=FORMATS).size
