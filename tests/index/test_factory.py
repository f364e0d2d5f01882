import faiss
import numpy as np
import pytest

from fanoise.errors import InputError
from index.build import build_index
from index.factory import choose_factory, measure_overlap, train_index
from index.store import VectorStore


def unit_rows(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_auto_is_exact_and_says_why():
    choice = choose_factory("auto", 16)
    assert choice.factory == "Flat"
    assert "exact" in choice.reason


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW16", "SQ8", "PCA8,IVF4,Flat"])
def test_overlap_agrees_with_brute_force(factory):
    vectors = unit_rows(200)
    index = train_index(factory, VectorStore(vectors))
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    exact = np.argsort(-similarity, axis=1)[:, :10]
    _, found = index.search(vectors, 11)
    shares = [
        len(set(e) & set([f for f in row if f != i][:10])) / 10
        for i, (e, row) in enumerate(zip(exact, found, strict=True))
    ]
    overlap = measure_overlap(index, VectorStore(vectors))
    assert overlap == pytest.approx(np.mean(shares), abs=1e-9)
    assert 0.2 < overlap <= 1.0


def test_probing_one_cell_of_four_overlaps_less_than_probing_all():
    vectors = VectorStore(unit_rows(300))
    index = train_index("IVF4,Flat", vectors)
    one = measure_overlap(index, vectors)
    index.nprobe = 4
    assert one < 0.95
    assert measure_overlap(index, vectors) == 1.0


def test_equal_rows_do_not_lower_the_overlap():
    vectors = VectorStore(np.repeat(unit_rows(4), 30, axis=0))
    index = train_index("HNSW16", vectors)
    assert measure_overlap(index, vectors) > 0.99


@pytest.mark.parametrize("n", [1, 2, 5])
def test_overlap_of_a_handful_of_rows_is_defined(n):
    vectors = VectorStore(unit_rows(n))
    assert measure_overlap(train_index("HNSW16", vectors), vectors) == 1.0


def test_the_measured_overlap_is_in_the_manifest(embedder, new_catalog, tmp_path):
    manifest = build_index(embedder, new_catalog(n=120), tmp_path / "index", factory="IVF4,Flat", progress=False)
    assert manifest.factory == "IVF4,Flat"
    assert 0.2 < manifest.ann_overlap < 1.0
    file = manifest.generation_in(tmp_path / "index") / "index.faiss"
    assert isinstance(faiss.read_index(str(file)), faiss.IndexIVFFlat)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("NSG16", "makes a IndexNSGFlat, which is not supported; use flat"),
        ("HNSW16_PQ8", "without inner products"),
        ("IVF4_NSG8,Flat", "makes a IndexNSGFlat"),
        ("Pad32,Flat", "makes a RemapDimensionsTransform"),
        ("RQ2x4,RFlat", "makes a IndexResidualQuantizer"),
    ],
)
def test_a_factory_whose_index_would_not_be_read_is_refused_at_once(factory, message):
    with pytest.raises(InputError, match=message):
        choose_factory(factory, 16)


def test_an_unknown_factory_is_refused_before_anything_is_encoded(embedder, new_catalog, tmp_path):
    with pytest.raises(InputError, match=r"factory 'Flattish'.*could not parse") as caught:
        build_index(embedder, new_catalog(), tmp_path / "index", factory="Flattish", progress=False)
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)
    assert embedder.batches == []


def test_more_clusters_than_vectors_is_one_clear_line():
    with pytest.raises(InputError, match=r"'IVF64,Flat' does not suit 20 vectors.*training points"):
        train_index("IVF64,Flat", VectorStore(unit_rows(20)))
