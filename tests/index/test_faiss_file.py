"""FAISS files as an attacker, or a bad disk, might leave them."""

import struct
from pathlib import Path

import faiss
import numpy as np
import pytest

from fanoise.errors import ArtifactError
from index.faiss_file import read_header, read_index, reserve, unexpected_parts, write_index

ROWS, DIM = 400, 16
READ = [
    "Flat", "SQ8", "SQfp16", "PQ4x4", "PQ4x4fs", "RaBitQ", "RaBitQfs", "HNSW8", "HNSW8,SQ8", "IVF8,Flat",
    "IVF8_HNSW4,Flat", "IVF8,SQ8", "IVF8,PQ4x4", "IVF8,PQ4x4fs", "IVF8,PQ4x4fsr,RFlat", "IVF8,PQ4x4,Refine(SQfp16)",
    "IVF8,RaBitQ", "IVF8,RaBitQfs", "OPQ4,IVF8,PQ4x4", "PCA8,Flat", "PCAR8,IVF8,Flat", "RR8,SQ8", "L2norm,Flat",
    "HR,Flat",
]  # fmt: skip
REFUSED = {
    "NSG8": "IndexNSGFlat",
    "RQ2x4": "IndexResidualQuantizer",
    "IVF8,RQ2x4": "IndexIVFResidualQuantizer",
    "IVF8,FlatDedup": "IndexIVFFlatDedup",
    "IVF120_NSG8,Flat": "IndexNSGFlat",
    "Pad32,Flat": "RemapDimensionsTransform",
    "PCA8,RQ2x4": "IndexResidualQuantizer",
    "RQ2x4,RFlat": "IndexResidualQuantizer",
}


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(index, path):
    faiss.write_index(index, str(path))
    return path


def make(factory, vectors):
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index


@pytest.mark.parametrize("factory", READ)
def test_every_type_that_is_offered_is_read_back(vectors, tmp_path, factory):
    index = make(factory, vectors)
    file = write(index, tmp_path / "i.faiss")
    assert read_header(file) == (DIM, ROWS)
    back = read_index(file, rows=ROWS, dim=DIM, factory=factory)
    assert np.array_equal(back.search(vectors[:20], 5)[1], index.search(vectors[:20], 5)[1])


@pytest.mark.parametrize(
    ("made", "said", "message"),
    [
        ("HNSW8", "Flat", r"IndexHNSWFlat \(dim 16, 8 links\) where factory 'Flat', .*, has IndexFlatIP \(dim 16\)"),
        ("IVF4,Flat", "Flat", r"IndexIVFFlat \(dim 16, 4 lists\) where"),
        ("Flat", "HNSW8", r"IndexFlatIP \(dim 16\) where"),
        ("IVF4,Flat", "IVF8,Flat", "4 lists.*8 lists"),
        ("HNSW8", "HNSW16", "8 links.*16 links"),
        ("PQ4x4", "PQ8x4", "4 codes of 4 bits.*8 codes"),
        ("RaBitQ", "RaBitQ2", "1 bits.*2 bits"),
        ("SQ8", "SQ6", "scalar type 0.*scalar type"),
        ("IVF8_HNSW4,Flat", "IVF8,Flat", r"IndexHNSWFlat \(dim 16, 4 links\).*has IndexFlatIP"),
        ("IVF8,PQ4x4,RFlat", "IVF8,PQ4x4,Refine(SQ8)", "IndexRefineFlat.*has IndexRefine"),
        ("IVF8,PQ4x4,Refine(SQfp16)", "IVF8,PQ4x4,Refine(SQ8)", "scalar type 4.*scalar type 0"),
        ("PCA8,Flat", "PCA4,Flat", r"PCAMatrix \(dim 16 to 8\).*PCAMatrix \(dim 16 to 4\)"),
        ("PCA8,Flat", "Flat", "IndexPreTransform"),
        ("L2norm,PCA8,Flat", "L2norm,Flat", "PCAMatrix.*has IndexFlatIP"),
        (
            "Flat",
            "no such",
            "is said to be of a type that there is not: factory 'no such' has ' ' in it, which no type",
        ),
        ("Flat", "Flat32", "is said to be of a type that there is not: factory 'Flat32' is not one that FAISS"),
    ],
)
def test_another_type_than_the_manifest_says_is_refused(vectors, tmp_path, made, said, message):
    file = write(make(made, vectors), tmp_path / "i.faiss")
    with pytest.raises(ArtifactError, match=message) as refusal:
        read_index(file, rows=ROWS, dim=DIM, factory=said)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("A" * 30_000, "has 'A{20}' in it"),
        (",".join(["L2norm"] * 5000), "has 34999 characters; 256 is the most"),
        ("IVF150000000,Flat", "asks for IVF150000000 where IVF4194304 is the most"),
        ("IVF200M,Flat", "asks for IVF200M where IVF4194304 is the most"),
        ("IVF4194304(IVF4194304,Flat),Flat", "asks for IVF4194304 where"),
        ("PQ32x24", "asks for x24 where x12 is the most"),
        ("PCA200000,PQ8x12", "asks for 200000 where 1024 is the most for dim 16"),
        ("HNSW100000000", "asks for HNSW100000000 where"),
        ("OPQ4_0,PQ4", "asks for 0 where 1 is the least"),
        ("Residual3x10,Flat", "has 'Residual' in it, which no type has that is read"),
        ("IMI2x12,Flat", "has 'IMI' in it"),
        ("HNSW8_2x8+PQ4", r"has '\+' in it"),
        ("Pad500000000,Flat", "has 'Pad' in it"),
    ],
)
def test_faiss_is_asked_for_nothing_large_because_a_manifest_says_so(vectors, tmp_path, monkeypatch, factory, message):
    """Each would end the process, by the depth of FAISS's recursion, or allocate gigabytes before it is refused."""
    file = write(make("Flat", vectors), tmp_path / "i.faiss")
    monkeypatch.setattr(faiss, "index_factory", None)
    with pytest.raises(ArtifactError, match=message):
        read_index(file, rows=ROWS, dim=DIM, factory=factory)


@pytest.mark.parametrize("factory", REFUSED)
def test_other_types_are_refused_by_name_at_any_depth(vectors, tmp_path, factory):
    file = write(make(factory, vectors), tmp_path / "i.faiss")
    with pytest.raises(ArtifactError, match=f"holds a {REFUSED[factory]}, which is not one of the types"):
        read_index(file, rows=ROWS, dim=DIM, factory="Flat")


def test_an_id_map_is_refused(vectors, tmp_path):
    index = faiss.IndexIDMap(faiss.IndexFlatIP(DIM))
    index.add_with_ids(vectors, np.arange(ROWS)[::-1].copy())
    with pytest.raises(ArtifactError, match="holds a IndexIDMap"):
        read_index(write(index, tmp_path / "i.faiss"), rows=ROWS, dim=DIM, factory="Flat")


def test_lists_in_a_file_that_the_index_names_are_refused(vectors, tmp_path):
    index = make("IVF8,Flat", vectors)
    (tmp_path / "elsewhere").mkdir()
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(tmp_path / "elsewhere" / "lists"))
    lists.merge_from(index.invlists, 0)
    index.replace_invlists(lists)
    file = write(index, tmp_path / "i.faiss")
    assert list(unexpected_parts(index)) == ["OnDiskInvertedLists"]
    with pytest.raises(ArtifactError, match=r"i\.faiss cannot be read"):  # looked for beside the index, not elsewhere
        read_index(file, rows=ROWS, dim=DIM, factory="Flat")
    (tmp_path / "lists").write_bytes((tmp_path / "elsewhere" / "lists").read_bytes())
    with pytest.raises(ArtifactError, match="holds a OnDiskInvertedLists"):
        read_index(file, rows=ROWS, dim=DIM, factory="Flat")


def test_another_metric_is_refused(vectors, tmp_path):
    index = faiss.IndexFlatL2(DIM)
    index.add(vectors)
    with pytest.raises(ArtifactError, match="another metric"):
        read_index(write(index, tmp_path / "i.faiss"), rows=ROWS, dim=DIM, factory="Flat")


def test_a_size_that_the_manifest_does_not_say_is_refused_before_faiss_reads(vectors, tmp_path, monkeypatch):
    file = write(make("Flat", vectors), tmp_path / "i.faiss")
    monkeypatch.setattr(faiss, "read_index", None)
    for rows, dim in ((ROWS + 1, DIM), (ROWS, DIM - 1)):
        with pytest.raises(ArtifactError, match=f"holds {ROWS} vectors of dim {DIM}, not {rows} of dim {dim}"):
            read_index(file, rows=rows, dim=dim, factory="Flat")


@pytest.mark.parametrize("size", [0, 3, 15])
def test_a_stump_is_refused(tmp_path, size):
    (tmp_path / "i.faiss").write_bytes(b"IxFI"[:size].ljust(size))
    with pytest.raises(ArtifactError, match=f"has {size} bytes, too few"):
        read_index(tmp_path / "i.faiss", rows=1, dim=1, factory="Flat")


def test_a_file_that_asks_for_more_memory_than_it_has_bytes_is_refused(vectors, tmp_path):
    file = write(make("Flat", vectors), tmp_path / "i.faiss")
    data = bytearray(file.read_bytes())
    at = data.index(struct.pack("<q", ROWS * DIM), 20)  # the length of the vectors, in floats
    data[at : at + 8] = struct.pack("<q", 1 << 36)  # 256 GiB, below FAISS's own limit of 1 TiB
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"i\.faiss cannot be read \(.*vector_byte_limit"):
        read_index(file, rows=ROWS, dim=DIM, factory="Flat")


def test_more_lists_than_rows_are_refused(vectors, tmp_path):
    file = write(make("IVF8,Flat", vectors), tmp_path / "i.faiss")
    data = bytearray(file.read_bytes())
    at = data.index(b"ilar") + 4
    assert struct.unpack_from("<q", data, at)[0] == 8
    struct.pack_into("<q", data, at, ROWS + 1)
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match="exceeds deserialization_loop_limit"):
        read_index(file, rows=ROWS, dim=DIM, factory="Flat")


def flat(vectors, *, rows=ROWS, dim=DIM, factory="Flat"):
    index = faiss.IndexFlatIP(dim)
    index.add(np.resize(vectors, (rows, dim)))
    return index


def test_a_quantizer_of_another_size_is_refused(vectors, tmp_path):
    for size in ({"rows": 8, "dim": 4096}, {"rows": 9, "dim": DIM}):  # FAISS reads it, and beyond the query's end then
        index = make("IVF8,Flat", vectors)
        index.quantizer = other = flat(vectors, **size)
        file = write(index, tmp_path / "i.faiss")
        with pytest.raises(
            ArtifactError, match=rf"holds {other.ntotal} vectors of dim {other.d} where there must be 8"
        ):
            read_index(file, rows=ROWS, dim=DIM, factory="Flat")


@pytest.mark.parametrize("part", ["base_index", "refine_index"])
def test_a_refined_index_of_other_rows_is_refused(vectors, tmp_path, part):
    for size in ({"rows": ROWS, "dim": 4 * DIM}, {"rows": 3, "dim": DIM}):
        index = make("PQ4x4,RFlat", vectors)
        setattr(index, part, other := flat(vectors, **size))
        file = write(index, tmp_path / "i.faiss")
        with pytest.raises(
            ArtifactError, match=rf"holds {other.ntotal} vectors of dim {other.d} where there must be 400"
        ):
            read_index(file, rows=ROWS, dim=DIM, factory="Flat")


@pytest.mark.parametrize("factory", ["IVF8,Flat", "IVF8,PQ4x4fs"])
@pytest.mark.parametrize("row", [-1, ROWS, 1 << 40])
def test_rows_that_there_are_not_in_a_list_are_refused(vectors, tmp_path, factory, row):
    index = make(factory, vectors)
    faiss.rev_swig_ptr(index.invlists.get_ids(5), 1)[0] = row
    file = write(index, tmp_path / "i.faiss")
    with pytest.raises(ArtifactError, match="a row beyond its 400 in inverted list 5"):
        read_index(file, rows=ROWS, dim=DIM, factory="Flat")


def test_codes_of_another_dim_are_refused(vectors, tmp_path):
    index = make("PQ4x4", vectors)
    index.pq = faiss.ProductQuantizer(8 * DIM, 4, 4)
    index.pq.train(np.resize(vectors, (ROWS, 8 * DIM)))
    with pytest.raises(ArtifactError, match="codes of dim 128 in an index of dim 16"):
        read_index(write(index, tmp_path / "i.faiss"), rows=ROWS, dim=DIM, factory="Flat")


def test_the_limits_of_the_process_are_put_back(vectors, tmp_path):
    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    file = write(make("Flat", vectors), tmp_path / "i.faiss")
    read_index(file, rows=ROWS, dim=DIM, factory="Flat")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtifactError):
        read_index(file, rows=ROWS, dim=DIM, factory="Flat")
    assert (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()) == before


def test_written_files_are_faiss_own(tmp_path):
    index = faiss.index_factory(DIM, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    index.train(vectors)
    index.add(vectors)
    write_index(index, tmp_path / "ours")
    faiss.write_index(index, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_last_bytes_that_find_no_room_are_an_error(tmp_path):
    """FAISS's own writer leaves them to fclose, in a destructor, and says nothing."""
    index = faiss.IndexFlatIP(DIM)
    index.add(np.ones((3, DIM), np.float32))
    with pytest.raises(OSError, match="No space left on device"):
        write_index(index, Path("/dev/full"))
    index.add(np.ones((90_000, DIM), np.float32))
    with pytest.raises(OSError, match="No space left on device"):
        write_index(index, Path("/dev/full"))


@pytest.mark.parametrize(
    ("factory", "flat"),
    [
        ("Flat", lambda index: index),
        ("HNSW8", lambda index: index.storage),
        ("PCA8,Flat", lambda index: index.index),
        ("IVF4,PQ4x4,RFlat", lambda index: index.refine_index),
    ],
)
def test_rows_added_to_a_reserved_index_are_never_moved(factory, flat):
    vectors = np.random.default_rng(0).normal(size=(2000, DIM)).astype(np.float32)
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors[:100])
    plain = faiss.clone_index(index)
    reserve(index, 1900)
    assert index.ntotal == 100
    places = set()
    for start in range(100, 2000, 100):
        index.add(vectors[start : start + 100])
        plain.add(vectors[start : start + 100])
        places.add(int(faiss.downcast_index(flat(index)).codes.data()))
    assert len(places) == 1
    assert faiss.serialize_index(index).tobytes() == faiss.serialize_index(plain).tobytes()
