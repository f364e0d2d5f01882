"""Pairs on disk: read once, kept outside the memory, found by row number."""

import copy
import mmap
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa

from fanoise.catalog import Item
from fanoise.errors import CatalogError

Content = tuple[str | None, str | None]
"""A text, and an image's path as the file has it; what is missing is None, never ''."""
_SCHEMA = pa.schema(
    [(f"{side}_{kind}", pa.string()) for side in ("query", "positive") for kind in ("text", "image")]
    + [(f"negative_{kind}", pa.list_(pa.string())) for kind in ("text", "image")]
    + [("group", pa.string())]
)
_BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A query with its positive and any mined negatives."""

    query: Item
    positive: Item
    negatives: tuple[Item, ...] = ()
    group: str = ""
    """Pairs of one non-empty group answer each other's queries."""


class PairRow(NamedTuple):
    """A checked row of a pair file."""

    query: Content
    positive: Content
    negatives: Sequence[Content] = ()
    group: str = ""


class PairTable(Sequence[Pair]):
    """The pairs of one file; `table[row]` builds a `Pair`, of which nothing stays in memory but 28 bytes.

    The rows lie in an Arrow file without a name: it is gone with the last process that has it open, however that ends.
    Forked data workers share it; every training process of a machine writes its own, into TMPDIR.
    """

    name: str
    """The file's folder and name."""
    keys: np.ndarray
    """[N, 3] int64 of query, positive and group: equal where the content is, in any file; 0 is no group."""
    names_images: bool
    """Whether any row has an image."""
    equal_negatives: int
    """Mined negatives that were left out because they are their own pair's positive."""
    _images: Path
    _batches: list[pa.RecordBatch]
    _rows: np.ndarray

    @classmethod
    def store(cls, rows: Iterable[PairRow], *, path: Path, images: Path) -> "PairTable":
        """Write the checked rows of the file `path`, whose image paths start in `images`.

        Raises: CatalogError for a file without rows, and where there is no room for them.
        """
        table, keys = cls(), array("q")
        table.name = "/".join(path.parts[-2:])  # the files of a benchmark's sets share one name; folders differ
        table.names_images, table.equal_negatives, table._images = False, 0, images
        root = os.path.abspath(images)  # noqa: PTH100  # resolve() asks the disk
        try:
            with tempfile.TemporaryFile() as file:
                with pa.ipc.new_file(file, _SCHEMA) as writer:
                    for part in _parts(iter(rows)):
                        for row in part:
                            keys.extend(_row_keys(row, root))
                            table.equal_negatives += row.negatives.count(row.positive)
                            table.names_images = table.names_images or _names_image(row)
                        writer.write_batch(_record_batch(part))
                if not keys:
                    raise CatalogError(f"{path}: no pairs in this file; it needs at least one row")
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CatalogError(
                f"{path}: its pairs cannot be written to {tempfile.gettempdir()} ({error.strerror or error}); "
                "make room there, or set TMPDIR to another folder"
            ) from None
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        table._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        table.keys = np.array(keys).reshape(-1, 3)
        table._rows = np.arange(len(table.keys), dtype=np.int32)
        return table

    def sample(self, count: int | None, *, seed: int) -> "PairTable":
        """At most `count` pairs drawn by the seed, in the file's order; a smaller sample is part of a larger one."""
        if count is None or count >= len(self):
            return self
        drawn = np.sort(np.random.default_rng([seed, 3]).permutation(len(self))[:count])
        table = copy.copy(self)
        table.keys, table._rows = self.keys[drawn], self._rows[drawn]
        return table

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...

    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        row = int(self._rows[index])
        batch, place = divmod(row, _BATCH_ROWS)
        query_text, query_image, positive_text, positive_image, texts, images, group = (
            column[place].as_py() for column in self._batches[batch].columns
        )
        name = f"{self.name}:{row + 1}"
        return Pair(
            query=self._item(name, query_text, query_image),
            positive=self._item(name, positive_text, positive_image),
            negatives=tuple(self._item(name, text, image) for text, image in zip(texts, images, strict=True)),
            group=group,
        )

    def _item(self, name: str, text: str | None, image: str | None) -> Item:
        return Item(id=name, text=text, image=None if image is None else self._images / image)


def pair_keys(pair: Pair) -> tuple[int, int, int]:
    """The row of `PairTable.keys` that belongs to this pair, whose images are paths."""
    query, positive = (
        _content_key(item.text, None if item.image is None else os.path.abspath(str(item.image)))  # noqa: PTH100
        for item in (pair.query, pair.positive)
    )
    return query, positive, _group_key(pair.group)


def _row_keys(row: PairRow, root: str) -> tuple[int, int, int]:
    return _stored_key(row.query, root), _stored_key(row.positive, root), _group_key(row.group)


def _stored_key(content: Content, root: str) -> int:
    text, image = content
    # what os.path.abspath would make of it, without asking for the working directory every time
    return _content_key(text, None if image is None else os.path.normpath(os.path.join(root, image)))  # noqa: PTH118


def _content_key(text: str | None, image: str | None) -> int:
    return _hash(f"{len(text or '')} {text or ''}{image or ''}")


def _group_key(group: str) -> int:
    return _hash(group) if group else 0


def _hash(value: str) -> int:
    """64 bits, the same in every process; two of a million values are equal by chance in 1 of 37 million files."""
    return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little", signed=True)


def _names_image(row: PairRow) -> bool:
    return any(image is not None for _, image in (row.query, row.positive, *row.negatives))


def _parts(rows: Iterator[PairRow]) -> Iterator[list[PairRow]]:
    while part := list(islice(rows, _BATCH_ROWS)):
        yield part


def _record_batch(rows: Sequence[PairRow]) -> pa.RecordBatch:
    negatives = [[content for content in row.negatives if content != row.positive] for row in rows]
    columns = [
        [row.query[0] for row in rows],
        [row.query[1] for row in rows],
        [row.positive[0] for row in rows],
        [row.positive[1] for row in rows],
        [[text for text, _ in contents] for contents in negatives],
        [[image for _, image in contents] for contents in negatives],
        [row.group for row in rows],
    ]
    return pa.record_batch([pa.array(cells, each.type) for cells, each in zip(columns, _SCHEMA, strict=True)], _SCHEMA)
