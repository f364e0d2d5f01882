import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import index.encoding.cut
from fanoise.catalog import ImageBytes, Item
from index.encoding.content import read_image
from index.encoding.cut import catalog_rows, cut, referenced_rows
from index.encoding.intake import catalog_ref
from index.encoding.rejects import Reject
from tests.fanoise.catalog.files import write
from tests.index.encoding.fakes import draw


def test_shards_are_consecutive_rows_numbered_from_zero():
    rows = [Item(id=str(i), text="x") for i in range(10)]
    rows[3] = Reject("3", None, "no row")
    shards = list(cut(rows, 4))
    assert [shard.number for shard in shards] == [0, 1, 2]
    assert [len(shard.rows) for shard in shards] == [4, 4, 2]
    assert [row for shard in shards for row in shard.rows] == rows


def test_no_rows_are_no_shards():
    assert list(cut([], 4)) == []


def test_a_shard_ends_where_images_inside_the_catalogue_fill_it(monkeypatch):
    monkeypatch.setattr(index.encoding.cut, "_SHARD_BYTES", 100_000)
    rows = [Item(id=str(i), image=ImageBytes(bytes(30_000), "")) for i in range(7)] + [Item(id="t", text="x" * 20_000)]
    assert [len(shard.rows) for shard in cut(rows, 100)] == [4, 4]


@pytest.mark.parametrize(
    "value",
    [
        "x" * 30_000,
        ["x" * 15_000, "y" * 15_000],
        {"a": {"b": ["x" * 30_000]}},
        list(range(1000)),
        [[0.5] * 500, [0.5] * 500],
        np.zeros(7500, np.float32),
    ],
)
def test_a_shard_ends_where_fields_fill_it(monkeypatch, value):
    monkeypatch.setattr(index.encoding.cut, "_SHARD_BYTES", 120_000)
    rows = [Item(id=str(i), text="x", fields={"n": i, "value": value, "none": None}) for i in range(7)]
    assert [len(shard.rows) for shard in cut(rows, 100)] == [4, 3]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("t", lambda i: None),
        ("t" * 500, lambda i: i),
        ("漢字" * 200, lambda i: f"{i} цвет" * 20),
        ("t", lambda i: [i + j / 3 for j in range(256)]),
        ("t", lambda i: [1000 + i + j for j in range(256)]),
        ("t", lambda i: [f"tag {i} {j}" for j in range(20)]),
        ("t", lambda i: {f"k{j}": i + j / 3 for j in range(20)}),
        ("t", lambda i: [{"x": i / 3, "y": f"z{i}"}] * 10),
    ],
)
@pytest.mark.parametrize("vectors", [None, "v"])
def test_what_is_counted_is_what_is_taken(tmp_path, suffix, text, value, vectors):
    catalog = write(tmp_path / f"c.{suffix}", [{"text": f"{text}{i}", "n": i, "v": value(i)} for i in range(300)])
    list(catalog_rows(catalog, vectors=vectors))  # what is made once
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        rows = list(catalog_rows(catalog, vectors=vectors))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.6 < sum(map(index.encoding.cut._size_bytes, rows)) / taken < 1.6


def test_it_reads_no_further_than_the_shard_that_is_asked_for():
    seen = []
    rows = (seen.append(i) or Item(id=str(i), text="x") for i in range(100))
    shards = cut(rows, 10)
    next(shards)
    assert len(seen) == 10


def test_rejects_of_the_reader_stand_where_their_rows_are(tmp_path):
    lines = [
        "{}",
        '{"text": "a"}',
        '{"text": "b", "image": 7}',
        '{"image": "../x.png"}',
        '{"text": "c"}',
        '{"id": "e"}',
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(lines).replace("{}", '{"text": null}'))
    rows = list(catalog_rows(tmp_path / "c.jsonl"))
    assert [(type(row).__name__, row.id) for row in rows] == [
        ("Reject", "1"),
        ("Item", "2"),
        ("Reject", "3"),
        ("Reject", "4"),
        ("Item", "5"),
        ("Reject", "e"),
    ]
    assert "leads out" in rows[3].reason and rows[3].path == "../x.png"


def test_a_manifest_finds_its_catalogue_again_wherever_both_are_moved(tmp_path):
    draw(tmp_path / "there" / "pictures" / "a.png", 1)
    (tmp_path / "there" / "c.csv").write_text("name,picture\nx,a.png\n")
    reading = {"image": "picture", "images": tmp_path / "there" / "pictures"}
    ref = catalog_ref(tmp_path / "there" / "c.csv", tmp_path / "index", text="name", **reading)
    assert (ref.path, ref.options) == ("../there/c.csv", {"image": "picture", "images": "../there/pictures"})
    (tmp_path / "moved" / "index").mkdir(parents=True)
    (tmp_path / "there").rename(tmp_path / "moved" / "there")
    [item] = referenced_rows(ref, tmp_path / "moved" / "index", allow_outside=False, allow_urls=False)
    assert (item.text, read_image(item.image)[:4]) == ("x", b"\x89PNG")


@pytest.mark.parametrize("name", ["on_reject", "on_other", "text", "path", "later", "vectors", "near_duplicates"])
def test_options_that_are_none_of_reading_images_are_left_aside(tmp_path, name):
    (tmp_path / "index").mkdir()
    (tmp_path / "c.jsonl").write_text('{"id": "a", "text": null}\n{"id": "b", "text": "x", "other": "y"}')
    ref = catalog_ref(tmp_path / "c.jsonl", tmp_path / "index", text=None)
    expected = list(referenced_rows(ref, tmp_path / "index", allow_outside=False, allow_urls=False))
    assert [(type(row).__name__, row.id) for row in expected] == [("Reject", "a"), ("Item", "b")]
    strange = replace(ref, options={name: "other"})
    assert list(referenced_rows(strange, tmp_path / "index", allow_outside=False, allow_urls=False)) == expected
