import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import index.build
from fanoise.errors import CatalogError, InputError
from index.build import build_index
from index.manifest import Manifest
from index.search import Index


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_vectors_are_the_embedders_in_catalogue_order(embedder, built, tmp_path):
    from fanoise.catalog import read_catalog

    expected = embedder.encode(list(read_catalog(tmp_path / "goods" / "catalog.csv")))
    vectors = np.load(built / "vectors.npy", allow_pickle=False)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, expected)


def test_batch_size_does_not_change_the_vectors(embedder, built, tmp_path):
    build_index(embedder, tmp_path / "goods" / "catalog.csv", tmp_path / "b", batch_size=7, progress=False)
    assert (tmp_path / "b" / "vectors.npy").read_bytes() == (built / "vectors.npy").read_bytes()


def test_manifest_tells_what_was_built(embedder, built):
    manifest = Manifest.read(built)
    assert (manifest.count, manifest.rejected, manifest.dim) == (40, 0, 16)
    assert (manifest.factory, manifest.ann_overlap, manifest.metric) == ("Flat", 1.0, "ip")
    assert "exact" in manifest.factory_reason
    assert manifest.embedder.fingerprint == embedder.fingerprint
    assert manifest.embedder.noise["strength"] == 0.1
    assert manifest.embedder.path == "../run"
    assert manifest.catalog.path == "../goods/catalog.csv"
    assert set(manifest.files) == {"vectors.npy", "items.parquet", "index.faiss", "rejects.jsonl"}


def test_a_hub_embedder_is_named_by_its_id(new_embedder, new_catalog, tmp_path):
    embedder = new_embedder()
    embedder.path = "some-org/some-model"
    manifest = build_index(embedder, new_catalog(), tmp_path / "index", progress=False)
    assert (manifest.embedder.path, manifest.embedder.hub_id) == (None, "some-org/some-model")


def test_thumbnails_are_small_named_by_row_and_without_metadata(embedder, tmp_path):
    photo = Image.new("RGB", (900, 300), "red")
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    exif[0x0112] = 6  # rotated by a quarter: the thumbnail must be upright
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos" / "..%2f name with 'quotes'.jpg", exif=exif, comment=b"secret")
    build_index(embedder, tmp_path / "photos", tmp_path / "index", progress=False)
    assert entries(tmp_path / "index" / "thumbnails") == ["0.jpg"]
    with Image.open(tmp_path / "index" / "thumbnails" / "0.jpg") as thumbnail:
        assert thumbnail.size == (107, 320)
        assert not thumbnail.getexif()
        assert "comment" not in thumbnail.info


def test_bad_images_go_to_the_ledger_and_nowhere_else(embedder, new_catalog, tmp_path):
    bad = [
        {"id": "gone", "text": "a", "image": "img/gone.png", "colour": "red", "price": "1"},
        {"id": "junk", "text": "b", "image": "img/junk.jpg", "colour": "red", "price": "1"},
        {"id": "last", "text": "c", "image": "", "colour": "red", "price": "1"},
    ]
    catalog = new_catalog(extra=bad)
    (catalog.parent / "img" / "junk.jpg").write_bytes(b"no image at all")
    manifest = build_index(embedder, catalog, tmp_path / "index", batch_size=4, progress=False)
    ledger = [json.loads(line) for line in (tmp_path / "index" / "rejects.jsonl").read_text().splitlines()]
    assert [(entry["id"], entry["path"]) for entry in ledger] == [("gone", "img/gone.png"), ("junk", "img/junk.jpg")]
    assert ledger[0]["reason"] == "file not found"
    assert "not an image" in ledger[1]["reason"]
    assert (manifest.count, manifest.rejected) == (41, 2)
    index = Index.open(tmp_path / "index")
    assert index.ids[-1] == "last"
    assert np.array_equal(index.vectors[-1], embedder.encode(list(read_last(catalog)))[0])


def read_last(catalog):
    from fanoise.catalog import read_catalog

    return list(read_catalog(catalog))[-1:]


def test_an_image_that_only_the_model_refuses_does_not_take_its_batch_along(new_embedder, new_catalog, tmp_path):
    embedder = new_embedder(refuse="thing number 3")
    manifest = build_index(embedder, new_catalog(), tmp_path / "index", batch_size=8, progress=False)
    assert (manifest.count, manifest.rejected) == (39, 1)
    entry = json.loads((tmp_path / "index" / "rejects.jsonl").read_text())
    assert entry == {"id": "g3", "path": "img/3.png", "reason": "too thin for the vision tower"}
    assert "g3" not in Index.open(tmp_path / "index").ids


def test_an_embedding_that_is_not_finite_is_rejected(embedder, new_catalog, tmp_path):
    extra = [{"id": "nan", "text": "not a number", "image": "", "colour": "red", "price": "1"}]
    manifest = build_index(embedder, new_catalog(extra=extra), tmp_path / "index", progress=False)
    assert manifest.rejected == 1
    assert "not finite" in (tmp_path / "index" / "rejects.jsonl").read_text()


def test_a_catalogue_of_rejects_is_an_error_that_names_one(embedder, new_catalog, tmp_path):
    catalog = new_catalog(n=3, images=3)
    for image in (catalog.parent / "img").iterdir():
        image.write_bytes(b"")
    with pytest.raises(CatalogError, match=r"all 3 rows were rejected.*'g0' \(img/0.png\)"):
        build_index(embedder, catalog, tmp_path / "index", progress=False)
    assert not (tmp_path / "index").exists()


def test_a_duplicate_id_stops_before_encoding_and_leaves_nothing(embedder, new_catalog, tmp_path):
    extra = [{"id": "g7", "text": "again", "image": "", "colour": "red", "price": "1"}]
    catalog = new_catalog(extra=extra)
    before = entries(tmp_path)
    with pytest.raises(CatalogError, match="'g7'"):
        build_index(embedder, catalog, tmp_path / "index", progress=False)
    assert embedder.batches == []
    assert entries(tmp_path) == before


def test_field_types_survive_and_mixed_ones_become_text(embedder, tmp_path):
    rows = [
        {"text": "a", "price": 12.5, "stock": 3, "sale": True, "code": 7, "tags": ["x"], "odd": {}},
        {"text": "b", "price": 20, "stock": None, "sale": False, "code": "7b", "tags": [], "odd": {}, "late": 2**70},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    fields = pq.read_table(tmp_path / "index" / "items.parquet")["fields"].to_pylist()
    assert fields[0] == {
        "text": "a", "price": 12.5, "stock": 3, "sale": True, "code": "7", "tags": ["x"], "odd": "{}", "late": None
    }  # fmt: skip
    assert (fields[1]["price"], fields[1]["code"], fields[1]["late"]) == (20.0, "7b", str(2**70))


def test_text_with_lone_surrogates_is_stored_escaped(embedder, tmp_path):
    (tmp_path / "c.jsonl").write_text(r'{"id": "x\ud800", "text": "y\udfff", "note": "z\ud801"}')
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    index = Index.open(tmp_path / "index")
    assert index.ids == ["x\\ud800"]
    assert index.hits([1.0], [0])[0].fields["note"] == "z\\ud801"


@pytest.mark.skipif(os.name == "nt", reason="file names are text on Windows")
def test_an_image_with_an_undecodable_name_is_indexed(embedder, tmp_path):
    (tmp_path / "photos").mkdir()
    target = os.fsencode(tmp_path / "photos") + b"/caf\xe9.png"
    Image.new("RGB", (20, 20), "blue").save(os.fsdecode(target))
    assert build_index(embedder, tmp_path / "photos", tmp_path / "index", progress=False).count == 1


def test_an_error_in_the_middle_leaves_the_old_index_as_it_was(embedder, built, new_catalog, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in built.iterdir() if path.is_file()}
    catalog, around = new_catalog(name="other"), [*entries(tmp_path), "other"]

    def break_off(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(index.build, "train_index", break_off)
    with pytest.raises(KeyboardInterrupt):
        build_index(embedder, catalog, built, progress=False)
    assert {path.name: path.read_bytes() for path in built.iterdir() if path.is_file()} == before
    assert entries(tmp_path) == sorted(set(around))
    assert len(Index.open(built, embedder=embedder)) == 40


def test_an_index_is_replaced_by_the_next_build(embedder, built, new_catalog):
    build_index(embedder, new_catalog(n=9, images=1, name="other"), built, progress=False)
    assert len(Index.open(built)) == 9
    assert entries(built / "thumbnails") == ["0.jpg"]


def test_a_folder_that_is_no_index_is_never_replaced(embedder, new_catalog, tmp_path):
    catalog = new_catalog()
    with pytest.raises(InputError, match="not empty and not an index"):
        build_index(embedder, catalog, catalog.parent, progress=False)
    assert catalog.exists()


def test_an_index_with_foreign_files_in_it_is_never_replaced(embedder, built, tmp_path):
    (built / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        build_index(embedder, tmp_path / "goods" / "catalog.csv", built, progress=False)
    assert (built / "notes.txt").read_text() == "mine"


def test_out_may_not_be_a_file(embedder, new_catalog, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        build_index(embedder, new_catalog(), tmp_path / "file", progress=False)


def test_progress_is_shown_unless_quiet(embedder, new_catalog, tmp_path, capfd):
    catalog = new_catalog()
    build_index(embedder, catalog, tmp_path / "quiet", progress=False)
    assert capfd.readouterr() == ("", "")
    build_index(embedder, catalog, tmp_path / "shown")
    assert "40/40" in capfd.readouterr().err
