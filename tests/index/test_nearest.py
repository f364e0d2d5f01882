import faiss
import numpy as np
import pytest

from index.exact import search_exact
from index.nearest import Nearest, can_filter, keeps_vectors, share_looked_at
from index.selection import Selection
from index.store import VectorStore

CAN = ["Flat", "HNSW16", "HNSW16_SQ8", "IVF8,Flat", "IVF8,SQ8", "IVF8,PQ4x4", "IVF8,PQ4x4fs", "IVF8,RaBitQ", "SQ8"]
CAN += ["RaBitQ", "PCA8,IVF8,Flat", "SQ8,RFlat", "PCA8,IVF8,PQ4x4,RFlat"]
CANNOT = ["PQ4x4", "PQ4x4fs", "PQ4x4fs,RFlat", "RaBitQfs", "PCA8,PQ4x4"]
EXACT = ["Flat", "HNSW16", "IVF8,Flat"]


def clustered(n: int, seed: int, dim: int = 16, clusters: int = 60, spread: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(clusters, dim))
    rows = (centres[rng.integers(0, clusters, n)] + spread * rng.normal(size=(n, dim))).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


ROWS, QUERIES = clustered(3000, 1), clustered(24, 2)


@pytest.fixture(scope="module")
def build():
    built: dict[str, Nearest] = {}

    def make(factory: str) -> Nearest:
        if factory not in built:
            ann = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
            ann.train(ROWS)
            ann.add(ROWS)
            built[factory] = Nearest(faiss.deserialize_index(faiss.serialize_index(ann)), VectorStore(ROWS))
        return built[factory]

    return make


def share(s: float) -> Selection:
    return Selection(np.random.default_rng(9).random(3000) < s)


def overlap(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))


@pytest.mark.parametrize("factory", [*CAN, *CANNOT])
@pytest.mark.parametrize("s", [None, 0.9, 0.3, 0.02])
def test_k_selected_rows_with_their_cosines_best_first(build, factory, s):
    selection = None if s is None else share(s)
    k = 30
    scores, rows = build(factory).search(QUERIES, k, selection)
    assert rows.shape == scores.shape == (24, k) and rows.min() >= 0
    assert all(len(set(line)) == k for line in rows.tolist())
    assert selection is None or selection.mask[rows].all()
    assert np.allclose(scores, np.einsum("qkd,qd->qk", ROWS[rows], QUERIES), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 1e-6).all()


@pytest.mark.parametrize("factory", ["HNSW32", "IVF64,Flat"])
def test_a_filter_costs_no_recall(factory, monkeypatch):
    """Against brute force. If FAISS is asked as without a filter, HNSW32 falls from 0.98 to 0.69 here."""
    monkeypatch.setattr("index.nearest._HNSW_STEP", 1)  # else HNSW is not asked at all with so few rows
    rows, queries = (clustered(n, seed, 32, clusters=300, spread=1.0) for n, seed in ((3000, 1), (48, 2)))
    ann = faiss.index_factory(32, factory, faiss.METRIC_INNER_PRODUCT)
    ann.train(rows)
    ann.add(rows)
    if factory != "HNSW32":
        ann.nprobe = 8
    nearest, store = Nearest(ann, VectorStore(rows)), VectorStore(rows)
    unfiltered = overlap(nearest.search(queries, 10, None)[1], search_exact(store, queries, 10)[1])
    for s in (0.6, 0.3, 0.15, 0.05, 0.01):
        selection = share(s)
        exact = search_exact(store, queries, 10, selection.rows)[1]
        assert overlap(nearest.search(queries, 10, selection)[1], exact) >= unfiltered - 0.05, s


def test_few_rows_are_compared_and_many_left_to_faiss(build):
    flat, ivf, pq = build("Flat"), build("IVF64,Flat"), build("PQ4x4")
    assert flat.compares_all(share(0.9)) and not flat.falls_back(share(0.9))
    assert ivf.compares_all(share(0.1)) and not ivf.compares_all(share(0.2))
    assert pq.compares_all(share(0.2)) and pq.falls_back(share(0.2)) and not pq.compares_all(share(0.9))


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "SQ8"])
@pytest.mark.parametrize("s", [None, 0.9, 0.3])
def test_equal_rows_are_in_their_order_at_any_k(factory, s):
    copies = np.tile(clustered(20, 1, spread=0.0), (50, 1))
    ann = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    ann.train(np.concatenate([copies, ROWS]))
    ann.add(copies)
    nearest = Nearest(faiss.deserialize_index(faiss.serialize_index(ann)), VectorStore(copies))
    selection = None if s is None else Selection(np.random.default_rng(9).random(1000) < s)
    for k in range(1, 13):
        scores, rows = nearest.search(QUERIES[:1], k, selection)
        assert np.ptp(scores) == 0 and (np.diff(rows) > 0).all()


def test_where_only_rejected_rows_are_near_the_query_it_still_finds_k(build):
    near = np.argsort(-(ROWS @ QUERIES[0]))[:2500]
    mask = np.ones(3000, dtype=bool)
    mask[near] = False
    for factory in ("PQ4x4fs", "IVF8,Flat", "HNSW16"):
        rows = build(factory).search(QUERIES[:1], 300, Selection(mask))[1]
        assert rows.min() >= 0 and mask[rows].all()


def test_what_faiss_can_do_with_each_type():
    for factories, expected in ((CAN, True), (CANNOT, False)):
        for factory in factories:
            ann = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
            assert can_filter(faiss.downcast_index(ann)) is expected, factory
    made = {factory: faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT) for factory in CAN}
    assert [factory for factory in EXACT if not keeps_vectors(made[factory])] == []
    assert [f for f in CAN if keeps_vectors(made[f])] == [*EXACT, "SQ8,RFlat", "PCA8,IVF8,PQ4x4,RFlat"]
    assert share_looked_at(made["IVF8,Flat"]) == 1 / 8
    assert share_looked_at(made["IVF8,SQ8"]) == 1 / 8 / 16
    assert share_looked_at(made["Flat"]) == 1
