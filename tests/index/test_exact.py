import numpy as np
import pytest

from index.exact import by_row, first_of_each, search_exact, search_exact_groups
from index.store import VectorStore


def unit_rows(n: int, seed: int, dim: int = 8) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stored(rows: np.ndarray, precision: str) -> VectorStore:
    if precision == "int8":
        return VectorStore(np.rint(127 * rows / np.abs(rows).max(axis=1, keepdims=True)).astype(np.int8))
    return VectorStore(rows.astype({"fp32": np.float32, "fp16": np.float16}[precision]))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("index.exact._ROWS_AT_ONCE", 50)
    monkeypatch.setattr("index.exact._ROWS_AT_ONCE_IN_GROUPS", 40)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("queries", [1, 19, 30])
@pytest.mark.parametrize("share", [None, 0.01, 0.3, 1.0])
def test_it_finds_what_sorting_all_similarities_finds(precision, queries, share):
    rng = np.random.default_rng(5)
    store = stored(unit_rows(160, 1), precision)
    vectors = unit_rows(queries, 2)
    rows = None if share is None else np.flatnonzero(rng.random(160) < share) if share < 1 else np.arange(160)
    chosen = np.arange(160) if rows is None else rows
    for k in (1, 7, 200):
        scores, found = search_exact(store, vectors, k, rows)
        similarity = vectors @ store.rows(chosen).T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        assert found.shape == scores.shape == (queries, min(k, len(chosen))) and found.dtype == np.int64
        assert np.array_equal(found, chosen[order])
        assert np.allclose(scores, np.take_along_axis(similarity, order, axis=1), atol=1e-6)


@pytest.mark.parametrize("queries", [1, 30])
@pytest.mark.parametrize("rows", [None, np.arange(3, 160, 2)])
def test_equal_rows_are_found_once_each(queries, rows):
    store = VectorStore(np.repeat(unit_rows(4, 3), 40, axis=0))
    scores, found = search_exact(store, unit_rows(queries, 4), 12, rows)
    assert all(len(set(line)) == 12 and len({row // 40 for row in line}) == 1 for line in found.tolist())
    assert np.ptp(scores, axis=1).max() < 1e-6


@pytest.mark.parametrize("rows", [None, np.arange(3, 160, 2), np.array([7])])
@pytest.mark.parametrize("sizes", [1, 5, 200])
def test_groups_are_those_of_sorting_all_similarities(rows, sizes):
    rng = np.random.default_rng(sizes)
    copies = unit_rows(160, 1)[rng.integers(0, 60, 160)]  # with ties
    groups = rng.integers(0, 160 // sizes + 1, 160)
    queries = unit_rows(6, 2)
    scores, found = search_exact_groups(VectorStore(copies), queries, 9, groups, rows)
    chosen = np.arange(160) if rows is None else rows
    for query, line_scores, line in zip(queries, scores, found, strict=True):
        best: dict[int, tuple[float, int]] = {}
        for row in chosen:
            score = float(np.float32(copies[row] @ query))
            if groups[row] not in best or score > best[groups[row]][0] + 1e-6:
                best[groups[row]] = (score, int(row))
        expected = sorted(best.values(), key=lambda entry: (-round(entry[0], 5), entry[1]))[:9]
        padding = 9 - len(expected)
        assert line.tolist() == [row for _, row in expected] + [-1] * padding
        assert np.allclose(line_scores, [score for score, _ in expected] + [-np.inf] * padding, atol=1e-6)


def test_equal_scores_are_in_the_order_of_rows():
    rng = np.random.default_rng(6)
    scores = -np.sort(-rng.integers(0, 5, (50, 12)).astype(np.float32), axis=1)
    scores[0] = np.arange(12, 0, -1)
    rows = np.stack([rng.permutation(100)[:12] for _ in range(50)])
    expected = [sorted(zip(-one, line, strict=True)) for one, line in zip(scores, rows, strict=True)]
    found_scores, found = by_row(scores.copy(), rows.copy())
    assert found.tolist() == [[row for _, row in line] for line in expected]
    assert np.array_equal(found_scores, scores)


@pytest.mark.parametrize("queries", [1, 30])
@pytest.mark.parametrize("rows", [None, np.arange(3, 160, 2)])
def test_the_first_of_the_best_that_are_equal_come_first(queries, rows):
    store = VectorStore(np.tile(unit_rows(4, 3), (40, 1)))
    found = search_exact(store, unit_rows(queries, 4), 12, rows)[1]
    chosen = np.arange(160) if rows is None else rows
    assert all(line == [row for row in chosen.tolist() if row % 4 == line[0] % 4][:12] for line in found.tolist())


def test_first_of_each():
    assert first_of_each(np.array([4, 2, 4, 9, 2, 1])).tolist() == [0, 1, 3, 5]
    assert first_of_each(np.array([], np.int64)).tolist() == []
