"""One shard from its rows to its files: what is known of each row, and what is found out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fanoise.catalog import Item, image_name
from fanoise.catalog.columns import ITEM
from fanoise.values import printable_text
from index.encoding.cut import Shard
from index.encoding.known import KnownRow, copy_rows
from index.encoding.lookup import Looked, batches
from index.encoding.prepare import Facts, Prepared
from index.encoding.rejects import Reject, write_rejects
from index.items import ItemWriter
from index.manifest import ITEMS, REJECTS, VECTORS
from index.store import Precision, VectorWriter, truncated

_SOON = 3
"""Batches that come before longer ones."""
FILES = "files.json"
"""Of a shard's items whose image is a file by itself: where it is, its size, and its time in ns before it was read."""
_NO_NUMBERS = frozenset({bool, bytes, str, type(None)})
"""That NumPy would make numbers of."""
_NO_FACTS = Facts(None, None, None)


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """What is written of an encoded row."""

    dim: int
    """The first dimensions of each vector that are kept."""
    precision: Precision
    signatures: bool = False
    """Keep what near-duplicates are found by."""
    vectors: str | None = None
    """Take each row's vector from this field of it; there is no model then."""


def is_one_of_several(id: str, item: Any) -> bool:
    """Whether a row of this id, with this in the field `item`, is one of several images of a thing."""
    return isinstance(item, str) and id.rpartition("#")[0] == item


def images_are_as_they_were(shard: Path, root: Path) -> bool:
    """Whether the images that a finished shard was made of have the sizes and times that they had then.

    Args:
        root: folder of the catalogue.
    """
    return all(_state(root / name) == state for name, *state in json.loads((shard / FILES).read_text()))


def _file(image: Any, root: Path) -> list[Any] | None:
    """What `FILES` says of an image: below `root` its path from there, as a catalogue may be moved, else all of it."""
    if not isinstance(image, str | Path):
        return None
    # unlike the name that the item keeps, it leads to the file from any working folder, and if it is not UTF-8, too
    return [image_name(Path(image).absolute(), root.absolute()), *_state(Path(image))]


def _state(file: Path) -> list[int]:
    try:
        status = file.stat()
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


class EncodedShard:
    """A shard's rows with their results; complete when each row is known, encoded or rejected.

    Positions are places in the shard, rejects of the catalogue's reader among them.
    """

    def __init__(self, shard: Shard, options: ShardOptions, *, root: Path, embedder_dim: int) -> None:
        self.number, self.digest = shard.number, shard.digest
        self._options, self._root = options, root
        self._paths: dict[int, str | None] = {}
        self._files: dict[int, list[Any] | None] = {}
        self._items: dict[int, Item] = {}
        self._rejects: dict[int, Reject] = {}
        self._known: dict[int, KnownRow] = {}
        self._facts: dict[int, Facts] = {}
        self._vectors = np.zeros((len(shard.rows), options.dim), np.float32)
        given: dict[int, Any] = {}
        for position, row in enumerate(shard.rows):
            if isinstance(row, Reject):
                self._rejects[position] = row
                continue
            fields = row.fields
            if options.vectors is not None:
                fields = dict(fields)
                given[position] = fields.pop(options.vectors, None)
            self._take(position, row, fields)
        self._take_vectors(given, embedder_dim)

    def __len__(self) -> int:
        """Catalogue rows."""
        return len(self._vectors)

    @property
    def reused(self) -> int:
        return len(self._known)

    @property
    def rejected(self) -> int:
        return len(self._rejects)

    @property
    def encoded(self) -> int:
        return len(self) - self.reused - self.rejected

    @property
    def items(self) -> list[Item]:
        """The rows that are not rejected so far."""
        return list(self._items.values())

    @property
    def is_grouped(self) -> bool:
        """Whether there are items that are one of several images of a thing, which the field `item` names."""
        return any(is_one_of_several(item.id, item.fields.get(ITEM)) for item in self._items.values())

    @property
    def new_thumbnails(self) -> set[str]:
        """Digests of those that need not be on the disk yet: rows that are known have theirs from a finished shard."""
        new = (facts.thumbnail_sha256 for position, facts in self._facts.items() if position not in self._known)
        return {sha256 for sha256 in new if sha256 is not None}

    def contents(self) -> dict[int, Item]:
        """What is to be encoded, or only opened where vectors are given, by position."""
        return {
            position: replace(item, fields={})
            for position, item in self._items.items()
            if item.image is not None or self._options.vectors is None
        }

    def plan(self, looked: Iterable[tuple[int, Looked, Facts | None]], batch_size: int) -> list[list[int]]:
        """Take what is known, with its facts, and put the rest into batches.

        A few of the shortest come first: they are soon prepared, and the longest are while these are in the model.
        """
        lengths, pixels = {}, {}
        for position, look, facts in looked:
            if look.known is None or facts is None:
                lengths[position], pixels[position] = look.length, look.pixels
            else:
                self._known[position], self._facts[position] = look.known, facts
        longest_first = batches(lengths, batch_size, pixels)
        return [*longest_first[-_SOON:], *longest_first[:-_SOON]]

    def add(self, prepared: Prepared, vectors: np.ndarray | None) -> None:
        """Take what came of a batch, with an embedding for each of its positions [n, E]; without, they were given."""
        for position, reason in prepared.rejected.items():
            self._reject(position, reason)
        self._facts.update(zip(prepared.positions, prepared.facts, strict=True))
        if vectors is not None and prepared.positions:
            self._set_vectors(prepared.positions, vectors)

    def write(self, folder: Path) -> None:
        """All files, those of items in catalogue order."""
        positions = [position for position in range(len(self)) if position not in self._rejects]
        items = ItemWriter()
        for position in positions:
            item, facts = self._items[position], self._facts[position]
            items.append(
                id=item.id,
                text=item.text,
                image=self._paths[position],
                thumbnail_sha256=facts.thumbnail_sha256,
                content_sha256=facts.content_sha256,
                signature=facts.signature,
                fields=item.fields,
            )
        items.write(folder / ITEMS)
        with VectorWriter(folder / VECTORS, self._options.dim, self._options.precision) as target:
            for store, together in groupby(positions, key=self._store_of):
                run = list(together)
                if store is None:
                    target.append(self._vectors[run])
                else:
                    rows = [self._known[position].row for position in run]
                    copy_rows(store, rows, target, dim=self._options.dim, precision=self._options.precision)
        files = [self._files[position] for position in positions]
        (folder / FILES).write_text(json.dumps([file for file in files if file is not None]))
        write_rejects(folder / REJECTS, (reject for _, reject in sorted(self._rejects.items())))

    def _take(self, position: int, row: Item, fields: Mapping[str, Any]) -> None:
        text = printable_text(row.text) if row.text else None
        item = Item(id=printable_text(row.id), text=text, image=row.image, fields=fields)
        self._items[position], self._files[position], self._paths[position] = item, None, None
        if row.image is not None:
            self._files[position] = _file(row.image, self._root)
            path = image_name(row.image, self._root)
            self._paths[position] = None if path is None else printable_text(path)
        if row.image is None and not (text and text.strip()):
            self._reject(position, "it has neither text nor image")

    def _take_vectors(self, values: Mapping[int, Any], embedder_dim: int) -> None:
        """
        Args:
            values: what the rows' fields hold, by position.
        """
        positions, rows = list[int](), np.empty((len(values), self._options.dim))
        for position, value in values.items():
            if position in self._rejects:
                continue
            self._facts[position] = _NO_FACTS
            vector = _given_vector(value, embedder_dim)
            if isinstance(vector, str):
                self._reject(position, vector)
            else:
                rows[len(positions)] = vector[: self._options.dim]
                positions.append(position)
        if positions:
            self._set_vectors(positions, _directions(rows[: len(positions)]), "vector")

    def _set_vectors(self, places: Sequence[int], vectors: np.ndarray, what: str = "embedding") -> None:
        positions = np.array(places)
        short = truncated(vectors, self._options.dim)
        finite, zero = np.isfinite(short).all(axis=1), ~short.any(axis=1)
        for position in positions[~finite].tolist():
            self._reject(position, f"its {what} is not finite")
        for position in positions[zero].tolist():
            self._reject(position, f"its {what} is zero, which has no direction")
        sound = finite & ~zero
        self._vectors[positions[sound]] = short[sound]

    def _reject(self, position: int, reason: str) -> None:
        self._rejects[position] = Reject(self._items.pop(position).id, self._paths[position], reason)

    def _store_of(self, position: int) -> Any:
        return self._known[position].store if position in self._known else None


def _given_vector(value: Any, dim: int) -> np.ndarray | str:
    """A row [dim] of numbers that a catalogue's field holds, or why it is none."""
    if value is None:
        return "its vector is missing"
    try:
        if isinstance(value, np.ndarray):
            vector = value
        elif isinstance(value, str) or not _NO_NUMBERS.isdisjoint(map(type, value)):
            return "its vector is not a list of numbers"
        else:
            vector = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # OverflowError: an integer of hundreds of digits
        return "its vector is not a list of numbers"
    if vector.shape != (dim,):
        return f"its vector has shape {list(vector.shape)}, and the embedder's have [{dim}]"
    return vector


def _directions(rows: np.ndarray) -> np.ndarray:
    """Float64 rows [B, D], in place, at length 1; zeros stay zero, and what is not finite is NaN somewhere."""
    with np.errstate(invalid="ignore"):
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # else squares would overflow, or vanish
        rows /= np.where(largest == 0, 1, largest)[:, None]
        lengths = np.linalg.norm(rows, axis=1)
        rows /= np.where(lengths == 0, 1, lengths)[:, None]
    return rows
