"""Exact search over stored vectors, block by block: what an approximate index is measured against and replaced by."""

import faiss
import numpy as np

from index.store import VectorStore

_ROWS_AT_ONCE = 65536
_ROWS_AT_ONCE_IN_GROUPS = 16384
_FEW_QUERIES = 20
"""Below it FAISS compares vectors one by one, and leaving rows out in place is faster than to gather the others."""


def search_exact(
    store: VectorStore, queries: np.ndarray, k: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The K best rows for each query, best first, equal ones by row; which of equal ones are the last is left to FAISS.

    Args:
        queries: float32 [Q, D].
        rows: int64 [R], look at no others; ascending.
    Returns: scores float32 [Q, K] and rows int64 [Q, K], K the smaller of `k` and the number of rows.
    """
    if rows is not None and 0 < len(queries) < _FEW_QUERIES and store.precision == "fp32" and len(rows):
        return _search_in_place(store, queries, min(k, len(rows)), rows)
    total = len(store) if rows is None else len(rows)
    best = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for start in range(0, total, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, total)
        labels = np.arange(start, stop) if rows is None else rows[start:stop]
        block = store.rows(slice(start, stop) if rows is None else labels)
        scores, places = faiss.knn(queries, block, min(k, stop - start), metric=faiss.METRIC_INNER_PRODUCT)
        best = np.concatenate([best, scores], axis=1)
        found = np.concatenate([found, labels[places]], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, found = np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)
    return by_row(best, found)


def search_exact_groups(
    store: VectorStore, queries: np.ndarray, k: int, groups: np.ndarray, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best row of each of the K best groups, best first, of equal ones the first row.

    Args:
        queries: float32 [Q, D].
        groups: int64 [N], the group of each row.
        rows: int64 [R], look at no others; ascending.
    Returns: scores float32 [Q, K] and rows int64 [Q, K]; -inf and -1 where there are fewer than `k` groups.
    """
    best = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    total = len(store) if rows is None else len(rows)
    for start in range(0, total, _ROWS_AT_ONCE_IN_GROUPS):
        stop = min(start + _ROWS_AT_ONCE_IN_GROUPS, total)
        labels = np.arange(start, stop) if rows is None else rows[start:stop]
        block = store.rows(slice(start, stop) if rows is None else labels)
        for i, query in enumerate(queries):
            old = found[i] >= 0
            candidates = np.concatenate([found[i][old], labels])
            scores = np.concatenate([best[i][old], block @ query])
            order = np.argsort(-scores, kind="stable")
            order = order[first_of_each(groups[candidates[order]])[:k]]
            best[i, : len(order)], found[i, : len(order)] = scores[order], candidates[order]
    return best, found


def by_row(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Results that are best first, in place, with equal ones in the order of rows; only lines with such are touched."""
    tied = np.flatnonzero((scores[:, 1:] == scores[:, :-1]).any(axis=1))
    if len(tied):
        order = np.lexsort((rows[tied], -scores[tied]), axis=1)
        scores[tied] = np.take_along_axis(scores[tied], order, axis=1)
        rows[tied] = np.take_along_axis(rows[tied], order, axis=1)
    return scores, rows


def first_of_each(groups: np.ndarray) -> np.ndarray:
    """Positions, ascending, at which a group occurs for the first time."""
    return np.sort(np.unique(groups, return_index=True)[1])


def _search_in_place(
    store: VectorStore, queries: np.ndarray, k: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    vectors = np.ascontiguousarray(store.rows(slice(None)))  # float32 as it is stored: a view
    queries, rows = np.ascontiguousarray(queries), np.ascontiguousarray(rows)
    best, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    faiss.knn_inner_products_by_idx(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(rows),
        store.dim,
        len(queries),
        len(store),
        len(rows),
        k,
        faiss.swig_ptr(best),
        faiss.swig_ptr(found),
        0,  # the same rows for all queries
    )
    return by_row(best, found)
