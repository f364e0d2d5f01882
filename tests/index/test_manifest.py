import json
from dataclasses import replace

import faiss
import numpy as np
import pytest

import index.faiss_file
from fanoise.errors import ArtifactError, InputError
from index.manifest import GENERATION_FILES, FileRecord, Manifest
from index.search import Index


def generation(folder):
    return Manifest.read(folder).generation_in(folder)


def flip_a_byte(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_a_manifest_reads_back_as_it_was_written(built, tmp_path):
    manifest = Manifest.read(built)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


@pytest.mark.parametrize("name", ["vectors.npy", "items.parquet", "index.faiss", "deleted.npy"])
def test_a_flipped_byte_is_refused_and_the_file_named(built, name):
    file = generation(built) / name
    for at in (0, file.stat().st_size // 2, -1):
        flip_a_byte(file, at)
        with pytest.raises(ArtifactError, match=rf"{name} is damaged.*rebuild"):
            Index.open(built)
        flip_a_byte(file, at)
    assert len(Index.open(built)) == 40


def test_a_changed_ledger_is_refused(built):
    (generation(built) / "rejects.jsonl").write_text("{}\n")
    with pytest.raises(ArtifactError, match=r"rejects\.jsonl has 3 bytes instead of 0"):
        Index.open(built)


def test_a_flipped_byte_anywhere_in_the_manifest_is_refused(built):
    size = (built / "manifest.json").stat().st_size
    for at in range(0, size - 1, 37):
        flip_a_byte(built / "manifest.json", at)
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            Index.open(built)
        flip_a_byte(built / "manifest.json", at)


@pytest.mark.parametrize("name", GENERATION_FILES)
def test_a_missing_file_is_named(built, name):
    (generation(built) / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        Index.open(built)


def test_faiss_never_sees_a_file_with_another_checksum(built, monkeypatch):
    def never(path, flags):
        raise AssertionError("faiss read an unchecked file")

    monkeypatch.setattr(index.faiss_file.faiss, "read_index", never)
    flip_a_byte(generation(built) / "index.faiss")
    with pytest.raises(ArtifactError):
        Index.open(built)


def test_without_verify_only_sizes_are_compared(built):
    data = bytearray((generation(built) / "rejects.jsonl").read_bytes())
    (generation(built) / "rejects.jsonl").write_bytes(data)
    flip_a_byte(generation(built) / "vectors.npy")
    assert len(Index.open(built, verify=False)) == 40
    with (generation(built) / "vectors.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"vectors\.npy has \d+ bytes instead of"):
        Index.open(built, verify=False)


def test_a_value_changed_by_hand_is_refused(built):
    text = (built / "manifest.json").read_text()
    (built / "manifest.json").write_text(text.replace('"strength": 0.1', '"strength": 0.2'))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged \(its digest"):
        Index.open(built)


@pytest.mark.parametrize("shape", [(39, 16), (40, 8)])
def test_a_faiss_index_over_other_vectors_is_refused(built, shape):
    manifest = Manifest.read(built)
    other = faiss.IndexFlatIP(shape[1])
    other.add(np.zeros(shape, dtype=np.float32))
    faiss.write_index(other, str(generation(built) / "index.faiss"))
    files = manifest.files | {"index.faiss": FileRecord.of(generation(built) / "index.faiss")}
    replace(manifest, files=files).write(built)
    with pytest.raises(ArtifactError, match=rf"index\.faiss holds {shape[0]} vectors of dim {shape[1]}"):
        Index.open(built)


def test_counts_that_disagree_are_refused(built):
    replace(Manifest.read(built), count=39).write(built)
    with pytest.raises(ArtifactError, match=r"vectors\.npy holds 40 fp32 vectors of dim 16.*manifest says 39"):
        Index.open(built)


def test_pickled_vectors_are_never_loaded(built):
    manifest = Manifest.read(built)
    np.save(generation(built) / "vectors.npy", np.array([{"not": "numbers"}], dtype=object))
    files = manifest.files | {"vectors.npy": FileRecord.of(generation(built) / "vectors.npy")}
    replace(manifest, files=files).write(built)
    with pytest.raises(ArtifactError, match=r"vectors\.npy cannot be read"):
        Index.open(built)


def test_a_manifest_cannot_name_files_outside_its_folder(built):
    manifest = Manifest.read(built)
    record = manifest.files["index.faiss"]
    with pytest.raises(ValueError, match="files must be"):
        replace(manifest, files={"../../elsewhere.faiss": record})
    object.__setattr__(manifest, "files", {"../../elsewhere.faiss": record})
    manifest.write(built)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged \(files must be"):
        Index.open(built)


def test_another_format_version_is_named(built):
    content = json.loads((built / "manifest.json").read_text())
    (built / "manifest.json").write_text(json.dumps(content | {"format_version": 1}))
    with pytest.raises(ArtifactError, match="format version 1, this version reads 2; rebuild it with"):
        Index.open(built)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format_version": 2}', "\x00\xff", "[" * 100_000])
def test_nonsense_in_place_of_a_manifest_is_one_line(built, text):
    (built / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged") as caught:
        Index.open(built)
    assert "\n" not in str(caught.value)


def test_a_folder_without_manifest_is_no_index(tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.json; build one with"):
        Index.open(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        Index.open(tmp_path / "nowhere")
