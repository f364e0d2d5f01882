import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import index.export
import index.parquet
from fanoise.errors import ArtifactError, InputError
from index.build import build_index
from index.export import export_index
from index.search import Index
from index.update import delete_items
from tests.index.test_generations import largest_file


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_all_three_files_hold_the_living_rows_in_order(embedder, new_catalog, tmp_path, precision, monkeypatch):
    monkeypatch.setattr(index.parquet, "GROUP_ROWS", 16)
    build_index(embedder, new_catalog(), tmp_path / "index", precision=precision, dim=8, progress=False)
    delete_items(tmp_path / "index", ids=["g0", "g17"])
    assert export_index(tmp_path / "index", tmp_path / "out") == 38
    opened = Index.open(tmp_path / "index")
    rows = np.flatnonzero(opened.live)

    ids = json.loads((tmp_path / "out" / "ids.json").read_text())
    vectors = np.load(tmp_path / "out" / "vectors.npy", allow_pickle=False)
    table = pq.read_table(tmp_path / "out" / "items.parquet")
    assert ids == opened.live_ids == table["id"].to_pylist()
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, opened.vectors.rows(rows))
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 8)
    assert np.array_equal(np.stack(table["vector"].to_numpy()), vectors)
    assert table.column_names == ["id", "text", "image", "fields", "vector"]
    assert table["text"].to_pylist()[0] == "thing number 1"
    assert table["fields"].to_pylist() == [hit.fields for hit in opened.hits(rows, rows)]
    about = json.loads(table.schema.metadata[b"fanoise"])
    assert about["fingerprint"] == embedder.fingerprint
    assert (about["dim"], about["embedder_dim"]) == (8, 16)


def test_items_without_fields_are_exported_too(embedder, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "photos" / "a.png")
    build_index(embedder, tmp_path / "photos", tmp_path / "index", progress=False)
    export_index(tmp_path / "index", tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "items.parquet")["image"].to_pylist() == ["a.png"]


def test_a_folder_with_something_in_it_is_refused(built, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; name a new folder"):
        export_index(built, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_an_export_is_whole_or_absent(built, tmp_path, monkeypatch):
    def break_off(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(index.export.json, "dumps", break_off)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        export_index(built, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_named_with_its_remedy(built, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OSError, match="File too large; nothing was changed; make room") as caught, largest_file(1000):
        export_index(built, out)
    assert caught.value.filename == str(out) and not out.exists()


def test_a_damaged_index_is_not_exported(built, tmp_path):
    file = Index.open(built).generation_folder / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ArtifactError, match=r"vectors\.npy is damaged"):
        export_index(built, tmp_path / "out")
