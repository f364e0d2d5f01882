"""What a catalogue holds: items, and images that are only named until someone opens them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fanoise.images import ImageSource


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to embed: a text, an image, or both. `fields` are carried along, never embedded."""

    id: str = ""
    text: str | None = None
    image: Path | str | bytes | Image.Image | ImageSource | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageBytes:
    """An image whose file was in a table's cell."""

    data: bytes = field(repr=False)
    name: str
    """Where it was, for messages."""

    def read(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.name


def image_name(image: object, root: str | Path) -> str | None:
    """How ledgers and indices name an item's image: below `root` as a path from there; None if it has no name."""
    if image is None or isinstance(image, bytes | Image.Image):
        return None
    name, start = str(image), f"{str(root).rstrip(os.sep)}{os.sep}"
    return name[len(start) :] if name.startswith(start) and len(name) > len(start) else name
