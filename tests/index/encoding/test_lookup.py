import os
from types import SimpleNamespace

import pytest

from fanoise.catalog import Item
from index.encoding.content import ContentKeys
from index.encoding.lookup import Lengths, Looked, Lookup, batches
from tests.index.encoding.fakes import draw


def embedder(max_pixels=None, max_tokens=512, size=None):
    processor = SimpleNamespace(image_processor=SimpleNamespace(size=size))
    spec = SimpleNamespace(max_pixels=max_pixels, max_tokens=max_tokens)
    return SimpleNamespace(spec=spec, backbone=SimpleNamespace(processor=processor))


def test_batches_hold_every_row_once_the_longest_first():
    lengths = {3: 5.0, 4: 9.0, 8: 5.0, 9: 1.0, 11: 30.0}
    assert batches(lengths, 2) == [[11, 4], [3, 8], [9]]
    assert batches(lengths, 100) == [[11, 4, 3, 8, 9]]
    assert batches({}, 2) == []


def test_a_batch_of_huge_images_is_a_small_one():
    """A catalogue of a few megabytes may name pictures of 64 million pixels each, all open at once."""
    lengths = dict.fromkeys(range(20), 1.0)
    huge = batches(lengths, 32, dict.fromkeys(range(20), 64_000_000))
    assert [len(batch) for batch in huge] == [8, 8, 4]
    assert [len(batch) for batch in batches(lengths, 32, dict.fromkeys(range(20), 12_000_000))] == [20]
    assert batches({0: 2.0, 1: 1.0, 2: 0.5}, 32, {0: 0, 1: 1 << 40, 2: 0}) == [[0], [1], [2]]


def test_the_pixels_of_a_row_are_those_of_its_file(tmp_path):
    draw(tmp_path / "large.png", 1, size=(600, 400))
    look = Lookup(embedder(max_pixels=784), ContentKeys({}), None)
    assert look(Item(image=tmp_path / "large.png", text="x" * 8)) == Looked(3, None, 240_000)


def test_text_counts_by_its_bytes_up_to_the_limit():
    lengths = Lengths(embedder(max_tokens=10))
    assert lengths.of(Item(text="x" * 20)) == 5
    assert lengths.of(Item(text="ä" * 10)) == 5
    assert lengths.of(Item(text="x" * 1000)) == 10
    assert lengths.of(Item(text=None)) == 0


@pytest.mark.parametrize("options", [{"max_pixels": 7840}, {"size": {"shortest_edge": 100, "longest_edge": 78400}}])
def test_images_count_by_their_area_up_to_the_limit(tmp_path, options):
    draw(tmp_path / "small.png", 1, size=(56, 28))
    draw(tmp_path / "large.png", 1, size=(600, 400))
    lengths = Lengths(embedder(**options))
    most = options.get("max_pixels", 78400) / 784
    assert lengths.of(Item(image=tmp_path / "small.png")) == 2
    assert lengths.of(Item(image=(tmp_path / "small.png").read_bytes(), text="x" * 8)) == 4
    assert lengths.of(Item(image=tmp_path / "large.png")) == most
    assert lengths.of(Item(image=tmp_path / "none.png")) == 0


def test_what_is_no_image_file_has_no_length_and_is_not_waited_for(tmp_path):
    """A pipe, named in a table, would never end; and only formats that are decoded later are looked into."""
    os.mkfifo(tmp_path / "pipe.png")
    draw(tmp_path / "picture.tga", 1)
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "picture.tga", "folder.png", "a\0b.png"):
        assert Lengths(embedder()).of(Item(image=tmp_path / name)) == 0


def test_a_side_is_not_taken_for_an_area(tmp_path):
    draw(tmp_path / "a.png", 1, size=(280, 280))
    assert Lengths(embedder(size={"longest_edge": 336})).of(Item(image=tmp_path / "a.png")) == 100


def test_an_embedder_without_settings_will_do():
    assert Lengths(object()).of(Item(text="abcd")) == 1
