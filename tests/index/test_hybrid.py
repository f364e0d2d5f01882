import json
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from fanoise.errors import InputError
from index.__main__ import main
from index.build import build_index
from index.hybrid import documents, fuse, positions, words
from index.search import Index, Searcher
from index.update import delete_items

TITLES = ["red shoe", "blue shoe", "red boot XR-200", "green hat", "shoe shoe shoe red", "Straße HAT", None, "boot"]


@pytest.fixture
def searcher(embedder, tmp_path):
    rows = [
        {"title": title, "text": f"thing {i}", "price": i, "tags": ["sale", "new"][: i % 3], "item": f"i{i // 2}"}
        for i, title in enumerate(TITLES)
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    return Searcher(Index.open(tmp_path / "index"), embedder)


def bm25(query: list[str], texts: list[list[str]]) -> list[float]:
    """Robertson and Zaragoza 2009 with Lucene's inverse document frequency (Kamphuis et al. 2020, eq. 7)."""
    average = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        count, score = Counter(text), 0.0
        for word in query:
            containing = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
            score += idf * count[word] / (count[word] + 1.5 * (1 - 0.75 + 0.75 * len(text) / average))
        scores.append(score)
    return scores


def test_fusing_two_rankings_by_hand():
    fused = fuse([{"a": 1, "b": 2, "c": 3}, {"c": 1, "a": 2, "d": 2}])
    assert fused == pytest.approx({"a": 1 / 61 + 1 / 62, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62}, rel=1e-12)
    assert fuse([]) == fuse([{}, {}]) == {}


def test_equal_scores_share_a_position():
    assert positions(np.array([9.0, 5.0, 5.0, 5.0, 1.0, 1.0, 0.5])).tolist() == [1, 4, 4, 4, 6, 6, 7]
    assert positions(np.array([9.0, 9.0, 9.0, 5.0])).tolist() == [1, 1, 1, 4]
    assert positions(np.empty(0)).tolist() == []


def test_words_are_those_of_any_script_in_small_letters():
    assert words("The XR-200, straße STRASSE ﬁne；赤い 靴") == [
        "the",
        "xr",
        "200",
        "strasse",
        "strasse",
        "fine",
        "赤い",
        "靴",
    ]


def test_a_document_has_text_fields_once_and_no_numbers():
    fields = pa.array(
        [{"title": "red mug", "price": 3, "tags": ["sale", None], "note": None}, {"title": "x", "tags": None}],
        pa.struct(
            [("title", pa.string()), ("price", pa.int64()), ("tags", pa.list_(pa.string())), ("note", pa.null())]
        ),
    )
    table = pa.table({"text": ["red mug. large", None], "fields": fields})
    assert list(documents([table, table.slice(1)])) == ["red mug. large\nsale", "x", "x"]
    assert list(documents([pa.table({"text": ["a", None]})])) == ["a", ""]


def test_bm25_ranks_as_its_formula(searcher):
    pytest.importorskip("bm25s")
    from index.hybrid import words_of

    ranked = words_of(searcher.index)
    texts = [
        words(" ".join([f"thing {i}", title or "", *["sale", "new"][: i % 3], f"i{i // 2}"]))
        for i, title in enumerate(TITLES)
    ]
    for query in ("red shoe", "shoe", "XR 200", "sale new hat", "STRASSE", "thing 3", "red red boot", "nothing"):
        scores = np.array(bm25(words(query), texts))
        expected = [row for row in np.argsort(-scores, kind="stable") if scores[row] > 0]
        rows, relevance = ranked.ranking(query, np.ones(8, dtype=bool))
        assert rows.tolist() == expected and relevance == pytest.approx(scores[expected], rel=1e-5), query
    assert ranked.ranking("shoe", np.arange(8) == 1)[0].tolist() == [1]


def test_hits_are_ordered_by_both_and_keep_their_cosine(searcher):
    pytest.importorskip("bm25s")
    from index.hybrid import words_of

    index, query = searcher.index, "thing shoe"
    plain = searcher.search(text=query, k=8, group_by="").hits
    cosine = {hit.id: hit.score for hit in plain}
    rows, relevance = words_of(index).ranking(query, index.live)
    by_words = dict(zip((index.ids[row] for row in rows), positions(relevance).tolist(), strict=True))
    assert len(set(by_words.values())) < len(by_words)
    fused = fuse([{hit.id: hit.position for hit in plain}, by_words])
    expected = sorted(fused.items(), key=lambda entry: (-entry[1], -cosine[entry[0]]))
    answer = searcher.search(text=query, k=8, hybrid=True, group_by="")
    assert [(hit.id, hit.fused) for hit in answer.hits] == expected
    assert [hit.position for hit in answer.hits] == list(range(1, 9))
    assert all(hit.score == pytest.approx(cosine[hit.id], abs=1e-6) for hit in answer.hits)
    assert [hit["fused"] for hit in answer.to_json()["hits"]] == [score for _, score in expected]


def test_what_only_words_find_is_found_with_its_cosine(searcher, monkeypatch):
    pytest.importorskip("bm25s")
    monkeypatch.setattr("index.hybrid._LEAST_DEPTH", 1)
    monkeypatch.setattr("index.hybrid._DEPTH", 1)
    [cosine] = [hit.score for hit in searcher.search(text="xr-200", k=8).hits if hit.id == "3"]
    hits = searcher.search(text="xr-200", k=2, hybrid=True).hits
    [hit] = [hit for hit in hits if hit.id == "3"]
    assert hit.score == pytest.approx(cosine, abs=1e-6) and hit.fused >= 1 / 61


def test_what_one_item_alone_has_counts_more_than_what_it_has_in_common(embedder, tmp_path, monkeypatch):
    pytest.importorskip("bm25s")
    rows = [{"text": f"ladies dress model XR-{100 + i}"} for i in range(300)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    searcher = Searcher(Index.open(tmp_path / "index"), embedder)
    for i in range(5, 300, 10):
        query = f"model XR-{100 + i}"
        first, second = (hit.id for hit in searcher.search(text=query, k=2, hybrid=True).hits)
        assert str(i + 1) in (first, second), "the first by words is at least second: one may be first by vector"
    rankings = []
    monkeypatch.setattr("index.hybrid.fuse", lambda two: rankings.extend(two) or fuse(two))
    searcher.search(text="model XR-150", k=2, hybrid=True)
    by_vector, by_words = rankings
    assert len(by_vector) == 100 and by_words == {50: 1}, "what 299 others share says nothing"


@pytest.mark.parametrize("group_by", ["", "item"])
def test_of_rows_with_a_word_in_common_no_more_than_the_depth_are_fused(embedder, tmp_path, monkeypatch, group_by):
    """But those that the vector ranking has keep their position by words, wherever they stand among equals."""
    pytest.importorskip("bm25s")
    rows = [{"text": f"same {100 + i}", "item": f"i{i // 2}"} for i in range(400)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    searcher = Searcher(Index.open(tmp_path / "index"), embedder)
    rankings = []
    monkeypatch.setattr("index.hybrid.fuse", lambda two: rankings.extend(two) or fuse(two))
    hits = searcher.search(text="same", k=5, hybrid=True, group_by=group_by).hits
    by_vector, by_words = rankings
    assert len(by_vector) == 100 and set(by_vector) | set(range(100)) == set(by_words)
    assert set(by_words.values()) == {1}
    plain = searcher.search(text="same", k=5, group_by=group_by).hits
    assert [hit.id for hit in hits] == [hit.id for hit in plain]


def test_filters_groups_and_a_least_score_hold_for_both(searcher):
    pytest.importorskip("bm25s")
    for query in ("red shoe", "hat", "zzz"):
        where = {"price": {"min": 1, "max": 6}}
        hits = searcher.search(text=query, k=8, where=where, hybrid=True, group_by="").hits
        assert {hit.fields["price"] for hit in hits} == set(range(1, 7))
        grouped = searcher.search(text=query, k=8, where=where, hybrid=True, group_by="item").hits
        assert [hit.fields["item"] for hit in grouped] == list(dict.fromkeys(hit.fields["item"] for hit in grouped))
        assert {hit.fields["item"] for hit in grouped} == {"i0", "i1", "i2", "i3"}
        plain = {hit.fields["item"]: hit for hit in searcher.search(text=query, k=8, where=where, group_by="item").hits}
        assert all(hit.id == plain[hit.fields["item"]].id for hit in grouped)
        least = sorted(hit.score for hit in hits)[2]
        some = searcher.search(text=query, k=8, where=where, hybrid=True, group_by="", min_score=least - 1e-6).hits
        assert {hit.id for hit in some} == {hit.id for hit in hits if hit.score >= least - 1e-6} and len(some) == 4


def test_a_changed_index_has_its_own_words(searcher):
    pytest.importorskip("bm25s")
    assert "3" in [hit.id for hit in searcher.search(text="xr", hybrid=True).hits]
    delete_items(searcher.index.folder, ids=["3"])
    assert searcher.refresh()
    hits = searcher.search(text="xr", hybrid=True).hits
    assert "3" not in [hit.id for hit in hits] and all(hit.fused <= 1 / 61 for hit in hits)


def test_an_open_index_finds_words_after_commits_that_removed_its_generation(searcher):
    pytest.importorskip("bm25s")
    for id in ("1", "4"):
        delete_items(searcher.index.folder, ids=[id])
    assert not searcher.index.generation_folder.exists()
    assert "3" in [hit.id for hit in searcher.search(text="xr", hybrid=True).hits if hit.fused > 1 / 61]


def test_a_query_needs_words_and_bm25s_its_package(searcher, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="it needs text: got none"):
        searcher.search(image=tmp_path / "a.png", hybrid=True)
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(InputError, match="needs the package bm25s; install it with `pip install bm25s`"):
        searcher.search(text="a", hybrid=True)


def test_the_command_shows_both_orders(searcher, monkeypatch, capsys):
    pytest.importorskip("bm25s")
    monkeypatch.setattr("fanoise.embedder.Embedder.from_pretrained", lambda path, *, device=None: searcher.embedder)
    argv = ["search", "--index", str(searcher.index.folder), "--text", "red shoe", "--hybrid", "--k", "2"]
    assert main(argv) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["#", "fused", "score", "id"]
    assert first.split()[0] == "1" and 1 / 61 < float(first.split()[1]) < 2 / 60
