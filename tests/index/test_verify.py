from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import index.verify
from fanoise.errors import CatalogError, InputError
from index.build import build_index
from index.factory import train_index
from index.faiss_file import write_index
from index.manifest import FileRecord, Manifest
from index.search import Index
from index.store import VectorStore
from index.update import add_items, delete_items
from index.verify import verify_index
from tests.index.conftest import draw


def generation(folder):
    return Manifest.read(folder).generation_in(folder)


def test_a_sound_index_has_no_faults(built, embedder):
    assert verify_index(built, embedder=embedder) == []


def test_a_damaged_and_a_missing_thumbnail_are_named(built):
    index = Index.open(built)
    damaged, missing = index.thumbnail(2), index.thumbnail(4)
    data = bytearray(damaged.read_bytes())
    data[50] ^= 0xFF
    damaged.write_bytes(data)
    missing.unlink()
    faults = verify_index(built)
    assert len(faults) == 2
    assert f"{damaged} is damaged" in faults[0]
    assert f"{missing} is missing" in faults[1]


def test_vectors_that_are_not_unit_rows_are_named_even_with_right_checksums(built):
    vectors = np.load(generation(built) / "vectors.npy")
    vectors[5] *= 2
    vectors[9] = np.nan
    np.save(generation(built) / "vectors.npy", vectors)
    manifest = Manifest.read(built)
    replace(manifest, files=manifest.files | {"vectors.npy": FileRecord.of(generation(built) / "vectors.npy")}).write(
        built
    )
    (fault,) = verify_index(built)
    assert "2 rows are not unit vectors, the first being row 5 (id 'g5', length 2 " in fault


def test_a_ledger_that_disagrees_with_the_count_is_a_fault(built):
    replace(Manifest.read(built), rejected=3).write(built)
    (fault,) = verify_index(built)
    assert "rejects.jsonl has 0 lines, but the manifest counts 3" in fault


def test_another_embedder_is_a_fault(built, new_embedder):
    (fault,) = verify_index(built, embedder=new_embedder("other", weights="0000"))
    assert "built with other weights" in fault


def test_a_damaged_manifest_is_a_fault_not_a_crash(built):
    (built / "manifest.json").write_text("{")
    (fault,) = verify_index(built)
    assert "manifest.json is damaged" in fault


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_stored_rows_are_judged_at_their_precision(embedder, new_catalog, tmp_path, precision):
    build_index(embedder, new_catalog(), tmp_path / "index", precision=precision, progress=False)
    assert verify_index(tmp_path / "index") == []
    file = generation(tmp_path / "index") / "vectors.npy"
    vectors = np.load(file)
    vectors[5] = vectors[5] // 2 if precision == "int8" else vectors[5] * np.float16(1.01)
    vectors[9] = 0
    np.save(file, vectors)
    manifest = Manifest.read(tmp_path / "index")
    replace(manifest, files=manifest.files | {"vectors.npy": FileRecord.of(file)}).write(tmp_path / "index")
    (fault,) = verify_index(tmp_path / "index")
    assert "2 rows are not unit vectors, the first being row 5 (id 'g5', " in fault
    assert f"as stored at {precision}" in fault


def resave(folder, name, save):
    """Replace a file of the generation and put its checksum right: what only a look at the content can tell."""
    file = generation(folder) / name
    file.unlink()
    save(file)
    manifest = Manifest.read(folder)
    replace(manifest, files=manifest.files | {name: FileRecord.of(file)}).write(folder)


def resave_vectors(folder, stored):
    """Replace the vectors, in index.faiss as well: what only encoding again can tell."""
    resave(folder, "vectors.npy", lambda file: np.save(file, stored))
    resave(folder, "index.faiss", lambda file: write_index(train_index("Flat", VectorStore(stored)), file))


@pytest.mark.parametrize("rows", [[3, 2], [2, 2], [5, 40]])
def test_tombstones_out_of_order_or_range_are_a_fault(built, rows):
    delete_items(built, ids=["g1", "g2"])
    resave(built, "deleted.npy", lambda file: np.save(file, np.array(rows)))
    (fault,) = verify_index(built)
    assert "deleted.npy must hold rows from 0 to 39 in ascending order" in fault


def test_fewer_tombstones_than_the_manifest_says_are_a_fault(built):
    delete_items(built, ids=["g1", "g2"])
    resave(built, "deleted.npy", lambda file: np.save(file, np.array([1])))
    (fault,) = verify_index(built)
    assert "deleted.npy holds 1 deleted rows, but the manifest says 40 items (2 deleted)" in fault


def test_an_id_that_occurs_twice_is_a_fault(built):
    table = pq.read_table(generation(built) / "items.parquet")
    ids = table["id"].to_pylist()
    ids[8] = "g7"
    table = table.set_column(table.column_names.index("id"), "id", [ids])
    resave(built, "items.parquet", lambda file: pq.write_table(table, file))
    (fault,) = verify_index(built)
    assert "items.parquet cannot be read (its ids are not unique)" in fault


def test_encoding_again_finds_a_vector_that_is_another_items(built, embedder):
    vectors = np.load(generation(built) / "vectors.npy")
    vectors[[7, 8]] = vectors[[8, 7]]
    resave_vectors(built, vectors)
    assert verify_index(built, embedder=embedder) == []
    faults = verify_index(built, embedder=embedder, reencode=40)
    assert [fault.split(")")[0] for fault in faults] == ["row 7 (id 'g7'", "row 8 (id 'g8'"]
    assert "encoded again it has similarity" in faults[0]


def test_encoding_again_says_what_the_catalogue_no_longer_has(built, embedder, tmp_path):
    catalog = tmp_path / "goods" / "catalog.csv"
    lines = catalog.read_text().splitlines(keepends=True)
    catalog.write_text("".join(lines[:5] + lines[6:]).replace("thing number 9", "another thing"))
    (tmp_path / "goods" / "img" / "2.png").unlink()
    faults = verify_index(built, embedder=embedder, reencode=40)
    assert len(faults) == 3
    assert "(id 'g2') cannot be confirmed: file not found" in faults[0]
    assert "(id 'g4') cannot be confirmed: it is no longer in the catalogue" in faults[1]
    assert "(id 'g9') cannot be confirmed: encoded again it has similarity" in faults[2]
    catalog.unlink()
    with pytest.raises(CatalogError, match=r"nothing can be encoded again \(.*no such file.*--reencode 0"):
        verify_index(built, embedder=embedder, reencode=40)
    assert verify_index(built, embedder=embedder) == []
    next((built / "thumbnails").rglob("*.jpg")).unlink()
    missing, catalog_fault = verify_index(built, embedder=embedder, reencode=40)
    assert "is missing" in missing and "nothing can be encoded again" in catalog_fault


def test_deleted_rows_are_not_encoded_again_and_added_ones_are(built, embedder, tmp_path):
    new = tmp_path / "goods" / "new.csv"
    new.write_text("id,text,image\ng3,three,\nn1,one,img/2.png\n")
    add_items(embedder, new, built, existing="replace", drop_columns=True, progress=False)
    delete_items(built, ids=["g4"])
    catalog = tmp_path / "goods" / "catalog.csv"
    catalog.write_text(catalog.read_text().replace("thing number 4,", "something else,"))
    assert verify_index(built, embedder=embedder, reencode=100) == []


def test_a_generation_that_is_replaced_while_it_is_verified_is_no_fault(built, monkeypatch):
    problems, calls = Manifest.file_problems, []

    def meanwhile(self, folder, **options):
        calls.append(self.generation)
        if len(calls) == 1:
            monkeypatch.setattr(Manifest, "file_problems", problems)
            delete_items(built, ids=["g1"])
            delete_items(built, ids=["g2"])
            monkeypatch.setattr(Manifest, "file_problems", meanwhile)
        return problems(self, folder, **options)

    monkeypatch.setattr(Manifest, "file_problems", meanwhile)
    assert verify_index(built) == []
    assert calls[0] == 1 and 3 in calls


def test_a_file_that_goes_while_it_is_read_is_read_in_the_next_generation(built, monkeypatch):
    faults = index.verify._ledger_faults

    def meanwhile(opened):
        monkeypatch.setattr(index.verify, "_ledger_faults", faults)
        delete_items(built, ids=["g1"])
        delete_items(built, ids=["g2"])
        return faults(opened)

    monkeypatch.setattr(index.verify, "_ledger_faults", meanwhile)
    assert verify_index(built) == []


def test_encoding_again_reads_the_catalogue_as_the_build_did(embedder, tmp_path):
    for i in range(4):
        draw(tmp_path / "elsewhere" / f"{i}.png", i)
    (tmp_path / "shop").mkdir()
    catalog = tmp_path / "shop" / "catalog.csv"
    outside = tmp_path / "elsewhere" / "3.png"
    catalog.write_text(f"sku,id,front,back\nx,a,0.png,1.png\nx,b,2.png,{outside}\nx,c,,\nx,d,missing.png,0.png\n")
    build_index(
        embedder,
        catalog,
        tmp_path / "index",
        image=["front", "back"],
        images=tmp_path / "elsewhere",
        text="{sku}: {id}",
        allow_outside=True,
        progress=False,
    )
    assert Index.open(tmp_path / "index").ids == ["a#0", "a#1", "b#0", "b#1", "c", "d#1"]
    assert verify_index(tmp_path / "index", embedder=embedder, reencode=9, allow_outside=True) == []
    draw(tmp_path / "elsewhere" / "1.png", 7)
    catalog.write_text(catalog.read_text().replace("0.png\n", "https://example.org/0.png\n"))
    first, second = verify_index(tmp_path / "index", embedder=embedder, reencode=9, allow_outside=True)
    assert "id 'd#1', URLs are not fetched" in second
    assert "(id 'a#1') cannot be confirmed: encoded again it has similarity" in first


def test_encoding_again_needs_its_own_permissions(embedder, tmp_path):
    draw(tmp_path / "shop" / "a.png", 1)
    draw(tmp_path / "b.png", 2)
    draw(tmp_path / "private" / "c.png", 3)
    catalog, folder = tmp_path / "shop" / "c.csv", tmp_path / "index"
    catalog.write_text("id,image\na,a.png\nb,../b.png\n")
    build_index(embedder, catalog, folder, allow_outside=True, allow_urls=True, progress=False)
    assert verify_index(folder, embedder=embedder, reencode=9, allow_outside=True) == []
    with pytest.raises(InputError, match=r"'\.\./b\.png', of id 'b', leads out of .*--allow-outside"):
        verify_index(folder, embedder=embedder, reencode=9)
    catalog.write_text("id,image\na,a.png\nb,https://localhost/b.png\n")
    with pytest.raises(InputError, match="of id 'b', URLs are not fetched; allow it with --allow-urls"):
        verify_index(folder, embedder=embedder, reencode=9, allow_outside=True)
    (fault,) = verify_index(folder, embedder=embedder, reencode=9, allow_urls=True)
    assert "(id 'b') cannot be confirmed" in fault and "URLs are not fetched" not in fault
    manifest = Manifest.read(folder)
    replace(manifest, catalog=replace(manifest.catalog, options={"images": "../private"})).write(folder)
    with pytest.raises(InputError, match=r"its manifest reads images in .*private, outside the folder of"):
        verify_index(folder, embedder=embedder, reencode=9, allow_urls=True)
    (folder / "generation-000001" / "rejects.jsonl").write_text("no\n")  # a fault goes before
    assert len(verify_index(folder, embedder=embedder, reencode=9)) == 1


def test_encoding_again_needs_no_option_that_is_unknown(built, embedder):
    manifest = Manifest.read(built)
    replace(manifest, catalog=replace(manifest.catalog, options={"later": 1, "on_reject": "print"})).write(built)
    assert verify_index(built, embedder=embedder, reencode=40) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_encoding_again_allows_for_precision_and_truncation_but_not_for_more(
    embedder, new_catalog, tmp_path, precision
):
    folder = tmp_path / "index"
    build_index(embedder, new_catalog(n=300, images=0), folder, dim=5, precision=precision, progress=False)
    assert verify_index(folder, embedder=embedder, reencode=300) == []
    stored = np.load(generation(folder) / "vectors.npy")
    similarity = VectorStore(stored).rows(slice(None)) @ VectorStore(stored).rows(slice(None)).T
    np.fill_diagonal(similarity, -1)
    a, b = np.unravel_index(similarity.argmax(), similarity.shape)
    assert 0.99 < similarity[a, b] < 0.998  # two of the most alike
    stored[[a, b]] = stored[[b, a]]
    resave_vectors(folder, stored)
    faults = verify_index(folder, embedder=embedder, reencode=300)
    assert [fault.split(" ")[1] for fault in faults] == sorted(map(str, (a, b)), key=int)


def test_a_vector_of_the_most_similar_item_is_noticed(embedder, tmp_path, monkeypatch):
    """Within the tolerance of encoding, so that only the other item tells."""
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("id,text\na,one\nb,two\nc,three\n")
    vectors = {"one": np.eye(16)[0], "two": np.eye(16)[0] + 0.06 * np.eye(16)[1], "three": np.eye(16)[2]}
    monkeypatch.setattr(embedder, "vector_of", lambda item: vectors[item.text] / np.linalg.norm(vectors[item.text]))
    build_index(embedder, catalog, tmp_path / "index", progress=False)
    assert verify_index(tmp_path / "index", embedder=embedder, reencode=3) == []
    stored = np.load(generation(tmp_path / "index") / "vectors.npy")
    resave_vectors(tmp_path / "index", stored[[1, 0, 2]])
    faults = verify_index(tmp_path / "index", embedder=embedder, reencode=3)
    assert [fault.split(":")[1] for fault in faults] == [
        " encoded again it is nearer (1.0000) to the vector of 'b' than to its (0.9982)",
        " encoded again it is nearer (1.0000) to the vector of 'a' than to its (0.9982)",
    ]


def test_encoding_again_allows_for_what_bytes_lose_of_a_peaked_vector(embedder, new_catalog, tmp_path, monkeypatch):
    peaked = np.full(2048, 1 / 255)
    peaked[7] = 1
    vector = (peaked / np.linalg.norm(peaked)).astype(np.float32)
    embedder.dim = 2048
    monkeypatch.setattr(embedder, "vector_of", lambda item: vector)
    build_index(embedder, new_catalog(n=2, images=0), tmp_path / "index", precision="int8", progress=False)
    stored = Index.open(tmp_path / "index").vectors.rows(slice(0, 1))[0]
    assert stored @ vector < 0.99
    assert verify_index(tmp_path / "index", embedder=embedder, reencode=2) == []


def test_encoding_again_allows_for_what_truncation_leaves_of_a_vector(embedder, new_catalog, tmp_path, monkeypatch):
    """Arithmetic that moves a vector by a cosine of 0.002 moves its short first part by more."""

    def first_part_turned_by(angle):
        vector = np.zeros(16)
        vector[:2] = 0.3 * np.cos(angle), 0.3 * np.sin(angle)
        vector[9] = np.sqrt(1 - 0.09)
        return lambda item: vector.astype(np.float32)

    monkeypatch.setattr(embedder, "vector_of", first_part_turned_by(0))
    for name, dim in (("whole", 16), ("short", 2)):
        build_index(
            embedder, new_catalog(n=2, images=0, name=f"{name}-goods"), tmp_path / name, dim=dim, progress=False
        )
    for loss, faults in ((0.002, 0), (0.007, 2)):
        monkeypatch.setattr(embedder, "vector_of", first_part_turned_by(np.arccos(1 - loss / 0.09)))
        assert len(verify_index(tmp_path / "whole", embedder=embedder, reencode=2)) == faults
        assert len(verify_index(tmp_path / "short", embedder=embedder, reencode=2)) == faults
