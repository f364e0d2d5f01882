"""Search an index by text and image: what the command line, the evaluation and the app do with `index.opened`."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from PIL import Image

from fanoise.errors import InputError
from index.backends import open_backend
from index.backends.base import Backend
from index.encoding.query import encode_query, load_embedder
from index.hits import Answer, Hit
from index.manifest import check_embedder
from index.opened import Index

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

T = TypeVar("T")

__all__ = ["MOST_HITS", "Answer", "Hit", "Index", "Searcher"]

MOST_HITS = 10_000
"""The most items that are returned because they reach a score."""
_K = 10
_FIRST_K = 64


class Searcher:
    """An index with the embedder that made it: text, an image or both in, hits out."""

    def __init__(self, backend: Backend, embedder: "Embedder") -> None:
        check_embedder(backend.embedder, str(backend), embedder)
        self.backend = backend
        self.embedder = embedder

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        embedder: "Embedder | Path | str | None" = None,
        device: str | None = None,
        verify: bool = True,
    ) -> Self:
        """Open the index and load its embedder: by default the one that the manifest names."""
        backend = open_backend(path, verify=verify)
        if embedder is None:
            embedder = load_embedder(backend.embedder, backend.folder, device=device)
        elif isinstance(embedder, (str, Path)):
            from fanoise.embedder import Embedder

            embedder = Embedder.from_pretrained(embedder, device=device)
        return cls(backend, embedder)

    @property
    def index(self) -> Index:
        """The backend where it is an index folder, which has rows and files. Raises InputError where it is not."""
        if not isinstance(self.backend, Index):
            raise InputError(
                f"{self.backend} is no index folder, and this needs one; use the folder it was filled from"
            )
        return self.backend

    def refresh(self) -> bool:
        """Search the folder's current generation from now on; True if it is another one. Threads may be searching.

        Raises: ArtifactError, and the generation before stays, for one that cannot be read or of another embedder.
        """
        if not isinstance(self.backend, Index):
            return False
        current = self.backend.current()
        if current is self.backend:
            return False
        check_embedder(current.embedder, str(current), self.embedder)
        self.backend = current
        return True

    def search(
        self,
        *,
        text: str | None = None,
        image: Path | str | bytes | Image.Image | None = None,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
        group_by: str | None = None,
        min_score: float | None = None,
        hybrid: bool = False,
    ) -> Answer:
        """The `k` items nearest to the text, the image, or both as one query.

        Args:
            k: default 10; with `min_score` all that reach it, up to MOST_HITS, and a note where there may be more.
            where: only items that meet these conditions, see `index.where`.
            group_by: the best item only for each value of this field. None is the index's own, "" none.
            min_score: only items with at least this cosine similarity. An approximate index may miss some.
            hybrid: order by the vector and by the words of `text` together, see `index.hybrid`.
        Raises: InputError for neither text nor image, an unknown field, a condition that does not suit its field, or
            k < 1; ImageError for a bad image.
        """
        backend = self.backend  # one generation for all of it, should `refresh` be called meanwhile
        if hybrid and not (text and text.strip()):
            raise InputError("a hybrid search compares words, so it needs text: got none")
        start = time.perf_counter()
        vector = encode_query(self.embedder, text, image)
        encoded = time.perf_counter()
        asked = {"where": where, "group_by": group_by, "min_score": min_score}
        find, make_hits = _at_depth(backend, vector, text if hybrid else None, **asked)
        is_whole = k is None and min_score is not None
        most = min(MOST_HITS, backend.most_hits) if is_whole else _K if k is None else k
        hits = make_hits(_find_all(find, most) if is_whole else find(most))
        done = time.perf_counter()
        latency_ms = {"encode": (encoded - start) * 1000, "search": (done - encoded) * 1000}
        notes = backend.notes(where)
        if min_score is not None and not hits:
            best = backend.find(vector, 1, where, group_by="")[0]
            notes += [
                f"nothing found reaches a similarity of {min_score:g}; the best is {hit.score:.6f}" for hit in best
            ]
        if min_score is not None and len(hits) == most < len(backend):
            remedy = "ask for a higher one, or filter" if is_whole else "without a number of hits all are found"
            notes.append(f"more items than these {len(hits):,} may reach a similarity of {min_score:g}; {remedy}")
        if is_whole and isinstance(backend, Index) and not backend.is_exact:
            notes.append(
                f"{backend.manifest.factory} is approximate: more items may reach a similarity of {min_score:g}"
            )
        return Answer(hits, latency_ms, notes)


def _at_depth(
    backend: Backend, vector: np.ndarray, words: str | None, **options: Any
) -> tuple[Callable[[int], Sequence[Any]], Callable[[Sequence[Any]], list[Hit]]]:
    """The search as a function of k, and what makes hits, fields included, of its result; a hybrid one where there are
    words. Raises InputError where that is not there."""
    if not isinstance(backend, Index):
        if words is not None:
            raise InputError(f"{backend} is no index folder, and only such a one has a hybrid search")
        return lambda k: backend.find(vector, k, **options)[0], list
    if words is not None:
        from index.hybrid import rank_hybrid, ranked_hits

        return lambda k: rank_hybrid(backend, vector, words, k, **options), lambda ranked: ranked_hits(backend, ranked)

    def rank(k: int) -> list[tuple[float, int]]:
        [scores], [rows] = backend.search(vector, k, **options)
        return [(score, row) for score, row in zip(scores.tolist(), rows.tolist(), strict=True) if row >= 0]

    return rank, lambda ranked: backend.hits([score for score, _ in ranked], [row for _, row in ranked])


def _find_all(find: Callable[[int], Sequence[T]], most: int) -> Sequence[T]:
    """What a search with a least score finds if it is asked for more and more, until it found less; `most` at most."""
    k = min(_FIRST_K, most)
    while len(found := find(k)) == k < most:
        k = min(4 * k, most)
    return found
