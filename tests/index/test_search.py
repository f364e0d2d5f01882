import gc
import json
import math
import shutil
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import fanoise.embedder
import index.search
from fanoise.catalog import Item
from fanoise.errors import ArtifactError, ImageError, InputError
from index.build import build_index
from index.manifest import Manifest
from index.search import Hit, Index, Searcher
from index.update import delete_items

APPROXIMATE = ["IVF4,Flat", "HNSW16", "PCA8,IVF4,Flat", "IVF4,SQ8,RFlat", "PQ4x4", "PQ4x4fs,RFlat"]


def unit_rows(n: int, seed: int = 1) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(index: Index, queries: np.ndarray, k: int, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    similarity = np.where(keep, queries @ index.vectors.rows(slice(None)).T, -np.inf)
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, rows, axis=1), rows


@pytest.mark.parametrize("where", [None, {"colour": "red"}, {"colour": "blue", "price": "3"}])
def test_search_equals_brute_force(built, where):
    index = Index.open(built)
    keep = np.ones(40, dtype=bool)
    for name, value in (where or {}).items():
        keep &= np.array([hit.fields[name] == value for hit in index.hits(np.zeros(40), np.arange(40))])
    queries = unit_rows(7)
    k = min(5, keep.sum())
    expected_scores, expected_rows = brute_force(index, queries, k, keep)
    scores, rows = index.search(queries, 5, where)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    assert (rows[:, k:] == -1).all() and (scores[:, k:] == -np.inf).all() and rows.shape == scores.shape == (7, 5)
    scores, rows = scores[:, :k], rows[:, :k]
    assert np.array_equal(rows, expected_rows)
    assert np.allclose(scores, expected_scores, atol=1e-6)


@pytest.mark.parametrize("factory", ["Flat", *APPROXIMATE])
@pytest.mark.parametrize("where", [None, {"colour": "green"}, {"colour": "green", "price": "2"}])
def test_k_results_when_k_exist_whatever_the_factory(embedder, new_catalog, tmp_path, factory, where):
    build_index(embedder, new_catalog(n=120), tmp_path / "index", factory=factory, progress=False)
    index = Index.open(tmp_path / "index")
    matching = {
        row
        for row, hit in enumerate(index.hits(np.zeros(120), np.arange(120)))
        if all(hit.fields[name] == value for name, value in (where or {}).items())
    }
    scores, rows = index.search(unit_rows(9), 1000, where)
    assert rows.shape == scores.shape == (9, 120)
    assert (rows[:, len(matching) :] == -1).all() and (scores[:, len(matching) :] == -np.inf).all()
    scores, rows = scores[:, : len(matching)], rows[:, : len(matching)]
    assert all(set(line.tolist()) == matching for line in rows)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    few = index.search(unit_rows(9), 3, where)[1]
    assert few.shape == (9, 3)
    assert set(few.ravel().tolist()) <= matching


def test_no_match_gives_no_hits(built, embedder):
    assert Index.open(built).search(unit_rows(2), 4, {"colour": "puce"})[1].tolist() == [[-1] * 4] * 2
    assert Searcher(Index.open(built), embedder).search(text="a", where={"colour": "puce"}).hits == []


def test_an_unknown_field_lists_the_known_ones(built):
    with pytest.raises(InputError, match="'color'; the fields of this index are: text, colour, price"):
        Index.open(built).search(unit_rows(1), 3, {"color": "red"})


def test_filters_compare_the_spelling_of_the_fields_type(embedder, tmp_path):
    rows = [
        {"text": "a", "price": 20, "sale": True, "n": 7},
        {"text": "b", "price": 19.5, "sale": False, "n": 8},
        {"text": "c", "price": None, "sale": None, "n": None},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    index = Index.open(tmp_path / "index")

    def matching(**where):
        return sorted(row for row in index.search(unit_rows(1), 9, where)[1][0].tolist() if row >= 0)

    assert matching(price="20") == matching(price="20.0") == matching(price=20) == [0]
    assert matching(price="19.5") == [1]
    assert matching(sale="true") == matching(sale="True") == matching(sale=True) == [0]
    assert matching(n="8") == matching(n=8) == [1]
    assert matching(price="None") == matching(sale="None") == []


@pytest.mark.parametrize(
    ("vectors", "k", "message"),
    [
        (np.zeros((1, 5)), 1, r"shape \[Q, 16\], got \[1, 5\]"),
        (np.zeros(16), 1, r"got \[16\]"),
        (np.zeros((1, 16)), 0, "k must be at least 1"),
        (np.full((1, 16), np.nan), 1, "finite"),
    ],
)
def test_bad_queries_are_refused(built, vectors, k, message):
    with pytest.raises(InputError, match=message):
        Index.open(built).search(vectors, k)


@pytest.fixture
def grouped(embedder, tmp_path):
    """120 items; `item` groups them by three, every tenth has none; `tags` are lists."""
    rows = [
        {"text": f"thing {i}", "item": None if i % 10 == 0 else f"i{i // 3}", "n": i, "tags": ["a", f"t{i % 4}"]}
        for i in range(120)
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", factory="HNSW16", recall=1.0, progress=False)
    return Index.open(tmp_path / "index")


@pytest.mark.parametrize("where", [None, {"n": {"min": 30, "max": 90}}, {"tags": ["a", "t1"]}, {"n": 5}, {"n": -1}])
@pytest.mark.parametrize("k", [3, 1000])
def test_at_most_one_row_a_group_and_k_groups_when_k_exist(grouped, where, k):
    queries = unit_rows(5)
    scores, rows = grouped.search(queries, k, where, group_by="item")
    assert rows.shape == scores.shape == (5, min(k, 120))
    groups = np.array([f"i{row // 3}" if row % 10 else f"alone {row}" for row in range(120)])
    keep = np.flatnonzero(grouped.matching(where))
    similarity = queries @ grouped.vectors.rows(slice(None)).T
    for line_similarity, line_scores, line in zip(similarity, scores, rows, strict=True):
        best = sorted((max(line_similarity[keep][groups[keep] == g]) for g in set(groups[keep])), reverse=True)[:k]
        found = line[line >= 0]
        assert len(set(groups[found])) == len(found) == len(best) and set(found) <= set(keep)
        assert np.allclose(line_scores[: len(best)], best, atol=1e-6) and (line_scores[len(best) :] == -np.inf).all()
        assert np.allclose(line_similarity[found], best, atol=1e-6)


def test_the_index_groups_by_its_manifest_unless_told_otherwise(grouped, embedder):
    grouped.manifest = replace(grouped.manifest, group_by="item")
    searcher = Searcher(grouped, embedder)
    by_default = searcher.search(text="thing 4", k=60).hits
    assert len(by_default) == 52 and by_default == searcher.search(text="thing 4", k=60, group_by="item").hits
    assert len(searcher.search(text="thing 4", k=60, group_by="").hits) == 60
    with pytest.raises(InputError, match="group_by: unknown field 'no'; the fields of this index are: text, item, n"):
        searcher.search(text="a", group_by="no")
    with pytest.raises(InputError, match="group_by: the field 'tags' holds lists"):
        searcher.search(text="a", group_by="tags")


@pytest.mark.parametrize("group_by", ["", "item"])
def test_a_least_score_leaves_all_hits_above_it_up_to_k(grouped, group_by):
    queries = unit_rows(6)
    for where in (None, {"n": {"max": 60}}):
        all_scores, all_rows = grouped.search(queries, 120, where, group_by=group_by)
        for k, least in ((120, 0.2), (4, 0.2), (120, 1.0), (5, -1.0)):
            scores, rows = grouped.search(queries, k, where, group_by=group_by, min_score=least)
            good = all_scores[:, :k] >= least
            assert np.array_equal(rows, np.where(good, all_rows[:, :k], -1))
            # FAISS takes another path for another k, which on some processors rounds differently
            assert np.allclose(scores, np.where(good, all_scores[:, :k], -np.inf), rtol=0, atol=1e-6)
    for least in (1.1, -2, math.nan):
        with pytest.raises(InputError, match="min_score must be a cosine similarity from -1 to 1"):
            grouped.search(queries, 3, min_score=least)


def test_deleted_rows_are_in_no_filter_group_or_note(built, embedder):
    delete_items(built, ids=["g0", *(f"g{i}" for i in range(40) if i % 4 == 2)])
    index = Index.open(built)
    assert not index.matching({"colour": {"not": "red"}})[[2, 6]].any()
    assert index.search(unit_rows(1), 9, group_by="colour")[1].max() < 40
    assert {hit.fields["colour"] for hit in index.find(unit_rows(1), 9, group_by="colour")[0]} == {
        "red",
        "green",
        "white",
    }
    assert index.notes({"colour": "blue"}) == ["no item has colour 'blue'; there are: 'green', 'red', 'white'"]


def test_an_answer_has_notes_where_a_value_is_unknown_or_faiss_cannot_filter(built, embedder, new_catalog, tmp_path):
    searcher = Searcher(Index.open(built), embedder)
    answer = searcher.search(text="a", where={"colour": {"in": ["red", "gren"]}}, k=3)
    assert len(answer.hits) == 3 and answer.notes == ["no item has colour 'gren'; near: 'green'"]
    assert answer.to_json()["notes"] == answer.notes
    build_index(embedder, new_catalog(n=120, name="more"), tmp_path / "pq", factory="PQ4x4", progress=False)
    [note] = Searcher(Index.open(tmp_path / "pq"), embedder).search(text="a", where={"colour": "red"}).notes
    assert note == "FAISS cannot filter an index of type PQ4x4: all 30 items that match were compared one by one"
    assert searcher.search(text="a").notes == searcher.search(text="a", where={"colour": "red"}).notes == []


def test_a_replaced_index_is_freed_at_once(built, embedder):
    searcher = Searcher(Index.open(built), embedder)
    searcher.search(text="a", where={"colour": "red"}, group_by="price")
    old = weakref.ref(searcher.index)
    delete_items(built, ids=["g0"])
    gc.disable()
    try:
        assert searcher.refresh() and old() is None
    finally:
        gc.enable()


def test_a_searcher_needs_no_more_than_the_backend_protocol(built, embedder):
    index = Index.open(built)

    class Elsewhere:
        embedder, catalog, group_by = index.embedder, index.catalog, index.group_by
        field_names, live_ids = index.field_names, index.live_ids
        find, values, notes, most_hits = index.find, index.values, index.notes, index.most_hits

        def __len__(self):
            return len(index)

        def __str__(self):
            return "milvus://here/things"

    searcher = Searcher(Elsewhere(), embedder)
    asked = {"text": "thing number 4", "k": 3, "where": {"colour": "red"}, "group_by": "price", "min_score": -0.5}
    assert searcher.search(**asked).hits == Searcher(index, embedder).search(**asked).hits
    assert searcher.refresh() is False
    with pytest.raises(InputError, match="milvus://here/things is no index folder, and only such a one has a hybrid"):
        searcher.search(text="a", hybrid=True)
    with pytest.raises(InputError, match="milvus://here/things is no index folder"):
        searcher.index  # noqa: B018
    embedder.fingerprint = embedder.fingerprint | {"weights": "other"}
    with pytest.raises(ArtifactError, match="index milvus://here/things was built with other weights"):
        Searcher(Elsewhere(), embedder)


def test_an_item_finds_itself_with_text_and_image(built, embedder, tmp_path):
    searcher = Searcher.open(built, embedder=embedder)
    answer = searcher.search(text="thing number 4", image=tmp_path / "goods" / "img" / "4.png", k=3)
    best = answer.hits[0]
    assert (best.id, best.position) == ("g4", 1)
    assert best.score == pytest.approx(1.0, abs=1e-6)
    assert best.fields == {"text": "thing number 4", "colour": "red", "price": "4"}
    assert best.image is not None
    with Image.open(best.image) as thumbnail:
        assert max(thumbnail.size) == 320
    assert [hit.position for hit in answer.hits] == [1, 2, 3]
    assert searcher.search(text="thing number 30").hits[0].image is None


@pytest.fixture
def many(embedder, tmp_path):
    """600 items of which some 200 are near to any."""
    rows = [{"id": f"m{i}", "text": f"many {i}", "n": i, "item": f"i{i // 3}"} for i in range(600)]
    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    build_index(embedder, tmp_path / "many.jsonl", tmp_path / "many", progress=False)
    return Searcher(Index.open(tmp_path / "many"), embedder)


@pytest.mark.parametrize("least", [-1, 0.0, 0.1, 0.3, 0.99])
@pytest.mark.parametrize("where", [None, {"n": {"max": 400}}])
def test_a_least_score_without_k_finds_all_that_reach_it(many, embedder, least, where):
    [query] = embedder.encode([Item(text="many 7")], role="query")
    cosine = many.index.vectors.rows(slice(None)) @ query
    good = np.flatnonzero((cosine >= least) & (np.arange(600) <= (400 if where else 600)))
    expected = {f"m{row}" for row in good}
    answer = many.search(text="many 7", min_score=least, where=where)
    assert [hit.id for hit in answer.hits] == [f"m{row}" for row in good[np.argsort(-cosine[good], kind="stable")]]
    assert answer.notes == []
    groups = many.search(text="many 7", min_score=least, where=where, group_by="item").hits
    assert len(groups) == len({hit.fields["item"] for hit in groups}) == len({row // 3 for row in good})
    assert {hit.id for hit in groups} <= expected
    words = many.search(text="many 7", min_score=least, where=where, hybrid=True).hits
    assert {hit.id for hit in words} == expected and len(words) == len(expected)


def test_a_least_score_with_k_says_where_more_may_reach_it(many):
    all_of_them = many.search(text="many 7", min_score=0.1)
    number = len(all_of_them.hits)
    assert 64 < number < 600
    for k in (5, number):
        cut = many.search(text="many 7", min_score=0.1, k=k)
        assert [hit.id for hit in cut.hits] == [hit.id for hit in all_of_them.hits[:k]]
        assert cut.notes == [
            f"more items than these {k} may reach a similarity of 0.1; without a number of hits all are found"
        ]
    assert many.search(text="many 7", min_score=0.1, k=number + 1).notes == []
    assert many.search(text="many 7", min_score=-1, k=600).notes == []
    assert len(many.search(text="many 7").hits) == 10


@pytest.mark.parametrize("options", [{}, {"hybrid": True}, {"group_by": "item"}])
def test_fields_are_read_once_however_often_more_is_asked_for(many, monkeypatch, options):
    depths, made = [], []
    search, hits = Index.search, Index.hits
    monkeypatch.setattr(Index, "search", lambda self, v, k, *a, **o: depths.append(k) or search(self, v, k, *a, **o))
    monkeypatch.setattr(Index, "hits", lambda self, scores, rows: made.append(len(rows)) or hits(self, scores, rows))
    answer = many.search(text="many 7", min_score=-0.5, **options)
    assert len(depths) > 1 and len(answer.hits) > 64
    assert made == [len(answer.hits)]


def test_hits_that_reach_a_score_end_somewhere_and_that_is_said(many, monkeypatch):
    monkeypatch.setattr(index.search, "MOST_HITS", 100)
    for options in ({}, {"hybrid": True}, {"group_by": "item"}):
        answer = many.search(text="many 7", min_score=-0.5, **options)
        assert len(answer.hits) == 100
        assert answer.notes == [
            "more items than these 100 may reach a similarity of -0.5; ask for a higher one, or filter"
        ]


@pytest.mark.parametrize("factory", ["IVF16,Flat", "HNSW16", "IVF16,SQ8", "PQ8"])
def test_an_approximate_index_finds_most_that_reach_a_score_and_says_so(embedder, new_catalog, tmp_path, factory):
    build_index(embedder, new_catalog(n=900, images=0), tmp_path / "i", factory=factory, recall=0.98, progress=False)
    searcher = Searcher(Index.open(tmp_path / "i"), embedder)
    [query] = embedder.encode([Item(text="thing number 7")], role="query")
    cosine = searcher.index.vectors.rows(slice(None)) @ query
    good = {f"g{row}" for row in np.flatnonzero(cosine >= 0.2)}
    answer = searcher.search(text="thing number 7", min_score=0.2)
    assert {hit.id for hit in answer.hits} <= good
    assert len(answer.hits) > 0.8 * len(good) > 90
    assert answer.notes == [f"{factory} is approximate: more items may reach a similarity of 0.2"]


def test_where_nothing_is_near_enough_the_best_score_is_named(built, embedder):
    searcher = Searcher(Index.open(built), embedder)
    asked = {"text": "thing number 4", "where": {"colour": "red"}}
    best = searcher.search(**asked).hits[0].score
    assert searcher.search(**asked, min_score=best - 1e-3).notes == []
    answer = searcher.search(**asked, min_score=(best + 1) / 2)
    assert answer.hits == []
    assert answer.notes == [f"nothing found reaches a similarity of {(best + 1) / 2:g}; the best is {best:.6f}"]
    assert "best" not in "".join(searcher.search(text="a", where={"colour": "none"}, min_score=0.5).notes)


def test_a_search_needs_text_or_image(built, embedder):
    searcher = Searcher(Index.open(built), embedder)
    for text in (None, "", "  "):
        with pytest.raises(InputError, match="text, an image or both"):
            searcher.search(text=text)


def test_a_bad_query_image_is_an_image_error(built, embedder, tmp_path):
    with pytest.raises(ImageError, match="file not found"):
        Searcher(Index.open(built), embedder).search(image=tmp_path / "none.png")


def test_the_answer_has_the_documented_json_shape(built, embedder):
    answer = Searcher(Index.open(built), embedder).search(text="thing number 30", k=2).to_json()
    assert set(answer) == {"hits", "latency_ms"}
    assert set(answer["latency_ms"]) == {"encode", "search"}
    assert all(milliseconds >= 0 for milliseconds in answer["latency_ms"].values())
    assert list(answer["hits"][0]) == ["id", "score", "position", "text", "colour", "price"]
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_json_keeps_a_field_named_like_our_own_key_apart_and_has_no_nan():
    hit = Hit("a", 0.5, 1, {"score": 9, "weight": math.nan, "size": {"w": math.inf}}, None)
    expected = {"id": "a", "score": 0.5, "position": 1, "field.score": 9, "weight": None, "size": {"w": None}}
    assert hit.to_json() == expected


def test_padding_rows_are_no_hits(built):
    hits = Index.open(built).hits([0.9, 0.1, -np.inf], [3, 5, -1])
    assert [(hit.id, hit.position) for hit in hits] == [("g3", 1), ("g5", 2)]


def test_many_threads_get_the_answers_of_one(built, embedder):
    searcher = Searcher(Index.open(built), embedder)
    texts = [f"thing number {i}" for i in range(40)] * 5

    def best(text):
        return searcher.search(text=text, k=4, where={"colour": "red"}).hits

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(best, texts)) == [best(text) for text in texts]


def test_two_searchers_never_use_one_embedder_at_once(built, embedder, monkeypatch):
    encode, inside, most = embedder.encode, [], []

    def slow(items, **options):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return encode(items, **options)

    monkeypatch.setattr(embedder, "encode", slow)
    searchers = [Searcher.open(built, embedder=embedder) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: searchers[i % 2].search(text="a", k=1), range(12)))
    assert max(most) == 1


def test_a_moved_index_with_its_embedder_still_opens(built, embedder, tmp_path, monkeypatch):
    loaded = []

    def load(path, *, device=None):
        loaded.append(path)
        return embedder

    monkeypatch.setattr(fanoise.embedder.Embedder, "from_pretrained", load)
    (tmp_path / "elsewhere").mkdir()
    for name in ("index", "run"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    answer = Searcher.open(tmp_path / "elsewhere" / "index").search(text="thing number 1")
    assert loaded == [tmp_path / "elsewhere" / "run"]
    assert len(answer.hits) == 10


def test_an_embedder_that_is_gone_is_named(built, tmp_path):
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ArtifactError, match=r"names its embedder as \.\./run .*not there.*--embedder"):
        Searcher.open(built)


def test_an_embedder_of_no_place_is_not_looked_for_on_the_hub_by_its_name(built, monkeypatch):
    monkeypatch.setattr(fanoise.embedder.Embedder, "from_pretrained", lambda path, *, device=None: pytest.fail(path))
    manifest = Manifest.read(built)
    replace(manifest, embedder=replace(manifest.embedder, name="any/body", path=None)).write(built)
    with pytest.raises(ArtifactError, match=r"does not say where its embedder 'any/body' is.*--embedder"):
        Searcher.open(built)


def test_another_embedder_is_refused_by_the_part_that_differs(built, new_embedder):
    other = new_embedder("other", weights="ffff0000ffff0000")
    message = r"built with other weights \(ab12cd34ef56….* than embedder 'other' \(ffff0000ffff….*rebuild.*\.\./run"
    with pytest.raises(ArtifactError, match=message):
        Index.open(built, embedder=other)
    with pytest.raises(ArtifactError, match=message):
        Searcher(Index.open(built), other)


@pytest.mark.parametrize("part", ["weights", "processor", "prompts", "pooling", "dim"])
def test_each_part_of_the_fingerprint_counts(built, embedder, part):
    embedder.fingerprint = embedder.fingerprint | {part: "another"}
    with pytest.raises(ArtifactError, match=f"other {part} "):
        Index.open(built, embedder=embedder)


def test_the_embedder_that_made_it_is_accepted(built, embedder):
    assert len(Index.open(built, embedder=embedder)) == 40
