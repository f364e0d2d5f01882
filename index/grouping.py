"""At most one hit for each value of a field: k groups when k exist."""

from collections.abc import Callable

import numpy as np

from index.exact import first_of_each

_DEEPEST = 4096

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(queries, k) to scores and rows, as `Nearest.search`."""


def search_groups(
    queries: np.ndarray, k: int, groups: np.ndarray, *, rows: int, search: Search, search_all: Search
) -> tuple[np.ndarray, np.ndarray]:
    """The best row of each of the `k` best groups, best first: deeper and deeper, by comparing all rows at last.

    Args:
        k: there are at least as many groups.
        groups: int64 [N], the group of each row.
        rows: how many `search` can find.
        search_all: finds groups by comparing all rows, for what `search` would have to be too deep for.
    Returns: scores float32 [Q, k] and rows int64 [Q, k].
    """
    best = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    pending = np.arange(len(queries))
    depth = 4 * k
    while len(pending) and min(depth, rows) <= _DEEPEST:
        scores_deep, rows_deep = search(queries[pending], min(depth, rows))
        for i, line_scores, line in zip(pending, scores_deep, rows_deep, strict=True):
            first = first_of_each(groups[line])[:k]
            best[i, : len(first)], found[i, : len(first)] = line_scores[first], line[first]
        pending = pending[(found[pending] < 0).any(axis=1)]
        if depth >= rows:
            break
        depth *= 4
    if len(pending):
        best[pending], found[pending] = search_all(queries[pending], k)
    return best, found
