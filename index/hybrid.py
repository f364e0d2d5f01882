"""Order items by vector and by words together: BM25 over text and text fields, fused by reciprocal rank.

    fused(item) = Σ 1 / (60 + position of the item in a ranking)          over the rankings in which it is

Source: Cormack, Clarke and Büttcher 2009, Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods, SIGIR, with their constant 60. Only positions count, so a cosine and a BM25 score need not be comparable. Items
with the same BM25 share a position: the best of all the first, others the last of theirs. So of a model's name and its
number, the name, which all of a category have, cannot count as much as the number, which one has. What is equal at last
is ordered by cosine. Where hits are grouped, a position is that among groups.

Each ranking goes ten times as deep as there are hits asked for, at least to 100. What so many items share that their
position lies deeper does not count at all. Of more items than that which share the first position by words, those in
the vector's ranking count, and the first by row.

BM25 is that of bm25s (Lucene's form, k1 = 1.5, b = 0.75), an optional dependency; it is built in memory when a hybrid
search first needs it, and never stored. Words are runs of letters and digits, compared in small letters and in
Unicode's compatibility form; nothing is stemmed and no word left out, so that it suits any language that has spaces.
"""

import re
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from fanoise.errors import InputError
from index.backends.base import check_k
from index.exact import first_of_each
from index.hits import Hit
from index.items import field_names
from index.opened import Index
from index.texts import folded

RRF_CONSTANT = 60
_LEAST_DEPTH = 100
_DEPTH = 10
"""Each ranking that is fused has this many times as many items as are asked for, at least _LEAST_DEPTH."""
_WORD = re.compile(r"\w+")

T = TypeVar("T", bound=Hashable)


class Ranked(NamedTuple):
    """A row that a hybrid search found, before it is a hit with fields."""

    row: int
    cosine: float
    fused: float


def rank_hybrid(
    index: Index,
    vector: np.ndarray,
    text: str,
    k: int,
    where: Mapping[str, Any] | None = None,
    *,
    group_by: str | None = None,
    min_score: float | None = None,
) -> list[Ranked]:
    """The `k` best rows by vector and words. Other arguments as in `Index.search`; all have their cosine.

    Args:
        vector: float [1, D].
        text: what the words of items are compared with.
    Raises: InputError, as `Index.search`, and where bm25s is not installed.
    """
    check_k(k)
    depth = max(_LEAST_DEPTH, _DEPTH * k)
    [scores], [rows] = index.search(vector, depth, where, group_by=group_by, min_score=min_score)
    cosine = {int(row): float(score) for row, score in zip(rows, scores, strict=True) if row >= 0}
    worded, relevance = words_of(index).ranking(text, index.matching(where))
    if min_score is not None:
        good = index.similarities(vector, worded)[0] >= min_score
        worded, relevance = worded[good], relevance[good]
    group_by = index.group_by if group_by is None else group_by
    groups = index.groups(group_by) if group_by else np.arange(len(index.live))
    if group_by:
        first = first_of_each(groups[worded])
        worded, relevance = worded[first], relevance[first]
    nearest = rows[rows >= 0]
    position = positions(relevance)
    within = (np.arange(len(worded)) < depth) | np.isin(groups[worded], groups[nearest])  # ties may be a million
    within &= position <= depth
    worded, position = worded[within], position[within]
    unscored = np.setdiff1d(worded, rows)
    cosine |= dict(zip(unscored.tolist(), index.similarities(vector, unscored)[0].tolist(), strict=True))

    keys = {int(row): int(groups[row]) for row in (*worded, *nearest)}
    row_of = {keys[row]: row for row in (*worded.tolist(), *nearest.tolist())}  # of a group's rows the vector's choice
    fused = fuse(
        [
            {keys[row]: number for number, row in enumerate(nearest.tolist(), start=1)},
            {keys[row]: number for row, number in zip(worded.tolist(), position.tolist(), strict=True)},
        ]
    )
    best = sorted(fused, key=lambda key: (-fused[key], -cosine[row_of[key]]))[:k]
    return [Ranked(row_of[key], cosine[row_of[key]], fused[key]) for key in best]


def ranked_hits(index: Index, ranked: Sequence[Ranked]) -> list[Hit]:
    """Hits of what `rank_hybrid` found, with their fields."""
    hits = index.hits([one.cosine for one in ranked], [one.row for one in ranked])
    return [replace(hit, fused=one.fused) for hit, one in zip(hits, ranked, strict=True)]


def fuse(rankings: Iterable[Mapping[T, int]], constant: int = RRF_CONSTANT) -> dict[T, float]:
    """The fused score of all that is ranked anywhere.

    Args:
        rankings: the position, from 1, of each that is ranked; equals may share one.
    """
    fused: dict[T, float] = {}
    for ranking in rankings:
        for ranked, position in ranking.items():
            fused[ranked] = fused.get(ranked, 0.0) + 1 / (constant + position)
    return fused


def positions(scores: np.ndarray) -> np.ndarray:
    """int64 positions from 1 for descending scores; the best share the first, other equals the last of theirs."""
    return np.where(scores == scores[:1], 1, np.searchsorted(-scores, -scores, side="right"))


class Words:
    """BM25 over some rows' texts.

    Args:
        documents: the text of each row, one after the other.
        rows: int64, the numbers of these rows.
    Raises: InputError where bm25s is not installed.
    """

    def __init__(self, documents: Iterable[str], rows: np.ndarray) -> None:
        try:
            import bm25s
        except ImportError:
            raise InputError("a hybrid search needs the package bm25s; install it with `pip install bm25s`") from None
        self._rows = rows
        self._bm25 = bm25s.BM25()
        self._number_of: dict[str, int] = {}
        documents_ = tqdm(
            documents, total=len(rows), desc="Reading texts", unit=" items", disable=None, delay=1, leave=False
        )
        numbers = [
            [self._number_of.setdefault(word, len(self._number_of)) for word in words(text)] for text in documents_
        ]
        if self._number_of:
            self._bm25.index((numbers, self._number_of), show_progress=False, create_empty_token=False)

    def ranking(self, text: str, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All rows in `mask` that share a word with the text, int64 [R], best first; and their BM25, float32 [R].

        Args:
            mask: bool [N].
        """
        known = [self._number_of[word] for word in words(text) if word in self._number_of]
        if not known:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        scores = self._bm25.get_scores(known)
        places = np.flatnonzero((scores > 0) & mask[self._rows])
        order = places[np.argsort(-scores[places], kind="stable")]
        return self._rows[order], scores[order]


def words(text: str) -> list[str]:
    return _WORD.findall(folded(text))


def documents(pieces: Iterable[pa.Table]) -> Iterator[str]:
    """Text and text fields of each line of items.parquet; a field that the text contains is not there twice."""
    for piece in pieces:
        columns = [piece["text"].to_pylist()]
        if "fields" in piece.column_names:
            fields = piece["fields"].combine_chunks()
            names = [name for name in field_names(piece.schema) if _is_text(fields.type, name)]
            columns += [fields.field(name).to_pylist() for name in names]
        yield from (_joined(values) for values in zip(*columns, strict=True))


class _Built:
    """The BM25 of one index, and who may build it: searches of other indices do not wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.words: Words | None = None


_BUILT: "WeakKeyDictionary[Index, _Built]" = WeakKeyDictionary()
_LOOKUP = threading.Lock()


def words_of(index: Index) -> Words:
    """The BM25 of an opened index, built when first asked for."""
    with _LOOKUP:
        built = _BUILT.setdefault(index, _Built())
    with built.lock:
        if built.words is None:
            rows = np.flatnonzero(index.live)
            built.words = Words(documents(index.item_pieces(["text", "fields"])), rows)
        return built.words


def _is_text(fields: pa.StructType, name: str) -> bool:
    kind = fields.field(name).type
    if pa.types.is_list(kind):
        kind = kind.value_type
    return pa.types.is_string(kind)


def _joined(values: Iterable[str | list[str | None] | None]) -> str:
    parts: list[str] = []
    for value in values:
        for part in value if isinstance(value, list) else [value]:
            if part and not any(part in earlier for earlier in parts):
                parts.append(part)
    return "\n".join(parts)
