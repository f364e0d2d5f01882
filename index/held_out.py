"""Queries that an index is tuned and measured with, and the answers that exact search gives them.

A text query is no draw from the stored vectors: texts and images lie in different parts of the space, and an index
that has learnt where its rows are finds the neighbours of a row more easily than those of a text. So queries that
people type are best, the catalogue's own texts encoded as queries come next, and sampled rows, which flatter the
index, are last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import faiss
import numpy as np
import pyarrow as pa

from fanoise.catalog import Item
from fanoise.errors import InputError
from fanoise.values import printable_text
from index.exact import search_exact
from index.manifest import ITEMS
from index.parquet import read_pieces
from index.store import VectorStore, truncated

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

K = 10
"""Recall is that of the ten nearest."""
QUERIES = 256
"""As many measure a recall; to tune, as many choose and as many measure."""
OVERLAP_SEED = 1
"""Of the rows that `ann_overlap` is measured with."""
_LEAST_HALF = 64
SAMPLED_ROWS = "sampled rows"
_TIE = 1e-6


@dataclass(frozen=True)
class HeldOut:
    """Queries and how near their `K` best rows are."""

    store: VectorStore
    vectors: np.ndarray
    """float32 [Q, D]"""
    own: np.ndarray
    """int64 [Q]: the row that the query is itself, and that does not count; -1 for none."""
    least: np.ndarray
    """float32 [Q]: similarity of the last of the `k` best rows."""
    k: int
    source: str
    """Where the queries are from, for people."""

    @classmethod
    def of_rows(cls, store: VectorStore, *, seed: int = 0, most: int = QUERIES) -> Self:
        """Sampled rows, each looking for its nearest others."""
        rows = np.random.default_rng(seed).choice(len(store), size=min(most, len(store)), replace=False)
        rows.sort()
        return cls._answered(store, np.ascontiguousarray(store.rows(rows)), rows, SAMPLED_ROWS)

    @classmethod
    def of_vectors(cls, store: VectorStore, vectors: np.ndarray, source: str) -> Self:
        """Unit query vectors [Q, D or more]."""
        queries = np.ascontiguousarray(truncated(vectors, store.dim))
        return cls._answered(store, queries, np.full(len(queries), -1, np.int64), source)

    @classmethod
    def _answered(cls, store: VectorStore, vectors: np.ndarray, own: np.ndarray, source: str) -> Self:
        others = int(bool((own >= 0).any()))
        k = min(K, len(store) - others)
        scores, rows = search_exact(store, vectors, k + others)
        least = [line[best != row][:k][-1] if k else np.inf for line, best, row in zip(scores, rows, own, strict=True)]
        return cls(store, vectors, own, np.array(least, np.float32), k, source)

    def __len__(self) -> int:
        return len(self.vectors)

    def halves(self, *, seed: int = 0) -> tuple[Self, Self | None]:
        """These queries at random in two halves; all of them and None where a half would be too few."""
        if len(self) < 2 * _LEAST_HALF:
            return self, None
        order = np.random.default_rng(seed).permutation(len(self))
        first, second = np.sort(order[: len(self) // 2]), np.sort(order[len(self) // 2 :])
        return self._some(first), self._some(second)

    def _some(self, which: np.ndarray) -> Self:
        return replace(self, vectors=self.vectors[which], own=self.own[which], least=self.least[which])

    def recall(self, index: faiss.Index) -> float:
        """Share of the `k` nearest rows that `index` finds; 1.0 where there are none to be found."""
        return float(self.recalls(index).mean()) if len(self) else 1.0

    def recalls(self, index: faiss.Index) -> np.ndarray:
        """As `recall`, of each query: float [Q].

        A found row counts if its true similarity reaches that of the last one, so equal rows cannot lower the figure.
        """
        if self.k == 0 or not len(self):
            return np.ones(len(self))
        found = index.search(self.vectors, self.k + int(bool((self.own >= 0).any())))[1]
        found[found == self.own[:, None]] = -1
        # those that are there first, in their order, and no more than k of them
        found = np.take_along_axis(found, np.argsort(found < 0, axis=1, kind="stable"), axis=1)[:, : self.k]
        good = [
            int((self.store.rows(rows[rows >= 0]) @ query >= least - _TIE).sum())
            for query, rows, least in zip(self.vectors, found, self.least, strict=True)
        ]
        return np.array(good) / self.k


def measure_overlap(index: faiss.Index, store: VectorStore) -> float:
    """Share of the ten nearest other rows that `index` finds, over up to 256 sampled rows as queries."""
    if isinstance(index, faiss.IndexFlat) or len(store) == 1:
        return 1.0
    return HeldOut.of_rows(store, seed=OVERLAP_SEED).recall(index)


def text_queries(
    embedder: "Embedder | None", file: Path | None, items: Path, *, seed: int = 0, most: int = 2 * QUERIES
) -> tuple[np.ndarray, str] | None:
    """Vectors float32 [Q, D] of queries that people type, and where they are from; None if there are none.

    Args:
        embedder: none if it is not at hand.
        file: a query in each line, UTF-8.
        items: folder with the items.parquet whose texts are the queries where there is no file.
    Raises: InputError for a file that cannot be read, has no queries, or no embedder to encode them.
    """
    if file is not None:
        texts, source = read_queries(file), f"queries of {file.name}"
        if embedder is None:
            raise InputError(f"the queries of {file} need the embedder of the index; pass it (--embedder)")
    else:
        texts, source = _catalog_texts(items, seed, most), "texts of the catalogue"
    if embedder is None or not texts:
        return None
    chosen = _sample(texts, seed, most)
    return embedder.encode([Item(text=printable_text(text)) for text in chosen], role="query"), source


def read_queries(file: Path) -> list[str]:
    """The distinct lines of a file that are not blank. Raises InputError if there are none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(f"--tune-queries {file}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"--tune-queries {file}: not UTF-8; save it as UTF-8") from None
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise InputError(f"--tune-queries {file} has no query; put one in each line")
    return texts


def _catalog_texts(folder: Path, seed: int, most: int) -> list[str]:
    """Up to `most` distinct texts that are not blank: each row draws a lot, and the lowest ones win.

    A piece of the texts is in memory at a time, and of that only what may yet win as Python's text.
    """
    rng = np.random.default_rng(seed)
    lots: dict[str, float] = {}
    for piece in read_pieces(folder / ITEMS, columns=["text"]):
        drawn = rng.random(len(piece))
        enough = max(lots.values()) if len(lots) >= most else np.inf
        rows = np.flatnonzero(drawn < enough)
        for text, lot in zip(piece["text"].take(pa.array(rows)).to_pylist(), drawn[rows].tolist(), strict=True):
            if text and text.strip():
                lots[text] = min(lot, lots.get(text, lot))
        lots = dict(sorted(lots.items(), key=itemgetter(1))[:most])
    return list(lots)


def _sample(texts: Sequence[Any], seed: int, most: int) -> list[Any]:
    if len(texts) <= most:
        return list(texts)
    return [texts[i] for i in np.sort(np.random.default_rng(seed).choice(len(texts), size=most, replace=False))]
