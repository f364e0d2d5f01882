import os

from fanoise.catalog import Item
from index.encoding.content import ContentKeys
from index.encoding.lookup import Looked, Lookup, batches
from tests.index.encoding.fakes import SplitEmbedder, draw


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


def test_a_row_is_as_long_as_the_embedder_says_of_its_text_and_the_pixels_of_its_file(tmp_path):
    draw(tmp_path / "large.png", 1, size=(600, 400))
    look = Lookup(SplitEmbedder(), ContentKeys({}), None)
    expected = Looked(2 + 240_000 / 784, None, 240_000)
    assert look(Item(image=tmp_path / "large.png", text="x" * 8)) == expected
    assert look(Item(image=(tmp_path / "large.png").read_bytes(), text="x" * 8)) == expected
    assert look(Item(text="x" * 8)) == Looked(2, None)
    assert look(Item(image=tmp_path / "none.png")) == Looked(0, None)


def test_what_is_no_image_file_has_no_pixels_and_is_not_waited_for(tmp_path):
    """A pipe, named in a table, would never end; and only formats that are decoded later are looked into."""
    os.mkfifo(tmp_path / "pipe.png")
    draw(tmp_path / "picture.tga", 1)
    (tmp_path / "folder.png").mkdir()
    look = Lookup(SplitEmbedder(), ContentKeys({}), None)
    for name in ("pipe.png", "picture.tga", "folder.png", "a\0b.png"):
        assert look(Item(image=tmp_path / name)) == Looked(0, None)
