"""The collection against the index folder that it was filled from, and against comparing all rows one by one."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

import index.backends.export
import index.backends.milvus
import index.search
from fanoise.errors import ArtifactError, InputError
from index.backends import open_backend
from index.backends.address import parse_address
from index.backends.export import export_milvus
from index.backends.milvus import MilvusBackend
from index.items import json_value
from index.opened import Index
from tests.index.backends.conftest import COLOURS, COUNT, NASTY, same_value

WHERES = [
    None,
    *[{"colour": colour} for colour in COLOURS if colour is not None],
    {"colour": "no such"},
    {"colour": {"in": ["red", NASTY, "no such"]}},
    {"colour": {"not": ["red", NASTY]}},
    {"colour": {"contains": "RED"}},
    {"colour": {"contains": "%"}},
    {"colour": {"contains": "_"}},
    {"colour": {"contains": "\\"}},
    {"colour": {"contains": '"'}},
    {"colour": {"contains": "%_ü\n"}},
    {"colour": {"contains": "grün ß"}},
    {"colour": {"contains": "京"}},
    {"colour": {"min": "a", "max": "back\\slash"}},
    {"colour": {"max": "zzz"}},
    {"price": 3},
    {"price": "20.0"},
    {"price": str(2**60)},
    {"price": "three"},
    {"price": {"not": 3}},
    {"price": {"min": -7}},
    {"price": {"min": 2.5, "max": 20}},
    {"price": {"max": 1e300}},
    {"weight": 0.1},
    {"weight": "2"},
    {"weight": {"in": [0.1, "2.0"]}},
    {"weight": {"not": "2"}},
    {"weight": {"min": -1, "max": 0}},
    {"sale": "true"},
    {"sale": False},
    {"sale": {"not": True}},
    {"size": {"min": "40"}},
    {"size": {"min": 36.5, "max": 1000}},
    {"size": "41.5"},
    {"tags": "a"},
    {"tags": "b%"},
    {"tags": 'q"'},
    {"tags": {"contains": "B%"}},
    {"tags": {"not": ["a", "B%"]}},
    {"tags": {"in": ["B%", 'q"']}},
    {"years": 1999},
    {"years": {"not": "2001.0"}},
    {"made": {"min": "2020-01-10", "max": "2020-01-20"}},
    {"made": {"contains": "-1"}},
    {"about": {"contains": "M1"}},
    {"like": "yes", "naïve name": 1},
    {"cost": 10},
    {"cost": {"in": ["10.0", "12.5"]}},
    {"cost": {"not": "10"}},
    {"cost": {"not": ["10", "0"]}},
    {"cost": "7"},
    {"cost": {"not": "7.0"}},
    {"cost": "007"},
    {"cost": "0.5"},
    {"cost": {"not": ".5"}},
    {"cost": 0},
    {"cost": 2**60},
    {"cost": {"not": 2**60}},
    {"active": "true"},
    {"active": {"not": False}},
    {"food": "café"},
    {"food": {"not": "cafe\u0301"}},
    {"food": {"contains": "É"}},
    {"food": {"contains": "straße"}},
    {"food": {"contains": "ab"}},
    {"dishes": "café"},
    {"dishes": {"not": "cafe\u0301"}},
    {"dishes": {"contains": "raß"}},
    {"mass": 19.99},
    {"mass": {"not": "0.1"}},
    {"mass": {"min": 19.99}},
    {"mass": {"max": 0.1}},
    {"mass": {"max": 1e300}},
    {"widths": "19.99"},
    {"widths": {"not": 0.1}},
    {"net": 19.99},
    {"net": {"not": "19.990"}},
    {"net": {"in": ["0.35", 20, "cheap"]}},
    {"net": {"min": "0.35", "max": "19.99"}},
    {"net": {"min": "0.351"}},
    {"net": {"max": -7}},
    {"net": "19.991"},
    {"net": 10**9},
    {"net": {"max": 10**9}},
    {"net": {"not": "-1e300"}},
    {"vast": 2**53},
    {"vast": 2**53 + 1},
    {"vast": {"not": "9007199254740992.00001"}},
    {"vast": {"min": "9007199254740992.000001"}},
    {"vast": {"max": f"-{10**50}.49999"}},
    {"vast": {"min": 10**50, "max": 1e60}},
    {"nets": "19.9"},
    {"nets": {"not": -7.0}},
    {"nets": "-0"},
    {"day": "2026-01-02"},
    {"day": "2026-01-02T01:00"},
    {"day": {"min": "2026-01-02T00:00", "max": "2026-01-20"}},
    {"day": {"min": "2026-01-02T00:01"}},
    {"day": {"max": "2026"}},
    {"day": {"contains": "-1"}},
    {"at": {"in": ["2026-01-03 12:00", "2026-01-04T13:01+01:00"]}},
    {"at": {"min": "2026-01-02T12:01"}},
    {"at": {"not": "2026-01-02T12:01:00"}},
    {"at": "soon"},
    {"there": "1969-12-10 00:00"},
    {"there": {"max": "1969-12-09T23:00Z"}},
    {"there": {"not": "1969-12-09T23:00+00:00"}},
    {"colour": [{"contains": "r"}, {"not": "red"}], "price": {"min": 0}},
]


@pytest.fixture(scope="module", params=[64, 9], ids=["columns", "json"])
def filled(request, varied, tmp_path_factory) -> MilvusBackend:
    """The same index with a column for each field, and with nearly all fields in the one of JSON."""
    address = parse_address(str(tmp_path_factory.mktemp("milvus") / "a shop.db"), collection="goods")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index.backends.export, "MAX_COLUMNS", request.param)
        patch.setattr(index.backends.export, "_BATCH_ROWS", 40)
        export_milvus(varied, address, progress=False)
    return MilvusBackend.open(address)


@pytest.fixture(scope="module")
def folder(varied) -> Index:
    return Index.open(varied)


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert [hit.id for hit in ours] == [hit.id for hit in theirs]
        assert [hit.position for hit in ours] == list(range(1, len(ours) + 1))
        assert np.allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-5)
        for hit, other in zip(ours, theirs, strict=True):
            left, right = hit.to_json(), other.to_json()
            assert list(left) == list(right)
            assert all(same_value(left[key], right[key]) for key in left if key != "score")


def test_it_says_what_searches_but_not_where(filled, folder):
    assert (filled.device, folder.device) == ("Milvus Lite", "CPU")
    server = parse_address("milvus://db.local:19530/goods")
    assert MilvusBackend(server, filled._client, filled.facts).device == "Milvus"


@pytest.mark.parametrize("where", WHERES, ids=str)
def test_a_filter_finds_the_same_items_in_both(filled, folder, queries, where):
    assert_same(filled.find(queries, COUNT, where), folder.find(queries, COUNT, where))


def test_the_filters_tell_items_apart(folder, queries):
    """Else the test before could not fail."""
    counts = [len(folder.find(queries[:1], COUNT, where)[0]) for where in WHERES]
    assert len(set(counts)) > 15
    assert counts.count(0) == 9


@pytest.mark.parametrize("k", [1, 3, 10, 1000])
@pytest.mark.parametrize(
    "group_by",
    [
        "item",
        "colour",
        "price",
        "weight",
        "sale",
        "made",
        "about",
        "like",
        "cost",
        "active",
        "food",
        "mass",
        "at",
        "there",
    ],
)
def test_groups_are_the_same_in_both(filled, folder, queries, k, group_by, monkeypatch):
    found = folder.find(queries, k, group_by=group_by)
    assert_same(filled.find(queries, k, group_by=group_by), found)
    where = {"sale": {"not": False}}
    found = folder.find(queries, k, where, group_by=group_by, min_score=-0.1)
    assert_same(filled.find(queries, k, where, group_by=group_by, min_score=-0.1), found)


def test_groups_are_complete_where_a_search_reaches_few(filled, folder, queries, monkeypatch):
    monkeypatch.setattr(index.backends.milvus, "_LEAST_REACH", 1)
    monkeypatch.setattr(index.backends.milvus, "_REACH", 1)
    assert_same(filled.find(queries, 9, group_by="sale"), folder.find(queries, 9, group_by="sale"))
    assert_same(filled.find(queries, 30, group_by="made"), folder.find(queries, 30, group_by="made"))
    assert_same(filled.find(queries, 1, group_by="item"), folder.find(queries, 1, group_by="item"))
    assert_same(filled.find(queries, 2, group_by="like"), folder.find(queries, 2, group_by="like"))
    assert_same(filled.find(queries, 9, group_by="colour"), folder.find(queries, 9, group_by="colour"))


@pytest.mark.parametrize("min_score", [-1, 0.0, 0.3, 1.0])
def test_a_least_score_cuts_the_same(filled, folder, queries, min_score):
    vectors = np.concatenate([queries, folder.vectors.rows(slice(0, 2))])
    assert_same(filled.find(vectors, COUNT, min_score=min_score), folder.find(vectors, COUNT, min_score=min_score))


@pytest.mark.parametrize("group_by", ["", "item"])
def test_all_that_reach_a_score_are_the_same_in_both(filled, folder, queries, group_by, monkeypatch):
    monkeypatch.setattr(index.search, "_FIRST_K", 2)
    for least in (-1, 0.1, 1.0):
        asked = {"min_score": least, "group_by": group_by}
        ours, theirs = (
            index.search._find_all(lambda k, at=at, asked=asked: at.find(queries[:1], k, **asked)[0], at.most_hits)
            for at in (filled, folder)
        )
        assert_same([ours], [theirs])
    assert filled.most_hits == folder.most_hits == COUNT


def test_hits_are_the_nearest_of_all_rows(filled, folder, queries):
    """An oracle that knows neither FAISS nor Milvus."""
    similarity = queries @ folder.vectors.rows(slice(None)).T
    for line, hits in zip(similarity, filled.find(queries, 7), strict=True):
        best = np.argsort(-line, kind="stable")[:7]
        assert [hit.id for hit in hits] == [folder.ids[row] for row in best]
        assert [hit.score for hit in hits] == pytest.approx(line[best], abs=1e-5)


def test_columns_come_in_the_order_of_the_index(filled, folder, monkeypatch):
    monkeypatch.setattr(index.backends.milvus, "_ROWS_AT_ONCE", 40)
    assert filled.live_ids == folder.live_ids
    assert filled.field_names == folder.field_names
    for name in folder.field_names:
        ours, theirs = filled.values(name).to_pylist(), json_value(folder.values(name).to_pylist())
        assert len(ours) == COUNT and all(same_value(a, b) for a, b in zip(ours, theirs, strict=True)), name
    with pytest.raises(InputError, match="unknown field 'x'"):
        filled.values("x")


def test_a_column_that_lacks_an_item_is_refused(filled, monkeypatch):
    query = filled._client.query
    monkeypatch.setattr(index.backends.milvus, "_ROWS_AT_ONCE", 40)
    monkeypatch.setattr(filled._client, "query", lambda *args, **options: query(*args, **options)[1:])
    with pytest.raises(ArtifactError, match="answers with 39 instead of 40 items from row 0 on"):
        filled.values("price")


def test_it_says_what_it_is(filled, folder, varied):
    dim = folder.manifest.dim
    assert (len(filled), filled.facts.dim, filled.facts.embedder_dim, filled.group_by) == (COUNT, dim, dim, None)
    assert filled.catalog == folder.catalog
    assert filled.folder == varied.resolve()
    assert filled.embedder.fingerprint == folder.embedder.fingerprint


@pytest.mark.parametrize(
    ("where", "notes"),
    [
        (None, []),
        ({"colour": "red"}, []),
        ({"colour": {"in": ["red", "puce"]}}, ["no item has colour 'puce'"]),
        ({"colour": {"contains": "puce"}}, ["no item has 'puce' in its colour"]),
        ({"price": {"min": 21, "max": 22}}, ["no item has a price from 21 to 22"]),
        ({"like": {"not": "yes"}}, ["every item with a value in like has 'yes'"]),
        (
            {"active": {"not": ["true", "false", "no"]}},
            ["every item with a value in active has 'true' or 'false' or 'no'"],
        ),
        ({"at": "soon"}, ["no item has at 'soon'"]),
        ({"at": {"min": "2027"}}, ["no item has a at from 2027"]),
        ({"sale": True, "size": "40"}, ["some items meet each condition of the filter, but none meets all"]),
    ],
)
def test_notes_name_values_that_no_item_has(filled, folder, where, notes):
    assert filled.notes(where) == notes
    assert [note.partition(";")[0].replace("'2027'", "2027") for note in folder.notes(where)] == notes


@pytest.mark.parametrize("name", ["fit", "size", "made"])
def test_text_that_no_bound_can_be_met_by_is_named(filled, folder, name):
    notes, expected = (backend.notes({name: {"min": "9"}}) for backend in (filled, folder))
    said = "fit holds text that is no number and meets no bound that is one"
    assert [note for note in notes if "bound" in note] == [said] * (name == "fit")
    assert [note.partition(", for example")[0] for note in expected if "bound" in note] == [said] * (name == "fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"where": {"color": "red"}}, "where: unknown field 'color'"),
        ({"where": {"price": {"min": "x"}}}, "where price>=x"),
        ({"where": {"day": {"max": "x"}}}, "where day<=x: the field 'day' holds times; give one, such as 2026-01-31"),
        ({"group_by": "x"}, "group_by: unknown field 'x'"),
        ({"group_by": "tags"}, "holds lists"),
        ({"min_score": 2}, "min_score must be a cosine"),
    ],
)
def test_bad_searches_are_refused_in_both(filled, folder, queries, options, message):
    options = {"k": 3} | options
    for backend in (filled, folder):
        with pytest.raises(InputError, match=message):
            backend.find(queries, **options)
    with pytest.raises(InputError, match="shape"):
        filled.find(queries[:, :5], 3)


def test_more_hits_than_milvus_returns_are_refused(filled, queries):
    facts = dataclasses.replace(filled.facts, count=20_000, index_type="GPU_CAGRA")
    with pytest.raises(InputError, match="k must be at most 1,024 with GPU_CAGRA, got 1,025"):
        MilvusBackend(filled.address, filled._client, facts).find(queries, 1025)
    facts = dataclasses.replace(facts, index_type="HNSW")
    with pytest.raises(InputError, match="k must be at most 16,384 with HNSW"):
        MilvusBackend(filled.address, filled._client, facts).find(queries, 20_000)


def test_a_thumbnail_that_the_server_names_stays_in_its_folder(filled, monkeypatch):
    monkeypatch.setattr(MilvusBackend, "_has_thumbnails", True)
    assert filled._thumbnail({"thumbnail": "ab" * 32}) == filled.folder / "thumbnails" / "ab" / f"{'ab' * 32}.jpg"
    for name in ("/home/x/private", "../../private", "ab" * 32 + "/../../../private", "AB" * 32, "", 7, None):
        assert filled._thumbnail({"thumbnail": name}) is None


def test_a_server_that_leaves_nothing_out_is_not_asked_for_ever(filled, queries, monkeypatch):
    monkeypatch.setattr(index.backends.milvus, "_LEAST_REACH", 1)
    search, calls = filled._search, iter(range(5))
    monkeypatch.setattr(filled, "_search", lambda queries, k, _: (next(calls), search(queries, k, ""))[1])
    with pytest.raises(ArtifactError, match="finds groups again"):
        filled.find(queries[:1], 2, group_by="like")


def test_an_alias_may_be_switched_while_it_is_searched(filled, queries):
    client, place = filled._client, str(filled).replace("goods", "shop")
    client.create_alias("goods", "shop")
    client.create_collection("later", dimension=4)
    try:
        opened = open_backend(place)
        client.alter_alias("later", "shop")
        assert_same(opened.find(queries, 3), filled.find(queries, 3))
        with pytest.raises(ArtifactError, match="shop was not made by"):
            open_backend(place)
    finally:
        client.drop_alias("shop")
        client.drop_collection("later")


def test_what_is_no_collection_of_ours_is_refused(filled, tmp_path):
    client = filled._client
    with pytest.raises(InputError, match="no such collection; there are: goods"):
        open_backend(str(filled).replace("goods", "bads"))
    with pytest.raises(InputError, match="there is no file"):
        open_backend(f"milvus+file:{tmp_path}/none.db/goods")
    client.create_collection("foreign", dimension=4)
    try:
        with pytest.raises(ArtifactError, match="was not made by `python -m index export-milvus`"):
            open_backend(str(filled).replace("goods", "foreign"))
    finally:
        client.drop_collection("foreign")


def test_a_server_that_does_not_answer_is_one_line(no_token, monkeypatch):
    monkeypatch.setattr("index.backends.client._CONNECT_S", 0.3)
    with pytest.raises(ArtifactError, match=r"look whether Milvus runs at http://127\.0\.0\.1:9") as error:
        open_backend("milvus://127.0.0.1:9/goods")
    assert "\n" not in str(error.value)
