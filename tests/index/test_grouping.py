import numpy as np
import pytest

from index.exact import search_exact, search_exact_groups
from index.grouping import search_groups
from index.store import VectorStore


def unit_rows(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("deepest", [0, 30, 4096])
@pytest.mark.parametrize("k", [1, 6, 12])
@pytest.mark.parametrize("sizes", ["even", "one large", "single"])
def test_groups_are_those_of_all_similarities_however_deep_it_may_go(deepest, k, sizes, monkeypatch):
    monkeypatch.setattr("index.grouping._DEEPEST", deepest)
    rng = np.random.default_rng(4)
    rows = unit_rows(300, 1)[rng.integers(0, 150, 300)]  # every row about twice: ties within and between groups
    groups = {
        "even": rng.integers(0, 20, 300),
        "one large": np.where(rng.random(300) < 0.9, 0, rng.integers(0, 20, 300)),
        "single": rng.permutation(300),
    }[sizes]
    queries = unit_rows(7, 2)
    queries[0] = rows[np.flatnonzero(groups == groups[0])[0]]
    store = VectorStore(rows)
    depths: list[int] = []

    def search(queries, depth):
        depths.append(depth)
        return search_exact(store, queries, depth)

    scores, found = search_groups(
        queries,
        k,
        groups,
        rows=300,
        search=search,
        search_all=lambda queries, k: search_exact_groups(store, queries, k, groups),
    )
    similarity = queries @ rows.T
    for line_similarity, line_scores, line in zip(similarity, scores, found, strict=True):
        best = {group: line_similarity[groups == group].max() for group in np.unique(groups)}
        assert np.allclose(line_scores, sorted(best.values(), reverse=True)[:k], atol=1e-6)
        assert len(set(groups[line])) == k
        assert np.allclose(line_similarity[line], [best[group] for group in groups[line]], atol=1e-6)
    assert max(depths, default=0) <= deepest
    assert sizes != "single" or len(depths) == (1 if deepest >= 4 * k else 0)
