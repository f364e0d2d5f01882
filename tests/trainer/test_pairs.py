import json

import numpy as np
import pytest

from fanoise.catalog import Item
from fanoise.errors import CatalogError
from trainer.pairs import Pair, read_pairs, valid_answers


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_are_read_with_images_beside_the_file(tmp_path):
    file = write(
        tmp_path / "pairs.jsonl",
        {"query_text": "red", "positive_image": "a.png", "group": "g"},
        {"query_image": "b.png", "query_text": "in blue", "positive_text": "x", "negative_text": "y"},
    )
    first, second = read_pairs(file)
    assert (first.query.text, first.positive.image, first.group) == ("red", tmp_path / "a.png", "g")
    assert first.negative is None
    assert (second.query.image, second.negative.text) == (tmp_path / "b.png", "y")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query_text": "a"}, "row 1: fill positive_text"),
        ({"positive_text": "a"}, "row 1: fill query_text"),
        ({"query_text": "a", "positve_text": "b"}, "unknown column 'positve_text'"),
    ],
)
def test_unusable_row_is_named_with_its_remedy(tmp_path, row, message):
    with pytest.raises(CatalogError, match=message):
        read_pairs(write(tmp_path / "pairs.jsonl", row))


def test_empty_file_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="no pairs"):
        read_pairs(write(tmp_path / "pairs.jsonl"))


def test_valid_answers_share_group_positive_or_query():
    def pair(query, positive, group=""):
        return Pair(query=Item(text=query), positive=Item(text=positive), group=group)

    pairs = [
        pair("q0", "p0", "shoes"),
        pair("q1", "p1", "shoes"),
        pair("q2", "p0"),
        pair("q0", "p3"),
        pair("q4", "p4"),
        pair("q5", "p5"),
    ]
    expected = np.zeros((6, 6), dtype=bool)
    for i, j in ((0, 1), (0, 2), (0, 3)):
        expected[i, j] = expected[j, i] = True
    assert np.array_equal(valid_answers(pairs), expected)
