"""What searching and the app need of any place where vectors lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from fanoise.errors import InputError
from index.hits import Hit
from index.manifest import CatalogRef, EmbedderRef
from index.store import truncated


class Backend(Protocol):
    """An index of unit vectors with items. Threads may search one at once."""

    @property
    def embedder(self) -> EmbedderRef: ...

    @property
    def group_by(self) -> str | None: ...

    @property
    def catalog(self) -> CatalogRef: ...

    @property
    def folder(self) -> Path:
        """The index folder: its `thumbnails` are shown, and the embedder's path starts there. It need not be there."""
        ...

    @property
    def field_names(self) -> list[str]: ...

    @property
    def live_ids(self) -> list[str]: ...

    @property
    def device(self) -> str:
        """What searches, for people: "CPU", GPUs, or a server."""
        ...

    @property
    def most_hits(self) -> int:
        """The largest `k` that makes a difference, or that is taken."""
        ...

    def __len__(self) -> int: ...

    def __str__(self) -> str:
        """Where it lies, for messages."""
        ...

    def find(
        self,
        vectors: np.ndarray,
        k: int,
        where: Mapping[str, Any] | None = None,
        *,
        group_by: str | None = None,
        min_score: float | None = None,
    ) -> list[list[Hit]]:
        """The hits of each query, best first.

        Args:
            vectors: float [Q, D], unit rows, of the index's dimension or the embedder's.
            where: see `index.where`.
            group_by: at most one hit, the best, for each value of this field; items without a value stand alone. None
                is the index's own `group_by`, "" is no grouping.
            min_score: only hits with at least this cosine similarity.
        """
        ...

    def values(self, name: str) -> pa.Array:
        """A field of the items that a search can return, parallel to `live_ids`. Raises InputError if unknown."""
        ...

    def notes(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """What a user should know of this thread's search with this filter, which was its last one.

        Values that no item has, and fall-backs taken.
        """
        ...


def checked_queries(
    vectors: np.ndarray, k: int = 1, min_score: float | None = None, *, dim: int, embedder_dim: int
) -> np.ndarray:
    """float32 [Q, dim] of query vectors of either dimension.

    Raises: InputError for bad ones, k < 1, or a `min_score` that is no cosine similarity.
    """
    queries = np.ascontiguousarray(vectors, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] not in (dim, embedder_dim):
        shape = f"[Q, {dim}]" if dim == embedder_dim else f"[Q, {dim}] or [Q, {embedder_dim}]"
        raise InputError(f"query vectors must have shape {shape}, got {list(queries.shape)}")
    check_k(k)
    if min_score is not None and not -1 <= min_score <= 1:
        raise InputError(f"min_score must be a cosine similarity from -1 to 1, got {min_score}")
    if not np.isfinite(queries).all():
        raise InputError("query vectors must be finite, got NaN or infinity")
    return np.ascontiguousarray(np.nan_to_num(truncated(queries, dim)))


def check_k(k: int) -> None:
    """Raise InputError for a number of hits below 1."""
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
