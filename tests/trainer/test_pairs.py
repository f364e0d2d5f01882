import base64
import gc
import io
import json
import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fanoise.catalog import Item
from fanoise.errors import CatalogError
from fanoise.images import open_image
from trainer.pair_table import Pair, pair_keys
from trainer.pairs import read_pairs, valid_answers


def write(path, *rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def negatives(pair: Pair) -> list[tuple[str | None, str | None]]:
    return [(item.text, None if item.image is None else item.image.name) for item in pair.negatives]


def test_pairs_are_read_with_images_beside_the_file(tmp_path):
    file = write(
        tmp_path / "pairs.jsonl",
        {"query_text": "red", "positive_image": "a.png", "group": "g"},
        {"query_image": "b.png", "query_text": "in blue", "positive_text": "x", "negative_text": "y"},
    )
    first, second = read_pairs(file)
    assert (first.query.text, first.positive.image, first.group) == ("red", tmp_path / "a.png", "g")
    assert first.negatives == ()
    assert (second.query.image, second.group) == (tmp_path / "b.png", "")
    assert negatives(second) == [("y", None)]
    assert {item.id for item in (second.query, second.positive, *second.negatives)} == {
        f"{tmp_path.name}/pairs.jsonl:2"
    }


def test_a_csv_file_gives_the_pairs_of_the_same_jsonl_file(tmp_path):
    rows = [
        {"query_text": "a, b", "query_image": "q.png", "positive_text": "", "positive_image": "p.png"},
        {"query_text": "é", "query_image": "", "positive_text": "x\ny", "positive_image": ""},
    ]
    lines = ["query_text,query_image,positive_text,positive_image", '"a, b",q.png,,p.png', 'é,,"x\ny",']
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    found, expected = (read_pairs(file) for file in (tmp_path / "pairs.csv", write(tmp_path / "pairs.jsonl", *rows)))
    for one, other in zip(found, expected, strict=True):
        assert (one.query.text, one.query.image) == (other.query.text, other.query.image)
        assert (one.positive.text, one.positive.image) == (other.positive.text, other.positive.image)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"negative_text": ["y", "z"]}, [("y", None), ("z", None)]),
        ({"negative_image": ["n.png", "m.png"]}, [(None, "n.png"), (None, "m.png")]),
        (
            {"negative_text": ["y", None, "z"], "negative_image": ["n.png", "m.png", ""]},
            [("y", "n.png"), (None, "m.png"), ("z", None)],
        ),
        ({"negative_text": ["", "z", None]}, [("z", None)]),
        ({"negative_text": []}, []),
        ({"negative_text": "y", "negative_image": ["n.png"]}, [("y", "n.png")]),
        ({"negative_text": "y", "negative_image": "n.png"}, [("y", "n.png")]),
        ({"negative_text": None}, []),
    ],
)
def test_a_pair_may_have_any_number_of_mined_negatives(tmp_path, suffix, cells, expected):
    row = {"query_text": "q", "positive_text": "p", **cells}
    (pair,) = read_pairs(write(tmp_path / f"pairs.{suffix}", row))
    assert negatives(pair) == expected


def test_a_negative_that_is_the_positive_itself_is_left_out_and_counted(tmp_path):
    row = {"query_text": "q", "positive_text": "p", "negative_text": ["p", "n", "p"]}
    table = read_pairs(write(tmp_path / "pairs.jsonl", row, {**row, "negative_text": "n"}))
    assert [negatives(pair) for pair in table] == [[("n", None)], [("n", None)]]
    assert table.equal_negatives == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query_text": "a"}, "row 2: fill positive_text, positive_image or both"),
        ({"positive_text": "a"}, "row 2: fill query_text"),
        ({"query_text": " ", "positive_text": "a"}, "row 2: fill query_text"),
        ({"query_text": math.nan, "positive_text": "a"}, "row 2: fill query_text"),
        ({"query_text": "a", "positve_text": "b"}, "row 2: unknown column 'positve_text'"),
        ({"query_text": ["a"], "positive_text": "b"}, "row 2: query_text is a list, must be a string"),
        ({"query_text": "a", "positive_text": {"b": 1}}, "row 2: positive_text is a dict, must be a string"),
        ({"query_text": "a", "positive_text": "b", "group": ["c"]}, "row 2: group is a list"),
        ({"query_text": "a\ud800", "positive_text": "b"}, "row 2: query_text is not Unicode"),
        ({"query_text": "a", "positive_text": "b", "negative_text": [["c"]]}, "row 2: negative_text is a list"),
        (
            {"query_text": "a", "positive_text": "b", "negative_text": ["c", "d"], "negative_image": ["c.png"]},
            "row 2: negative_text has 2 entries and negative_image 1; give both as many",
        ),
        (
            {"query_text": "a", "positive_text": "b", "negative_text": [], "negative_image": ["c.png"]},
            "row 2: negative_text has 0 entries and negative_image 1; give both as many",
        ),
    ],
)
def test_unusable_row_is_named_with_its_remedy(tmp_path, row, message):
    with pytest.raises(CatalogError, match=message) as caught:
        read_pairs(write(tmp_path / "pairs.jsonl", {"query_text": "fine", "positive_text": "fine"}, row))
    assert "\n" not in str(caught.value)


def test_numbers_are_texts_and_missing_numbers_are_nothing(tmp_path):
    (pair,) = read_pairs(
        write(tmp_path / "pairs.jsonl", {"query_text": 7, "positive_text": 1.5, "negative_text": math.nan, "group": 3})
    )
    assert (pair.query.text, pair.positive.text, pair.negatives, pair.group) == ("7", "1.5", (), "3")


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png((255, 0, 0)), png((0, 0, 255))
BASE64 = base64.b64encode(RED).decode()


@pytest.mark.parametrize(
    ("suffix", "cell"),
    [
        ("parquet", RED),
        ("parquet", {"bytes": RED, "path": None}),
        ("parquet", {"bytes": RED, "path": "named.png"}),
        ("parquet", BASE64),
        ("parquet", f" data:image/png;base64,{BASE64}"),
        ("jsonl", BASE64),
        ("jsonl", {"bytes": BASE64, "path": "named.png"}),
    ],
)
def test_an_image_may_be_in_its_cell_as_in_a_catalogue(tmp_path, suffix, cell):
    row = {"query_text": "q", "positive_image": cell, "negative_image": [cell, cell], "negative_text": ["n", None]}
    path = write(tmp_path / f"pairs.{suffix}", row)
    (pair,) = table = read_pairs(path)
    for item in (pair.positive, pair.negatives[0]):
        assert np.array_equal(open_image(item.image), np.full((2, 3, 3), (255, 0, 0)))
        assert str(item.image) == f"{tmp_path.name}/pairs.{suffix}:1", "how ledgers name it"
    assert (len(pair.negatives), table.equal_negatives, table.names_images) == (1, 1, False)


def test_images_in_cells_are_equal_where_their_bytes_are(tmp_path):
    rows = [
        {"query_text": f"q{number}", "positive_text": text, "positive_image": {"bytes": data, "path": path}}
        for number, (text, data, path) in enumerate(
            [("", RED, "a.png"), (None, RED, "b.png"), ("", BLUE, "a.png"), ("t", RED, None), ("", None, "a.png")]
        )
    ]
    embedded, spelled = (
        read_pairs(write(tmp_path / name, *rows_))
        for name, rows_ in (
            ("pairs.parquet", rows),
            ("pairs.jsonl", [{"query_text": "other", "positive_image": BASE64}]),
        )
    )
    keys = embedded.keys[:, 1].tolist()
    assert [keys.index(key) for key in keys] == [0, 0, 2, 3, 4]
    assert spelled.keys[0, 1] == keys[0], "in any file"
    assert [pair_keys(pair) for pair in embedded] == [tuple(each) for each in embedded.keys.tolist()]
    assert valid_answers([*embedded])[0].tolist() == [False, True, False, False, False]
    assert embedded.names_images and embedded[4].positive.image == tmp_path / "a.png"


def test_a_cell_without_bytes_and_path_is_no_image(tmp_path):
    cell = {"bytes": None, "path": None}
    image = {"bytes": RED, "path": None}
    rows = [
        {"query_text": "q", "query_image": cell, "positive_image": image, "negative_image": [cell]},
        {"query_text": "q", "query_image": image, "positive_image": image, "negative_image": None},
    ]
    pair, _ = read_pairs(write(tmp_path / "pairs.parquet", *rows))
    assert (pair.query.image, pair.negatives) == (None, ())


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("/9j/not base64!", "row 2: positive_image: the image is not valid base64"),
        ("data:image/png;base64,###", "row 2: positive_image: the image is not valid base64"),
        ("https://a.example/b.png", "row 2: positive_image is a URL, which is not fetched; fetch the images and name"),
        ("a." + "b" * 5000, "row 2: positive_image: the image is a text of 5002 characters, neither a path nor base64"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_cell_that_is_no_image_is_named_with_its_row(tmp_path, suffix, cell, message):
    rows = [{"query_text": "q", "positive_image": image} for image in ("fine.png", cell)]
    with pytest.raises(CatalogError, match=message):
        read_pairs(write(tmp_path / f"pairs.{suffix}", *rows))


def test_a_list_is_no_image_of_a_query(tmp_path):
    row = {"query_image": ["a.png"], "positive_text": "p"}
    with pytest.raises(CatalogError, match="query_image is a list, must be a path, bytes, or base64 text; write one"):
        read_pairs(write(tmp_path / "pairs.jsonl", row))


def test_images_in_cells_are_read_a_few_at_a_time_and_kept_on_disk(tmp_path):
    """128 images of 2 MiB: a quarter of them are in memory at a time, and none when the table is there."""
    data = np.random.default_rng(0).integers(0, 256, (128, 2 << 20), dtype=np.uint8)
    schema = pa.schema({"query_text": pa.string(), "positive_image": pa.struct({"bytes": pa.binary()})})
    with pq.ParquetWriter(tmp_path / "pairs.parquet", schema, compression="none", use_dictionary=False) as writer:
        for number, row in enumerate(data):
            cells = {"query_text": f"q{number}", "positive_image": {"bytes": row.tobytes()}}
            writer.write_batch(pa.RecordBatch.from_pylist([cells], schema))
    total = data.nbytes
    del cells
    gc.collect()
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    most = 0

    def note(count: int) -> None:
        nonlocal most
        most = max(most, pool.bytes_allocated() - before)

    tracemalloc.start()
    try:
        table = read_pairs(tmp_path / "pairs.parquet", on_rows=note)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most > 0.1 * total, "where the images are is what was measured"
    assert most < 0.75 * total and peak < 0.5 * total
    assert held < 2**20 and pool.bytes_allocated() - before < 2**20
    assert table[100].positive.image.read() == data[100].tobytes()


def test_empty_file_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="no pairs in this file; it needs at least one row"):
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
