"""Rows of an index, and of a build that was broken off, whose vectors can be copied."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fanoise.errors import ArtifactError
from index.manifest import ITEMS, VECTORS
from index.parquet import UNREADABLE
from index.store import Precision, VectorStore, VectorWriter, truncated
from index.thumbnails import is_whole


@dataclass(frozen=True)
class KnownRow:
    content_sha256: str
    thumbnail_sha256: str | None
    store: VectorStore
    row: int


class KnownRows:
    """Where the vector of a content key is, in any of `folders`: vectors.npy beside items.parquet.

    Folders that cannot be read, or whose vectors are too short or too coarse, are left out. 84 bytes a row.
    Args:
        index: the index folder, with the thumbnails; a row whose own is gone, or damaged, is not known: a build makes
            both again.
    """

    def __init__(self, folders: Iterable[Path], *, index: Path, dim: int, precision: Precision) -> None:
        self._index = index
        self._stores: list[VectorStore] = []
        keys, thumbnails = [np.empty((0, 32), np.uint8)], [np.empty((0, 32), np.uint8)]
        stores, rows = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        for folder in folders:
            try:
                store = VectorStore.open(folder / VECTORS)
                if not _serves(store, dim, precision):
                    continue
                row, key, thumbnail = _read_digests(folder / ITEMS, len(store))
            except (ArtifactError, *UNREADABLE):
                continue
            keys.append(key)
            thumbnails.append(thumbnail)
            stores.append(np.full(len(row), len(self._stores), np.int32))
            rows.append(row)
            self._stores.append(store)
        self._keys, self._thumbnails = np.concatenate(keys), np.concatenate(thumbnails)
        self._store, self._row = np.concatenate(stores), np.concatenate(rows)
        order = np.argsort(_prefixes(self._keys), kind="stable")  # of equal keys the first folder's comes first
        self._keys, self._thumbnails = self._keys[order], self._thumbnails[order]
        self._store, self._row = self._store[order], self._row[order]
        self._prefixes = _prefixes(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, content_sha256: str) -> KnownRow | None:
        key = np.frombuffer(bytes.fromhex(content_sha256), np.uint8)
        prefix = _prefixes(key[None])[0]
        start = int(np.searchsorted(self._prefixes, prefix))
        for at in range(start, len(self)):
            if self._prefixes[at] != prefix:
                break
            if np.array_equal(self._keys[at], key):
                thumbnail = self._thumbnails[at].tobytes().hex() if self._thumbnails[at].any() else None
                if thumbnail is None or is_whole(self._index, thumbnail):
                    return KnownRow(content_sha256, thumbnail, self._stores[self._store[at]], int(self._row[at]))
        return None


def copy_rows(store: VectorStore, rows: list[int], target: VectorWriter, *, dim: int, precision: Precision) -> None:
    """Append vectors that a KnownRow named."""
    if (store.dim, store.precision) == (dim, precision):
        target.copy(store, np.array(rows))  # as stored: rounding again would move the last digits with every build
    else:
        target.append(truncated(store.rows(np.array(rows)), dim))


def _serves(store: VectorStore, dim: int, precision: Precision) -> bool:
    return (store.dim, store.precision) == (dim, precision) or (store.precision == "fp32" and store.dim >= dim)


def _read_digests(items: Path, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with a content key, the keys, and the thumbnails' digests. Raises ValueError unless `count` rows."""
    keys, thumbnails, valid = [np.empty((0, 32), np.uint8)], [np.empty((0, 32), np.uint8)], [np.empty(0, bool)]
    with pq.ParquetFile(items) as file:
        for batch in file.iter_batches(columns=["content_sha256", "thumbnail_sha256"]):
            known = batch["content_sha256"].is_valid()
            valid.append(known.to_numpy(zero_copy_only=False))
            keys.append(_raw_digests(batch["content_sha256"].filter(known)))
            thumbnails.append(_raw_digests(batch["thumbnail_sha256"].filter(known)))
    rows = np.concatenate(valid)
    if len(rows) != count:
        raise ValueError(f"{len(rows)} items and {count} vectors")
    return np.flatnonzero(rows), np.concatenate(keys), np.concatenate(thumbnails)


def _raw_digests(column: pa.Array) -> np.ndarray:
    """uint8 [N, 32] of hex digests; zeros for none."""
    raw = b"".join(bytes(32) if value is None else bytes.fromhex(value) for value in column.to_pylist())
    return np.frombuffer(raw, np.uint8).reshape(-1, 32)


def _prefixes(keys: np.ndarray) -> np.ndarray:
    """uint64 [N], by which keys are sorted."""
    return np.ascontiguousarray(keys[:, :8]).view(np.uint64)[:, 0]
