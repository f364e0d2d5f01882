"""Pairs on disk: read once, kept outside the memory, found by row number."""

import copy
import mmap
import os
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa

from fanoise.catalog import Item
from fanoise.errors import CatalogError
from trainer.pair_columns import (
    SCHEMA,
    ContentDigest,
    PairRow,
    batch_keys,
    content_key,
    group_key,
    names_images,
    without_equal_negatives,
)

BATCH_ROWS = 4096
_BATCH_BYTES = 64 * 2**20
"""Of images: so many are in memory at a time."""
_KEYS = [pa.field(name, pa.int64()) for name in ("query_key", "positive_key", "group_key")]
_STORED = pa.schema([*SCHEMA, *_KEYS])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A query with its positive and any mined negatives."""

    query: Item
    positive: Item
    negatives: tuple[Item, ...] = ()
    group: str = ""
    """Pairs of one non-empty group answer each other's queries."""


@dataclass(frozen=True)
class StoredImage:
    """An image that was in a pair file, and lies in its table's file on disk until it is read."""

    cell: Any
    name: str

    def read(self) -> bytes:
        return bytes(self.cell.as_py())

    def __str__(self) -> str:
        return self.name


class Handle(NamedTuple):
    """By which another process of the machine opens a table; fits into JSON."""

    path: str
    """Of the writer's open file: good for as long as the writer has the table."""
    identity: tuple[int, int, int]
    """Device, inode and size: where processes do not see each other, the path may lead to another file."""
    name: str
    images: str
    names_images: bool
    equal_negatives: int


class PairTable(Sequence[Pair]):
    """The pairs of one file; `table[row]` builds a `Pair`, of which nothing stays in memory but 28 bytes.

    The rows lie in an Arrow file without a name, in TMPDIR: it is gone with the last process that has it open, however
    that ends. Forked data workers share it, and so do processes that open its `handle`.
    """

    name: str
    """The file's folder and name."""
    keys: np.ndarray
    """[N, 3] int64 of query, positive and group: equal where the content is, in any file; 0 is no group."""
    names_images: bool
    """Whether any row names an image by its path."""
    equal_negatives: int
    """Mined negatives that were left out because they are their own pair's positive."""
    handle: Handle
    _images: Path
    _batches: list[pa.RecordBatch]
    _starts: list[int]
    _rows: np.ndarray

    @classmethod
    def write(
        cls,
        batches: Iterable[pa.RecordBatch],
        *,
        path: Path,
        images: Path,
        on_rows: Callable[[int], object] = lambda count: None,
    ) -> "PairTable":
        """Write the checked rows of the file `path`, whose image paths start in `images`.

        Args:
            batches: of `pair_columns.SCHEMA`; negatives may still equal their positive.
            on_rows: called with the number of rows written since the last call.
        Raises: CatalogError for a file without rows, and where there is no room for them.
        """
        root = os.path.abspath(images)  # noqa: PTH100  # resolve() asks the disk
        count, equal, named = 0, 0, False
        try:
            with tempfile.TemporaryFile() as file:
                with pa.ipc.new_file(file, _STORED) as writer:
                    for batch in batches:
                        batch, left_out = without_equal_negatives(batch)
                        keys = batch_keys(batch, root)
                        writer.write_batch(pa.record_batch([*batch.columns, *map(pa.array, keys.T)], _STORED))
                        count, equal, named = count + len(batch), equal + left_out, named or names_images(batch)
                        on_rows(len(batch))
                if not count:
                    raise CatalogError(f"{path}: no pairs in this file; it needs at least one row")
                file.flush()
                # the files of a benchmark's sets share one name; folders differ
                return cls._map(os.dup(file.fileno()), "/".join(path.parts[-2:]), images, named, equal)
        except OSError as error:
            raise CatalogError(
                f"{path}: its pairs cannot be written to {tempfile.gettempdir()} ({error.strerror or error}); "
                "make room there, or set TMPDIR to another folder"
            ) from None

    @classmethod
    def open(cls, handle: Handle) -> "PairTable":
        """The table that another process of this machine has written and still has. Raises: OSError."""
        descriptor = os.open(handle.path, os.O_RDONLY)
        if _identity(descriptor) != tuple(handle.identity):
            os.close(descriptor)
            raise FileNotFoundError(f"{handle.path} is another file")
        return cls._map(descriptor, handle.name, Path(handle.images), handle.names_images, handle.equal_negatives)

    @classmethod
    def _map(cls, descriptor: int, name: str, images: Path, names_images: bool, equal_negatives: int) -> "PairTable":
        """Takes over the descriptor."""
        table = cls()
        table.name, table.names_images, table.equal_negatives = name, names_images, equal_negatives
        table._images = images
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        weakref.finalize(mapped, os.close, descriptor)
        table.handle = Handle(
            f"/proc/{os.getpid()}/fd/{descriptor}",
            _identity(descriptor),
            name,
            str(images),
            names_images,
            equal_negatives,
        )
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        stored = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        table._batches = [batch.select(SCHEMA.names) for batch in stored]
        table._starts = np.cumsum([0, *map(len, stored[:-1])]).tolist()
        table.keys = np.concatenate([np.stack([batch.column(key.name) for key in _KEYS], axis=1) for batch in stored])
        table._rows = np.arange(len(table.keys), dtype=np.int32)
        return table

    def digest(self) -> str:
        """Of all pairs of the file, see `ContentDigest`."""
        found = ContentDigest()
        for batch in self._batches:
            found.update(batch)
        return found.hexdigest()

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
        batch = bisect_right(self._starts, row) - 1
        place = row - self._starts[batch]
        cells = [column[place] for column in self._batches[batch].columns]
        name = f"{self.name}:{row + 1}"
        query, positive = self._item(name, *cells[:3]), self._item(name, *cells[3:6])
        negatives = tuple(self._item(name, *each) for each in zip(*cells[6:9], strict=True))
        return Pair(query=query, positive=positive, negatives=negatives, group=cells[9].as_py())

    def _item(self, name: str, text: Any, path: Any, data: Any) -> Item:
        image: Path | StoredImage | None = None
        if data.is_valid:
            image = StoredImage(data, name)
        elif path.is_valid:
            image = self._images / path.as_py()
        return Item(id=name, text=text.as_py(), image=image)


def pair_keys(pair: Pair) -> tuple[int, int, int]:
    """The row of `PairTable.keys` that belongs to this pair, whose images are paths or stored."""
    return _item_key(pair.query), _item_key(pair.positive), group_key(pair.group)


def parts(rows: Iterable[PairRow]) -> Iterator[list[PairRow]]:
    """A few thousand rows at a time, fewer where they have images of their own."""
    part: list[PairRow] = []
    size_bytes = 0
    for row in rows:
        part.append(row)
        size_bytes += sum(
            len(image) for _, image in (row.query, row.positive, *row.negatives) if isinstance(image, bytes)
        )
        if len(part) == BATCH_ROWS or size_bytes >= _BATCH_BYTES:
            yield part
            part, size_bytes = [], 0
    if part:
        yield part


def _item_key(item: Item) -> int:
    if item.image is None:
        return content_key(item.text, None)
    if isinstance(item.image, StoredImage):
        return content_key(item.text, item.image.read())
    return content_key(item.text, os.path.abspath(str(item.image)))  # noqa: PTH100


def _identity(descriptor: int) -> tuple[int, int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size
