import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import index.encoding.assemble
import index.parquet
from fanoise.catalog import Item
from fanoise.errors import CatalogError
from index.encoding.assemble import assemble
from index.encoding.cut import cut
from index.encoding.earlier import write_earlier
from index.encoding.encode import Encoder
from index.encoding.near_duplicates import is_same_picture
from index.encoding.rejects import Reject
from index.encoding.shard import ShardOptions
from index.items import Items, ItemWriter
from tests.index.encoding.fakes import DIM, SplitEmbedder, draw, vector_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shards_of(tmp_path):
    """Writes rows as shards of `size`; returns their folders."""

    def make(rows, size=4, **options):
        options = ShardOptions(dim=DIM, precision="fp32", **options)
        folders = []
        with Encoder(SplitEmbedder(), options, batch_size=3, workers=0, index=tmp_path, root=tmp_path) as encoder:
            for shard in encoder.encode(cut(rows, size)):
                folders.append(tmp_path / f"shard-{shard.number}")
                folders[-1].mkdir()
                shard.write(folders[-1])
        return folders

    return make


@pytest.fixture
def assembled(tmp_path):
    def make(folders, **options):
        (tmp_path / "out").mkdir(exist_ok=True)
        return tmp_path / "out", assemble(
            folders, tmp_path / "out", index=tmp_path, dim=DIM, precision="fp32", **options
        )

    return make


def fields(out):
    return pq.read_table(out / "items.parquet")["fields"].to_pylist()


def test_all_rows_come_in_their_order(shards_of, assembled, monkeypatch):
    monkeypatch.setattr(index.parquet, "GROUP_ROWS", 8)
    rows = [Item(id=f"r{i}", text=f"thing {i}", fields={"n": i}) for i in range(21)]
    out, result = assembled(shards_of(rows))
    assert (result.count, result.rejected, result.duplicates) == (21, 0, 0)
    assert Items.read(out / "items.parquet").ids == [row.id for row in rows]
    assert [one["n"] for one in fields(out)] == list(range(21))
    assert np.array_equal(np.load(out / "vectors.npy"), np.stack([vector_of(row) for row in rows]))
    assert pq.ParquetFile(out / "items.parquet").num_row_groups == 3
    assert (out / "rejects.jsonl").read_bytes() == b""


def test_rejects_of_all_shards_are_in_the_ledger_in_their_order(shards_of, assembled):
    rows = [Item(id=f"r{i}", text="" if i % 3 == 0 else f"thing {i}") for i in range(11)]
    rows[4] = Reject("r4", "a.png", "no row")
    out, result = assembled(shards_of(rows))
    ledger = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in ledger] == ["r0", "r3", "r4", "r6", "r9"]
    assert (result.count, result.rejected) == (6, 5)
    assert Items.read(out / "items.parquet").ids == ["r1", "r2", "r5", "r7", "r8", "r10"]


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([1, 2.5], [1.0, 2.5]),
        ([7, "7b"], ["7", "7b"]),
        ([None, 3], [None, 3]),
        ([True, 2], ["True", "2"]),
        ([1.5, 2**60 + 1], ["1.5", str(2**60 + 1)]),
        ([2**60 + 1, 1.5, 3], [str(2**60 + 1), "1.5", "3"]),
        ([["x"], []], [["x"], []]),
        ([["x"], "y"], ['["x"]', "y"]),
        ([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2}]),
        ([None, None], [None, None]),
    ],
)
def test_a_field_takes_the_type_that_holds_every_shards_values(shards_of, assembled, values, stored):
    rows = [Item(id=str(i), text="t", fields={"a": value, "b": "x"}) for i, value in enumerate(values)]
    out, _ = assembled(shards_of(rows, size=1))
    assert [one["a"] for one in fields(out)] == stored
    assert {one["b"] for one in fields(out)} == {"x"}


def test_the_result_is_that_of_one_shard(shards_of, assembled, tmp_path):
    values = [1, 2, 2.5, None, -3, 2**70, "x", True, 1e300, [1]]
    rows = [Item(id=str(i), text="t", fields={f"f{i % 3}": value}) for i, value in enumerate(values)]
    out, _ = assembled(shards_of(rows, size=1))
    whole = ItemWriter()
    for row in rows:
        whole.append(id=row.id, text=row.text, image=None, thumbnail_sha256=None, fields=row.fields)
    whole.write(tmp_path / "whole.parquet")
    assert fields(out) == pq.read_table(tmp_path / "whole.parquet")["fields"].to_pylist()


def test_fields_that_only_some_shards_have_are_null_in_the_others(shards_of, assembled):
    rows = [Item(id="a", text="t"), Item(id="b", text="t", fields={"x": {"p": 1}}), Item(id="c", text="t")]
    rows += [Item(id="d", text="t", fields={"x": {"q": "z"}, "y": 2})]
    out, _ = assembled(shards_of(rows, size=1))
    assert [one["y"] for one in fields(out)] == [None, None, None, 2]
    assert [one["x"] for one in fields(out)][1:] == [{"p": 1, "q": None}, None, {"p": None, "q": "z"}]


def test_no_fields_at_all_are_no_column(shards_of, assembled):
    out, _ = assembled(shards_of([Item(id=str(i), text="t") for i in range(5)]))
    assert "fields" not in pq.read_schema(out / "items.parquet").names


def test_nothing_to_index_is_an_error_that_tells_the_reasons(shards_of, assembled):
    rows = [Item(id=f"r{i}", image=f"none-{i}.png") for i in range(5)] + [Reject("x", None, "odd"), Item(id="y")]
    with pytest.raises(CatalogError) as caught:
        assembled(shards_of(rows))
    assert str(caught.value) == (
        "nothing to index: all 7 rows were rejected, the first being 'r0' (none-0.png): file not found; "
        "by reason: 5× file not found; 1× odd; 1× it has neither text nor image; "
        "relative image paths start in the catalogue's folder, or where --images FOLDER says"
    )
    with pytest.raises(CatalogError, match="no rows"):
        assembled([])


def test_more_rejects_than_allowed_are_an_error(shards_of, assembled):
    rows = [Item(id=f"r{i}", text="" if i < 4 else "x") for i in range(10)]
    folders = shards_of(rows)
    assert assembled(folders, max_rejects=0.4)[1].rejected == 4
    with pytest.raises(CatalogError, match=r"4 of 10 rows were rejected, more than the share of 0.39.*4× it has"):
        assembled(folders, max_rejects=0.39)


@pytest.fixture
def pictures(tmp_path):
    """Rows of which 2 and 6 show what 0 shows, 9 what 5 shows, in other sizes; 3 and 7 have no picture."""
    shown = {0: 0, 1: 1, 2: 0, 4: 4, 5: 5, 6: 0, 8: 8, 9: 5}
    rows = []
    for i in range(10):
        path = tmp_path / f"{i}.png" if i in shown else None
        if path is not None:
            draw(path, shown[i], size=(48 + 16 * i, 40 + 12 * i))
        rows.append(Item(id=f"r{i}", text=f"thing {i}", image=path, fields={"n": i}))
    return rows


def test_near_duplicates_are_reported_in_a_field(shards_of, assembled, pictures):
    out, result = assembled(shards_of(pictures, signatures=True), near_duplicates="report")
    assert [one["duplicate_of"] for one in fields(out)] == [None, None, "r0", None, None, None, "r0", None, None, "r5"]
    assert [one["n"] for one in fields(out)] == list(range(10))
    assert (result.count, result.rejected, result.duplicates) == (10, 0, 3)


def test_near_duplicates_are_skipped_with_a_line_in_the_ledger(shards_of, assembled, pictures):
    out, result = assembled(shards_of(pictures, signatures=True), near_duplicates="skip")
    assert Items.read(out / "items.parquet").ids == ["r0", "r1", "r3", "r4", "r5", "r7", "r8"]
    kept = [row for row in pictures if row.id not in ("r2", "r6", "r9")]
    assert np.array_equal(np.load(out / "vectors.npy"), np.stack([vector_of(row) for row in kept]))
    ledger = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(entry["id"], entry["path"], entry["reason"]) for entry in ledger] == [
        ("r2", "2.png", "near-duplicate of 'r0'"),
        ("r6", "6.png", "near-duplicate of 'r0'"),
        ("r9", "9.png", "near-duplicate of 'r5'"),
    ]
    assert (result.count, result.rejected, result.duplicates) == (7, 3, 3)
    assert "duplicate_of" not in fields(out)[0]


def test_new_rows_are_compared_with_earlier_ones_and_those_not_with_each_other(
    shards_of, assembled, pictures, tmp_path, monkeypatch
):
    folders = shards_of(pictures, signatures=True)
    earlier = pa.concat_tables(
        [index.parquet.read_parquet(folder / "items.parquet") for folder in folders[:2]]
    )  # r0 to r7
    write_earlier(tmp_path / "earlier", earlier, index=tmp_path, progress=False)
    compared = []

    def is_same(a, b):
        compared.append((a.size, b.size))
        return is_same_picture(a, b)

    monkeypatch.setattr(index.encoding.assemble, "is_same_picture", is_same)
    out, result = assembled(folders[2:], near_duplicates="report", earlier=tmp_path / "earlier")
    assert [one["duplicate_of"] for one in fields(out)] == [None, "r5"]
    assert (result.duplicates, len(compared)) == (1, 1)


def test_the_field_of_duplicates_takes_the_place_of_the_catalogues(shards_of, assembled, pictures):
    rows = [Item(id=row.id, text=row.text, image=row.image, fields={"duplicate_of": 7, "n": 1}) for row in pictures]
    out, _ = assembled(shards_of(rows, signatures=True), near_duplicates="report")
    assert fields(out)[2] == {"duplicate_of": "r0", "n": 1}
    rows = [Item(id=row.id, text=row.text, image=row.image) for row in pictures]
    out, _ = assembled([folder for folder in shards_of_again(shards_of, rows)], near_duplicates="report")
    assert fields(out)[2] == {"duplicate_of": "r0"}


def shards_of_again(shards_of, rows):
    import shutil

    folders = shards_of(rows[:0], signatures=True)
    assert folders == []
    for folder in Path(rows[0].image).parent.glob("shard-*"):
        shutil.rmtree(folder)
    return shards_of(rows, signatures=True)


MEMORY = """
import sys, resource
from pathlib import Path
import numpy as np
from index.encoding.assemble import assemble
from index.items import ItemWriter
from index.parquet import read_parquet
from index.store import VectorWriter
folder, shards, rows, dim = Path(sys.argv[1]), 40, 500, 1024
block = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
block /= np.linalg.norm(block, axis=1, keepdims=True)
def make(number):
    path = folder / str(number)
    path.mkdir()
    items = ItemWriter()
    for row in range(rows):
        items.append(id=f"{number}-{row}", text="t", image=None, thumbnail_sha256=None, fields={"n": row})
    items.write(path / "items.parquet")
    with VectorWriter(path / "vectors.npy", dim) as vectors:
        vectors.append(block)
    (path / "rejects.jsonl").touch()
    return path
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
paths = [make(number) for number in range(shards)]
(folder / "few").mkdir()
assemble(paths[:4], folder / "few", index=folder, dim=dim, precision="fp32")
before = anonymous()
(folder / "all").mkdir()
assemble(paths, folder / "all", index=folder, dim=dim, precision="fp32")
print(anonymous() - before, shards * rows * dim * 4 // 1024)
"""


def test_the_vectors_are_never_all_in_memory(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    grown, vectors = map(int, run.stdout.split())
    assert grown < vectors / 4
