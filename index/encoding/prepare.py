"""Rows made ready for the model: images opened, thumbnails stored, batches collated. Runs in worker processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fanoise.catalog import Item
from fanoise.errors import ImageError
from fanoise.images import open_image
from index.encoding.content import ContentKeys, image_digest, read_image
from index.encoding.known import KnownRow
from index.encoding.near_duplicates import signature
from index.thumbnails import store_thumbnail, thumbnail_path

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Facts:
    """What is stored of a row besides its vector and what the catalogue says."""

    content_sha256: str | None
    thumbnail_sha256: str | None
    signature: bytes | None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A batch for the model, or none, and what became of its rows. Positions are places in the shard."""

    positions: list[int]
    facts: list[Facts]
    """Of each position."""
    batch: Batch | None
    rejected: dict[int, str]
    """Position to reason."""


class Preparer:
    """Does `(position, item)` after `(position, item)`; one that fails does not take the others along.

    Args:
        index: the index folder, which the thumbnails go to directly.
        vectors_given: collate nothing, since no vector has to be made.
    """

    def __init__(
        self, embedder: "Embedder", keys: ContentKeys, index: Path, *, signatures: bool, vectors_given: bool
    ) -> None:
        self._embedder, self._keys, self._index = embedder, keys, index
        self._signatures, self._vectors_given = signatures, vectors_given

    def __call__(self, rows: Sequence[tuple[int, Item]]) -> Prepared:
        opened: list[tuple[int, Item, Facts]] = []
        rejected: dict[int, str] = {}
        for position, item in rows:
            try:
                opened.append((position, *self._open(item)))
            except ImageError as error:
                rejected[position] = error.reason
        batch, refused = self._collate([(position, item) for position, item, _ in opened])
        kept = [(position, facts) for position, _, facts in opened if position not in refused]
        return Prepared(
            positions=[position for position, _ in kept],
            facts=[facts for _, facts in kept],
            batch=batch,
            rejected=rejected | refused,
        )

    def known_facts(self, row: KnownRow | None) -> Facts | None:
        """Of a row whose vector is known, if it is; `__call__` gives the same for it. None for a damaged thumbnail."""
        if row is None:
            return None
        try:
            return Facts(row.content_sha256, row.thumbnail_sha256, self._signature(row.thumbnail_sha256))
        except ImageError:
            return None

    def _open(self, item: Item) -> tuple[Item, Facts]:
        if item.image is None:
            return item, Facts(self._key(item.text, None), None, None)
        content = read_image(item.image)
        digest = image_digest(item.image, content)
        image = open_image(content)
        thumbnail = store_thumbnail(self._index, image)
        facts = Facts(self._key(item.text, digest), thumbnail, self._signature(thumbnail))
        return replace(item, image=image), facts

    def _key(self, text: str | None, image: str | None) -> str | None:
        return None if self._vectors_given else self._keys.key(text, image)

    def _signature(self, thumbnail_sha256: str | None) -> bytes | None:
        if not self._signatures or thumbnail_sha256 is None:
            return None
        return signature(open_image(thumbnail_path(self._index, thumbnail_sha256)))

    def _collate(self, rows: Sequence[tuple[int, Item]]) -> tuple[Batch | None, dict[int, str]]:
        """The model's batch, and the rows that it refuses."""
        if not rows or self._vectors_given:
            return None, {}
        items = [item for _, item in rows]
        try:
            return self._embedder.collate(items, "item"), {}
        except ValueError as error:  # as processors say that they cannot take an image
            if len(rows) == 1:
                return None, {rows[0][0]: reason_of(error)}
        refused: dict[int, str] = {}
        for row in rows:
            refused |= self._collate([row])[1]
        if not refused:  # alone each is taken
            raise ValueError(f"{len(rows)} rows cannot be collated, though each of them can alone")
        return self._collate([row for row in rows if row[0] not in refused])[0], refused


def died(row: tuple[int, Any], how: str) -> Prepared:
    """For a row whose preparation ends the process, or does not end."""
    reason = f"preparing it {how}; the image is damaged, or takes too much memory or time"
    return Prepared(positions=[], facts=[], batch=None, rejected={row[0]: reason})


def reason_of(error: ValueError) -> str:
    if isinstance(error, ImageError):
        return error.reason
    return f"the embedder cannot take it ({' '.join(str(error).split()) or type(error).__name__})"
