from dataclasses import replace

import pytest

import index.encoding.cut
from fanoise.catalog import ImageBytes, Item
from index.encoding.content import read_image
from index.encoding.cut import catalog_rows, cut, referenced_rows
from index.encoding.intake import catalog_ref
from index.encoding.rejects import Reject
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
    monkeypatch.setattr(index.encoding.cut, "_SHARD_BYTES", 1000)
    rows = [Item(id=str(i), image=ImageBytes(bytes(300), "")) for i in range(7)] + [Item(id="t", text="x" * 200)]
    assert [len(shard.rows) for shard in cut(rows, 100)] == [4, 4]


@pytest.mark.parametrize(
    "value", ["x" * 300, ["x" * 150, "y" * 150], {"a": {"b": ["x" * 300]}}, list(range(40)), [[0.5] * 20, [0.5] * 20]]
)
def test_a_shard_ends_where_fields_fill_it(monkeypatch, value):
    monkeypatch.setattr(index.encoding.cut, "_SHARD_BYTES", 1200)
    rows = [Item(id=str(i), text="x", fields={"n": i, "value": value, "none": None}) for i in range(7)]
    assert [len(shard.rows) for shard in cut(rows, 100)] == [4, 3]


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
