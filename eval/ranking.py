"""Queries to rankings: encode in batches, search the index, keep the best items with their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from eval.queries import Query
from fanoise.catalog import Item
from fanoise.errors import ArtifactError, ImageError, InputError
from index.where import written_where

if TYPE_CHECKING:
    from fanoise.embedder import Embedder
    from index.search import Index, Searcher


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What the searcher answered."""

    run: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """Query id -> (item id, score), best first; an empty list for a query that could not be encoded."""
    failed: dict[str, str] = field(default_factory=dict)
    """Query id -> why its image could not be read."""


def rank(
    searcher: "Searcher",
    queries: Sequence[Query],
    *,
    k: int,
    where: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Ranking:
    """The `k` best items of the index for every query.

    A query whose image cannot be read is named in `failed` and gets an empty ranking, so it scores 0 and stays in the
    mean. Scores are noise-free: `Embedder.encode` never applies noise.
    Args:
        where: only items that meet these conditions are ranked, see `index.where`.
        progress: show a bar on stderr, if that is a terminal.
    Raises: InputError if no query at all could be encoded; ArtifactError if an embedding is not finite.
    """
    ranking = Ranking()
    with tqdm(total=len(queries), desc="queries", unit="query", disable=None if progress else True) as bar:
        for start in range(0, len(queries), batch_size):
            batch = queries[start : start + batch_size]
            encoded, embeddings_BD = _encode(searcher.embedder, batch, ranking.failed)
            ranking.run.update({query.id: [] for query in batch})
            if encoded:
                _check_finite(encoded, embeddings_BD)
                hits = _search(searcher.index, embeddings_BD, k, where)
                ranking.run.update(zip((query.id for query in encoded), hits, strict=True))
            bar.update(len(batch))
    if len(ranking.failed) == len(queries):
        query_id, reason = next(iter(ranking.failed.items()))
        raise InputError(
            f"none of the {len(queries)} query images can be read, the first is that of query {query_id!r} ({reason}); "
            "check the paths, they are relative to the query file"
        )
    return ranking


def reachable_ids(index: "Index", where: Mapping[str, Any] | None) -> list[str]:
    """Ids of the items that a search with this filter can return: the gallery.

    Raises: InputError if no item passes the filter.
    """
    if not where:
        return list(index.live_ids)
    ids = [index.ids[row] for row in np.flatnonzero(index.matching(where))]
    if not ids:
        shown = ", ".join(written_where(where))
        raise InputError(f"no item of the index has {shown}; see the fields with `python -m index info`")
    return ids


def _encode(embedder: "Embedder", batch: Sequence[Query], failed: dict[str, str]) -> tuple[list[Query], np.ndarray]:
    """Embeddings of the queries that can be encoded; the others are added to `failed`."""
    items = [Item(id=query.id, text=query.text, image=query.image) for query in batch]
    try:
        return list(batch), embedder.encode(items, role="query", batch_size=len(items))
    except ImageError:
        pass  # which one it was is found below, one query at a time
    good: list[Query] = []
    rows: list[np.ndarray] = []
    for query, item in zip(batch, items, strict=True):
        try:
            rows.append(embedder.encode([item], role="query", batch_size=1)[0])
            good.append(query)
        except ImageError as error:
            name = query.image.name if query.image else "image"  # not its folder: a result may be published
            failed[query.id] = f"{name}: {error.reason}"
    return good, np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)


def _check_finite(queries: Sequence[Query], embeddings_BD: np.ndarray) -> None:
    # Faiss answers a NaN query with no items at all, which would pass for an honest score of 0.
    bad = [query.id for query, row in zip(queries, embeddings_BD, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise ArtifactError(
            f"the embedding of query {bad[0]!r} is not finite ({len(bad)} of {len(queries)} in this batch); "
            "the embedder's weights are damaged: train it again or use another run"
        )


def _search(
    index: "Index", embeddings_BD: np.ndarray, k: int, where: Mapping[str, Any] | None
) -> list[list[tuple[str, float]]]:
    # ungrouped, whatever the index does by default: a query names the items it wants, several images of a thing too
    scores_BK, rows_BK = index.search(embeddings_BD, min(k, len(index)), where, group_by="")
    return [
        [(index.ids[row], float(score)) for score, row in zip(scores_K, rows_K, strict=True) if row >= 0]
        for scores_K, rows_K in zip(scores_BK, rows_BK, strict=True)
    ]
