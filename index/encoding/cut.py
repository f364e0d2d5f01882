"""The catalogue's stream, cut into shards of consecutive rows."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fanoise.catalog import ImageBytes, Item, catalog_root, read_catalog
from fanoise.errors import CatalogError
from fanoise.values import printable_text
from index.encoding.rejects import Reject
from index.manifest import CatalogRef

SHARD_ROWS = 4096
_SHARD_BYTES = 64 << 20
"""A shard ends before its rows where they hold this much: long texts and fields, images inside the catalogue. Three
shards are in memory at once, and what is written of one as well."""
# of CPython's objects: a number, another one without what is in it, a place in a list, one in a dict with its key
_NUMBER_BYTES, _OBJECT_BYTES, _SLOT_BYTES, _MEMBER_BYTES = 24, 50, 8, 50
_ROW_BYTES = 300
"""Of an item without text, image and fields."""


class NotAllowedError(CatalogError):
    """A catalogue reaches further than the user of this machine has allowed."""


@dataclass(frozen=True)
class Shard:
    number: int
    rows: list[Item | Reject]
    """In catalogue order; a reject is a row that the catalogue's reader could make nothing of."""

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over the ids: which rows these are, whatever became of them."""
        return hashlib.sha256(json.dumps([printable_text(row.id) for row in self.rows]).encode()).hexdigest()


def catalog_rows(catalog: Path, **reading: Any) -> Iterator[Item | Reject]:
    """The items of `read_catalog(catalog, **reading)`, and the rows that it leaves out where they are."""
    rejects: list[Reject] = []

    def reject(id: str, path: str, reason: str) -> None:
        rejects.append(Reject(id, path or None, reason))

    for item in read_catalog(catalog, on_reject=reject, **reading):
        yield from rejects
        rejects.clear()
        yield item
    yield from rejects


def referenced_rows(ref: CatalogRef, index: Path, *, allow_outside: bool, allow_urls: bool) -> Iterator[Item | Reject]:
    """The rows of a catalogue that the manifest of the index in the folder `index` names.

    Args:
        allow_outside, allow_urls: as in `read_catalog`. What the manifest says of them does not count: it may be a
            stranger's. For the same reason a folder of images outside the catalogue's needs `allow_outside`, and
            options that say nothing of where images are, of a later version or made up, are left aside.
    Raises: NotAllowedError for such a folder without it.
    """
    reading: dict[str, Any] = {"allow_outside": allow_outside, "allow_urls": allow_urls}
    if "image" in ref.options:
        reading["image"] = ref.options["image"]
    catalog = index / ref.path
    reading["images"] = referenced_images(ref, index, catalog, allow_outside=allow_outside)
    return catalog_rows(catalog, text=ref.text, **reading)


def referenced_images(
    ref: CatalogRef, index: Path, catalog: Path, *, allow_outside: bool, or_else: str = ""
) -> Path | None:
    """Where image paths start that are read as those of `ref`, if it is not beside the catalogue.

    Args:
        catalog: the one that is read.
        or_else: another remedy, for the message.
    Raises: NotAllowedError, as `referenced_rows`.
    """
    if "images" not in ref.options:
        return None
    images = index / ref.options["images"]
    if not allow_outside and not images.resolve().is_relative_to(catalog_root(catalog).resolve()):
        raise NotAllowedError(
            f"{index}: its manifest reads images in {images.resolve()}, outside the folder of catalogue "
            f"{catalog.name}; if it may, say so with --allow-outside{or_else}"
        )
    return images


def cut(rows: Iterable[Item | Reject], size: int = SHARD_ROWS) -> Iterator[Shard]:
    """Where a shard ends depends on the rows alone, so a second process, or a second try, cuts the same shards."""
    number, shard, size_bytes = 0, list[Item | Reject](), 0
    for row in rows:
        shard.append(row)
        size_bytes += _size_bytes(row)
        if len(shard) == size or size_bytes >= _SHARD_BYTES:
            yield Shard(number, shard)
            number, shard, size_bytes = number + 1, [], 0
    if shard:
        yield Shard(number, shard)


def _size_bytes(row: Item | Reject) -> int:
    """About what a row takes in memory, and alike on all machines."""
    if isinstance(row, Reject):
        return _ROW_BYTES
    image = row.image.data if isinstance(row.image, ImageBytes) else row.image
    size = _ROW_BYTES + _value_bytes(row.text) + (len(image) if isinstance(image, bytes) else 0)
    # the text is most often a field as well, and the same object
    return size + sum(_value_bytes(value) for value in row.fields.values() if value is not row.text)


def _value_bytes(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return _OBJECT_BYTES + len(value) * (1 if value.isascii() else 2)
    if isinstance(value, bytes):
        return _OBJECT_BYTES + len(value)
    if isinstance(value, np.ndarray):
        return 2 * _OBJECT_BYTES + value.nbytes
    if isinstance(value, dict):
        return _OBJECT_BYTES + sum(_MEMBER_BYTES + _value_bytes(member) for member in value.values())
    if isinstance(value, (list, tuple)):
        is_vector = bool(value) and isinstance(value[0], (int, float))  # of hundreds of numbers, not to be looked at
        members = _NUMBER_BYTES * len(value) if is_vector else sum(map(_value_bytes, value))
        return _OBJECT_BYTES + _SLOT_BYTES * len(value) + members
    return _NUMBER_BYTES
