import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import index.ann
import index.build
from fanoise.errors import CatalogError, InputError
from index.build import build_index
from index.manifest import Manifest
from index.search import Index
from index.verify import verify_index
from tests.index.conftest import draw


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def generation(folder: Path) -> Path:
    return Manifest.read(folder).generation_in(folder)


def pictures(folder: Path) -> list[Path]:
    return sorted((folder / "thumbnails").rglob("*.*"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_vectors_are_the_embedders_in_catalogue_order(embedder, built, tmp_path):
    from fanoise.catalog import read_catalog

    expected = embedder.encode(list(read_catalog(tmp_path / "goods" / "catalog.csv")))
    vectors = np.load(generation(built) / "vectors.npy", allow_pickle=False)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, expected)


def test_batch_size_does_not_change_the_vectors(embedder, built, tmp_path):
    build_index(embedder, tmp_path / "goods" / "catalog.csv", tmp_path / "b", batch_size=7, progress=False)
    assert np.array_equal(
        np.load(generation(tmp_path / "b") / "vectors.npy"), np.load(generation(built) / "vectors.npy")
    )


def test_manifest_tells_what_was_built(embedder, built):
    manifest = Manifest.read(built)
    assert (manifest.count, manifest.rejected, manifest.dim) == (40, 0, 16)
    assert (manifest.factory, manifest.ann_overlap, manifest.metric) == ("Flat", 1.0, "ip")
    assert "exact" in manifest.factory_reason
    assert manifest.embedder.fingerprint == embedder.fingerprint
    assert manifest.embedder.noise["strength"] == 0.1
    assert manifest.embedder.path == "../run"
    assert manifest.catalog.path == "../goods/catalog.csv"
    assert set(manifest.files) == {"vectors.npy", "items.parquet", "index.faiss", "rejects.jsonl", "deleted.npy"}
    assert (manifest.generation, manifest.live, manifest.precision, manifest.embedder_dim) == (1, 40, "fp32", 16)
    assert entries(built) == [".lock", "generation-000001", "manifest.json", "thumbnails"]
    assert entries(built / "generation-000001") == sorted(manifest.files)


def test_a_hub_embedder_is_named_by_its_id(new_embedder, new_catalog, tmp_path):
    embedder = new_embedder()
    embedder.path = "some-org/some-model"
    manifest = build_index(embedder, new_catalog(), tmp_path / "index", progress=False)
    assert (manifest.embedder.path, manifest.embedder.hub_id) == (None, "some-org/some-model")


def test_thumbnails_are_small_named_by_content_and_without_metadata(embedder, tmp_path):
    photo = Image.new("RGB", (900, 300), "red")
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    exif[0x0112] = 6  # rotated by a quarter: the thumbnail must be upright
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos" / "..%2f name with 'quotes'.jpg", exif=exif, comment=b"secret")
    build_index(embedder, tmp_path / "photos", tmp_path / "index", progress=False)
    (file,) = pictures(tmp_path / "index")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert file == tmp_path / "index" / "thumbnails" / sha256[:2] / f"{sha256}.jpg"
    assert file.stat().st_mode & 0o777 == 0o644
    with Image.open(file) as thumbnail:
        assert thumbnail.size == (107, 320)
        assert not thumbnail.getexif()
        assert "comment" not in thumbnail.info


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("length", [0, 60, None])
def test_building_again_mends_a_damaged_thumbnail(embedder, new_catalog, tmp_path, length, fresh):
    catalog, out = new_catalog(), tmp_path / "index"
    build_index(embedder, catalog, out, progress=False)
    damaged = pictures(out)[2]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:59] + bytes([content[59] ^ 1]) + content[60:] if length is None else content[:length])
    assert len(verify_index(out)) == 1
    embedder.module.batches.clear()
    build_index(embedder, catalog, out, fresh=fresh, progress=False)
    assert verify_index(out) == [] and damaged.read_bytes() == content
    assert sum(embedder.module.batches) == (40 if fresh else 1)


def test_bad_images_go_to_the_ledger_and_nowhere_else(embedder, new_catalog, tmp_path):
    bad = [
        {"id": "gone", "text": "a", "image": "img/gone.png", "colour": "red", "price": "1"},
        {"id": "junk", "text": "b", "image": "img/junk.jpg", "colour": "red", "price": "1"},
        {"id": "last", "text": "c", "image": "", "colour": "red", "price": "1"},
    ]
    catalog = new_catalog(extra=bad)
    (catalog.parent / "img" / "junk.jpg").write_bytes(b"no image at all")
    manifest = build_index(embedder, catalog, tmp_path / "index", batch_size=4, progress=False)
    ledger = [json.loads(line) for line in (generation(tmp_path / "index") / "rejects.jsonl").read_text().splitlines()]
    assert [(entry["id"], entry["path"]) for entry in ledger] == [("gone", "img/gone.png"), ("junk", "img/junk.jpg")]
    assert ledger[0]["reason"] == "file not found"
    assert "not an image" in ledger[1]["reason"]
    assert (manifest.count, manifest.rejected) == (41, 2)
    index = Index.open(tmp_path / "index")
    assert index.ids[-1] == "last"
    assert np.array_equal(index.vectors.rows(slice(40, 41))[0], embedder.encode(list(read_last(catalog)))[0])


def read_last(catalog):
    from fanoise.catalog import read_catalog

    return list(read_catalog(catalog))[-1:]


def test_an_image_that_only_the_model_refuses_does_not_take_its_batch_along(new_embedder, new_catalog, tmp_path):
    embedder = new_embedder(refuse="thing number 3")
    manifest = build_index(embedder, new_catalog(), tmp_path / "index", batch_size=8, progress=False)
    assert (manifest.count, manifest.rejected) == (39, 1)
    entry = json.loads((generation(tmp_path / "index") / "rejects.jsonl").read_text())
    assert entry == {"id": "g3", "path": "img/3.png", "reason": "too thin for the vision tower"}
    assert "g3" not in Index.open(tmp_path / "index").ids


def test_an_embedding_that_is_not_finite_is_rejected(embedder, new_catalog, tmp_path):
    extra = [{"id": "nan", "text": "not a number", "image": "", "colour": "red", "price": "1"}]
    manifest = build_index(embedder, new_catalog(extra=extra), tmp_path / "index", progress=False)
    assert manifest.rejected == 1
    assert "not finite" in (generation(tmp_path / "index") / "rejects.jsonl").read_text()


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
    assert embedder.module.batches == []
    assert entries(tmp_path) == before


def test_field_types_survive_and_mixed_ones_become_text(embedder, tmp_path):
    rows = [
        {"text": "a", "price": 12.5, "stock": 3, "sale": True, "code": 7, "tags": ["x"], "odd": {}},
        {"text": "b", "price": 20, "stock": None, "sale": False, "code": "7b", "tags": [], "odd": {}, "late": 2**70},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    fields = pq.read_table(generation(tmp_path / "index") / "items.parquet")["fields"].to_pylist()
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
    before = {name: data for name, data in contents(built).items() if "thumb" not in name and name != ".lock"}
    catalog, around = new_catalog(name="other"), [*entries(tmp_path), "other"]

    def break_off(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(index.ann, "train_index", break_off)
    with pytest.raises(KeyboardInterrupt):
        build_index(embedder, catalog, built, progress=False)
    assert {name: data for name, data in contents(built).items() if name in before} == before
    assert entries(built) == [".lock", "encoding", "generation-000001", "manifest.json", "thumbnails"]
    assert entries(tmp_path) == sorted(set(around))
    assert len(Index.open(built, embedder=embedder)) == 40


def test_an_index_is_replaced_by_the_next_build(embedder, built, new_catalog):
    build_index(embedder, new_catalog(n=9, images=1, name="other"), built, progress=False)
    assert len(Index.open(built)) == 9
    assert Manifest.read(built).generation == 2
    assert len(pictures(built)) == 6  # the first picture is the same; the generation before may still be read
    build_index(embedder, new_catalog(n=9, images=1, name="third"), built, progress=False)
    assert entries(built) == [".lock", "generation-000002", "generation-000003", "manifest.json", "thumbnails"]
    assert len(pictures(built)) == 1


def test_a_folder_that_is_no_index_is_never_replaced(embedder, new_catalog, tmp_path):
    catalog = new_catalog()
    with pytest.raises(InputError, match="not empty and not an index"):
        build_index(embedder, catalog, catalog.parent, progress=False)
    assert catalog.exists()


@pytest.mark.parametrize("manifest", ['{"manifest_version": 3, "name": "an extension"}', "[]", "not JSON"])
def test_a_manifest_of_something_else_makes_no_index(embedder, new_catalog, tmp_path, manifest):
    site = tmp_path / "site"
    site.mkdir()
    for name, text in (("manifest.json", manifest), ("items.parquet", "mine")):
        (site / name).write_text(text)
    with pytest.raises(InputError, match="not empty and not an index"):
        build_index(embedder, new_catalog(), site, progress=False)
    assert entries(site) == ["items.parquet", "manifest.json"]
    assert (site / "manifest.json").read_text() == manifest


def test_foreign_files_beside_an_index_stay(embedder, built, tmp_path):
    (built / "notes.txt").write_text("mine")
    (built / "thumbnails" / "mine.png").write_text("mine")
    (built / "items.parquet").write_text("mine")
    build_index(embedder, tmp_path / "goods" / "catalog.csv", built, progress=False)
    for name in ("notes.txt", "thumbnails/mine.png", "items.parquet"):
        assert (built / name).read_text() == "mine"


@pytest.mark.parametrize("damage", ["", "{}", '{"format_version": 1}'])
def test_an_index_that_cannot_be_read_is_replaced_once_the_new_one_is_whole(embedder, built, tmp_path, damage):
    (built / "manifest.json").write_text(damage)
    with pytest.raises(CatalogError, match="no such"):
        build_index(embedder, tmp_path / "none.csv", built, progress=False)
    assert "generation-000001" in entries(built)
    build_index(embedder, tmp_path / "goods" / "catalog.csv", built, progress=False)
    assert entries(built) == [".lock", "generation-000001", "generation-000002", "manifest.json", "thumbnails"]
    assert len(Index.open(built)) == 40
    assert len(pictures(built)) == 6


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precision_and_dim_are_what_is_stored_and_searched(embedder, new_catalog, tmp_path, precision):
    catalog = new_catalog(n=200)
    build_index(embedder, catalog, tmp_path / "whole", dim=8, progress=False)
    build_index(embedder, catalog, tmp_path / "index", dim=8, precision=precision, progress=False)
    manifest = Manifest.read(tmp_path / "index")
    assert (manifest.dim, manifest.embedder_dim, manifest.precision) == (8, 16, precision)
    stored = np.load(generation(tmp_path / "index") / "vectors.npy")
    assert (stored.shape, stored.dtype) == ((200, 8), np.dtype("f2" if precision == "fp16" else "i1"))
    whole = np.load(generation(tmp_path / "whole") / "vectors.npy")
    from fanoise.catalog import read_catalog

    full = embedder.encode(list(read_catalog(catalog)))[:, :8].astype(np.float64)
    assert np.allclose(whole, full / np.linalg.norm(full, axis=1, keepdims=True), atol=1e-6)
    queries = embedder.encode(list(read_catalog(catalog))[:50], role="query")
    scores, rows = Index.open(tmp_path / "index").search(queries, 1)
    assert rows[:, 0].tolist() == list(range(50))  # each finds itself, though the queries are the embedder's, of dim 16
    assert np.allclose(scores, 1, atol=3e-3)
    short = queries[:, :8] / np.linalg.norm(queries[:, :8], axis=1, keepdims=True)
    assert np.array_equal(Index.open(tmp_path / "index").search(short, 5)[1],
                          Index.open(tmp_path / "index").search(queries, 5)[1])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 17}, "dim must be from 1 to 16, .*got 17"),
        ({"dim": 0}, "dim must be from 1"),
        ({"precision": "fp8"}, "one of fp32, fp16, int8, got 'fp8'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(embedder, new_catalog, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        build_index(embedder, new_catalog(), tmp_path / "index", progress=False, **options)
    assert not (tmp_path / "index").exists()


def test_a_row_that_truncation_leaves_nothing_of_is_rejected(embedder, new_catalog, tmp_path, monkeypatch):
    vector_of, last = embedder.vector_of, np.eye(16, dtype=np.float32)[15]
    monkeypatch.setattr(embedder, "vector_of", lambda item: last if item.id == "g5" else vector_of(item))
    manifest = build_index(embedder, new_catalog(), tmp_path / "index", dim=8, progress=False)
    assert (manifest.count, manifest.rejected) == (39, 1)
    assert "g5" in (generation(tmp_path / "index") / "rejects.jsonl").read_text()


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


def test_an_index_inside_its_own_catalogue_is_refused(embedder, tmp_path):
    photos = tmp_path / "photos"
    draw(photos / "hats" / "a.png", 1)
    draw(tmp_path / "other.png", 2)
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    for catalog, out in [
        (photos, photos / "index"),
        (photos, photos / ".index"),
        (photos, tmp_path / "link" / "hats" / "index"),
        (tmp_path / "link", photos / "index"),
        (photos / "**" / "*.parquet", photos / "index"),
        (photos / "*" / "{0..3}.parquet", photos / "index"),
    ]:
        with pytest.raises(InputError, match=r"lies in the catalogue .*; name a folder outside it"):
            build_index(embedder, catalog, out, progress=False)
    assert entries(photos) == ["hats"]
    build_index(embedder, photos, tmp_path / "photos-index", progress=False)
    assert Index.open(tmp_path / "photos-index").ids == ["hats/a.png"]


def test_a_pattern_of_files_beside_the_index_is_no_catalogue_around_it(embedder, tmp_path):
    for name in "ab":
        pq.write_table(pa.table({"id": [name], "text": [name]}), tmp_path / f"part-{name}.parquet")
    build_index(embedder, tmp_path / "part-*.parquet", tmp_path / "index", progress=False)
    build_index(embedder, tmp_path / "part-*.parquet", tmp_path / "index", progress=False)
    assert Index.open(tmp_path / "index").ids == ["a", "b"]
