"""Exact search over stored vectors, block by block: what an approximate index is measured against and completed by."""

import faiss
import numpy as np

from index.store import VectorStore

_ROWS_AT_ONCE = 65536


def search_exact(
    store: VectorStore, queries: np.ndarray, k: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The K best rows for each query, best first, of equal ones the first.

    Args:
        queries: float32 [Q, D].
        rows: int64 [R], look at no others; ascending.
    Returns: scores float32 [Q, K] and rows int64 [Q, K], K the smaller of `k` and the number of rows.
    """
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
    return best, found
