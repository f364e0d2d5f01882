from dataclasses import replace

import faiss
import numpy as np
import pytest

from index.build import build_index
from index.factory import train_index
from index.faiss_file import write_index
from index.held_out import measure_overlap
from index.manifest import FAISS_INDEX, FileRecord, Manifest
from index.search import Index
from index.store import VectorStore
from index.update import add_items, delete_items
from index.verify import verify_index
from tests.index.test_faiss_file import READ

ROWS = 300


@pytest.fixture
def folder(embedder, new_catalog, tmp_path):
    build_index(embedder, new_catalog(n=ROWS, images=0), tmp_path / "index", progress=False)
    return tmp_path / "index"


def put(folder, factory, index, vectors):
    """Replace index.faiss, with right checksums and the recall that an index over `vectors` has."""
    manifest = Manifest.read(folder)
    file = manifest.generation_in(folder) / FAISS_INDEX
    file.unlink()
    write_index(index, file)
    files = manifest.files | {FAISS_INDEX: FileRecord.of(file)}
    overlap = measure_overlap(train_index(factory, vectors), vectors)
    replace(manifest, files=files, factory=factory, ann_overlap=overlap).write(folder)


@pytest.mark.parametrize("factory", READ)
def test_a_sound_index_of_any_type_agrees_and_one_with_shifted_rows_does_not(folder, factory):
    vectors = VectorStore.open(folder / "generation-000001" / "vectors.npy")
    put(folder, factory, train_index(factory, vectors), vectors)
    assert verify_index(folder) == []
    index = train_index(factory, vectors)
    index.reset()
    index.add(np.roll(vectors.rows(slice(None)), 1, axis=0))  # what a search finds is the neighbour's
    put(folder, factory, index, vectors)
    (fault,) = verify_index(folder)
    if factory == "IVF8,RaBitQfs":  # which FAISS cannot read back
        assert "index.faiss: a search finds 0.0" in fault
        return
    number = int(fault.split("index.faiss: ")[1].split(" of 256 rows")[0])
    assert "rows looked at are not those of vectors.npy, the first being row " in fault
    assert number > 200


@pytest.mark.parametrize("part", ["base_index", "refine_index"])
def test_a_refined_index_must_agree_in_both_its_parts(folder, part):
    vectors = VectorStore.open(folder / "generation-000001" / "vectors.npy")
    index = train_index("IVF8,PQ4x4fs,RFlat", vectors)
    other = getattr(index, part)
    other.reset()
    other.add(np.roll(vectors.rows(slice(None)), 1, axis=0))
    put(folder, "IVF8,PQ4x4fs,RFlat", index, vectors)
    (fault,) = verify_index(folder)
    assert "are not those of vectors.npy" in fault


def test_every_row_is_looked_at_where_there_are_few(built):
    vectors = VectorStore.open(built / "generation-000001" / "vectors.npy").rows(slice(None)).copy()
    vectors[[7, 8]] = vectors[[8, 7]]
    index = faiss.IndexFlatIP(16)
    index.add(vectors)
    put(built, "Flat", index, VectorStore(vectors))
    (fault,) = verify_index(built)
    assert "2 of 40 rows looked at are not those of vectors.npy, the first being row 7 (id 'g7')" in fault


def test_a_row_that_is_in_no_list_is_named(folder):
    vectors = VectorStore.open(folder / "generation-000001" / "vectors.npy")
    index = train_index("IVF8,Flat", vectors)
    for number in range(8):  # each list's second row takes the number of its first
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), index.invlists.list_size(number))
        ids[1:] = ids[0]
    put(folder, "IVF8,Flat", index, vectors)
    (fault,) = verify_index(folder)
    assert "index.faiss: vectors cannot be read back from its IndexIVFFlat" in fault


@pytest.mark.parametrize("factory", ["HNSW8", "IVF8,Flat"])
def test_a_graph_or_lists_of_other_rows_are_found_by_what_a_search_misses(folder, factory):
    """Each row has its own vector, so that only the way to it is wrong."""
    vectors = VectorStore.open(folder / "generation-000001" / "vectors.npy")
    rows = vectors.rows(slice(None))
    if factory == "HNSW8":
        index = train_index(factory, VectorStore(np.random.default_rng(0).permutation(rows)))
        storage = faiss.downcast_index(index.storage)
        storage.reset()
        storage.add(rows)
    else:
        index = train_index(factory, vectors)
        index.reset()
        lists = np.random.default_rng(0).integers(8, size=ROWS)
        index.add_core(ROWS, faiss.swig_ptr(rows), None, faiss.swig_ptr(lists))
    put(folder, factory, index, vectors)
    (fault,) = verify_index(folder)
    assert "index.faiss: a search finds 0." in fault and "but the manifest says 0." in fault


def test_an_index_that_was_changed_agrees(embedder, new_catalog, tmp_path):
    folder = tmp_path / "index"
    build_index(embedder, new_catalog(n=ROWS, images=0), folder, factory="IVF8,PQ4x4fs", progress=False)
    delete_items(folder, ids=[f"g{i}" for i in range(0, ROWS, 3)])
    assert verify_index(folder) == []
    new = tmp_path / "goods" / "new.csv"
    new.write_text("id,text\n" + "".join(f"n{i},new thing {i}\n" for i in range(200)))
    add_items(embedder, new, folder, progress=False)
    assert verify_index(folder) == []
    assert len(Index.open(folder)) == 400


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_vectors_that_were_rounded_agree(embedder, new_catalog, tmp_path, precision):
    for factory in ("Flat", "SQfp16", "IVF8,SQ8"):
        folder = tmp_path / factory
        catalog = new_catalog(n=ROWS, images=0, name=f"of {factory}")
        build_index(embedder, catalog, folder, factory=factory, precision=precision, progress=False)
        assert verify_index(folder) == []
