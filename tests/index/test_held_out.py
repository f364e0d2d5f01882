import numpy as np
import pytest

import index.parquet
from fanoise.errors import InputError
from index.factory import train_index
from index.held_out import HeldOut, measure_overlap, read_queries, text_queries
from index.items import ItemWriter
from index.store import VectorStore


def unit_rows(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


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


@pytest.mark.parametrize("factory", ["IVF4,Flat", "SQ8", "PCA8,Flat"])
def test_recall_of_queries_agrees_with_brute_force(factory):
    vectors, queries = unit_rows(300), unit_rows(40, seed=1)
    index = train_index(factory, VectorStore(vectors))
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = index.search(queries, 10)[1]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
    assert HeldOut.of_vectors(VectorStore(vectors), queries, "q").recall(index) == pytest.approx(expected, abs=1e-9)
    assert expected < 1


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


def test_queries_are_those_of_the_file_else_texts_of_the_catalogue(built, embedder, tmp_path):
    generation = built / "generation-000001"
    file = tmp_path / "q.txt"
    file.write_text("\ufeffred mug\n\n  blue cup \nred mug\n", encoding="utf-8")
    vectors, source = text_queries(embedder, file, generation)
    assert source == "queries of q.txt"
    assert np.allclose(vectors, embedder.encode([_Text("red mug"), _Text("blue cup")]))
    vectors, source = text_queries(embedder, None, generation, most=7)
    assert (vectors.shape, source) == ((7, 16), "texts of the catalogue")
    assert text_queries(None, None, generation) is None


class _Text:
    def __init__(self, text):
        self.text, self.image = text, None


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "has no query"), (b"\xff\xfe\xff", "not UTF-8")])
def test_a_bad_query_file_is_one_clear_line(tmp_path, content, message):
    (tmp_path / "q.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_queries(tmp_path / "q.txt")
    with pytest.raises(InputError, match="no such file"):
        read_queries(tmp_path / "none.txt")


def test_texts_of_the_catalogue_are_distinct_drawn_over_all_and_the_same_again(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(index.parquet, "GROUP_ROWS", 7)
    drawn = []
    monkeypatch.setattr(embedder, "encode", lambda items, role: drawn.append([item.text for item in items]) or items)
    items = ItemWriter()
    for row in range(400):
        text = None if row % 5 == 0 else " " if row % 5 == 1 else f"text {row // 2}"
        items.append(id=str(row), text=text, image=None, thumbnail_sha256=None, fields={})
    items.write(tmp_path / "items.parquet")
    for seed, most in ((0, 30), (0, 30), (1, 30), (0, 999)):
        text_queries(embedder, None, tmp_path, seed=seed, most=most)
    first, again, other, everything = drawn
    assert first == again and set(first) != set(other)
    assert len(set(first)) == len(first) == 30
    numbers = [int(text.split()[1]) for text in first]
    assert min(numbers) < 50 and max(numbers) > 150, "not only of the first rows"
    assert set(everything) == {f"text {row // 2}" for row in range(400) if row % 5 > 1}
    assert len(everything) == len(set(everything))
