from dataclasses import replace

import numpy as np

from index.manifest import FileRecord, Manifest
from index.verify import verify_index


def test_a_sound_index_has_no_faults(built, embedder):
    assert verify_index(built, embedder=embedder) == []


def test_a_damaged_and_a_missing_thumbnail_are_named(built):
    with (built / "thumbnails" / "2.jpg").open("r+b") as file:
        file.seek(50)
        byte = file.read(1)
        file.seek(50)
        file.write(bytes([byte[0] ^ 0xFF]))
    (built / "thumbnails" / "4.jpg").unlink()
    damaged, missing = verify_index(built)
    assert "2.jpg is damaged" in damaged
    assert "4.jpg is missing" in missing


def test_vectors_that_are_not_unit_rows_are_named_even_with_right_checksums(built):
    vectors = np.load(built / "vectors.npy")
    vectors[5] *= 2
    vectors[9] = np.nan
    np.save(built / "vectors.npy", vectors)
    manifest = Manifest.read(built)
    replace(manifest, files=manifest.files | {"vectors.npy": FileRecord.of(built / "vectors.npy")}).write(built)
    (fault,) = verify_index(built)
    assert "2 rows are not unit vectors, the first being row 5 (id 'g5', length 2)" in fault


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
