import faiss
import numpy as np
import pytest

import index.devices
from fanoise.errors import InputError
from index.build import Built, build_index
from index.factory import check_factory, choose_factory, memory_to_build, train_index
from index.faiss_file import parts
from index.report import describe_build
from index.store import VectorStore

GB = 10**9
AMPLE = 10**13


def unit_rows(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """What auto does with GPUs is in test_devices.py."""
    monkeypatch.setattr(index.devices, "gpu_count", lambda: 0)


def auto(count: int, dim: int, **options):
    return choose_factory("auto", count, dim, **{"free": AMPLE} | options)


@pytest.mark.parametrize(
    ("count", "dim", "options", "factory"),
    [
        (1, 16, {}, "Flat"),
        (1_000_000, 256, {}, "Flat"),
        (1_000_001, 256, {}, "IVF4096,Flat"),
        (1_000_000, 1536, {}, "IVF4096,Flat"),
        (10_000_000, 64, {}, "IVF16384,Flat"),
        (10_000_001, 64, {}, "IVF16384,PQ32x4fs,RFlat"),
        (100_000_000, 63, {}, "IVF32768,RaBitQ,RFlat"),
        (100_000_000, 64, {"precision": "fp16"}, "IVF32768,PQ32x4fs,Refine(SQfp16)"),
        (100_000_000, 64, {"precision": "int8"}, "IVF32768,PQ32x4fs,Refine(SQ8)"),
        # small codes only where they save much, and bytes only where they find enough
        (10_000, 64, {"precision": "int8"}, "Flat"),
        (1_000_000, 512, {"precision": "fp16"}, "SQfp16"),
        (1_000_000, 512, {"precision": "int8"}, "SQ8"),
        (5_000_000, 64, {"precision": "int8"}, "IVF8192,SQ8"),
        # memory
        (1_000_000, 512, {"free": GB * 1.5}, "SQfp16"),
        (1_000_000, 512, {"free": GB * 0.8}, "SQ8"),
        (10_000_000, 64, {"free": GB * 3}, "IVF16384,SQfp16"),
        (20_000_000, 64, {"free": GB * 5}, "IVF16384,PQ32x4fs,Refine(SQfp16)"),
        # recall
        (10_000_001, 64, {"recall": 1.0}, "Flat"),
        (1_000_000, 512, {"precision": "int8", "recall": 0.99}, "SQfp16"),
        (20_000_000, 64, {"precision": "int8", "recall": 0.99}, "IVF16384,PQ32x4fs,Refine(SQfp16)"),
    ],
)
def test_auto_chooses_by_number_dim_precision_memory_and_recall(count, dim, options, factory):
    choice = auto(count, dim, **options)
    assert choice.factory == factory
    assert choice.reason.startswith("auto: ")
    assert f"{count:,} vectors of dim {dim}" in choice.reason
    check_factory(choice.factory, dim)


def test_auto_says_what_did_not_fit():
    assert "as building Flat would take 2 GB of the 1.5 GB free" in auto(1_000_000, 512, free=GB * 1.5).reason
    assert "stored vectors" in auto(1_000_000, 512, precision="fp16").reason


def test_an_index_that_does_not_fit_is_one_clear_line():
    with pytest.raises(
        InputError, match=r"smallest index for recall 0\.95 \(SQ8\) needs about 0\.65 GB .* 0\.2 GB are"
    ):
        auto(1_000_000, 512, free=GB * 0.2)
    # one byte a dimension would fit, but does not find enough
    with pytest.raises(InputError, match=r"recall 0\.99 \(SQfp16\) needs about 1 GB"):
        auto(1_000_000, 512, free=GB * 0.8, recall=0.99)
    with pytest.raises(InputError, match=r"'HNSW32' needs about .* for 1,000,000 vectors of dim 512.*--factory auto"):
        choose_factory("HNSW32", 1_000_000, 512, free=GB)


def test_each_list_gets_rows_enough_to_train():
    for count in (1_000_001, 2_000_000, 50_000_000, 1_000_000_000):
        lists = int(auto(count, 64).factory.split(",")[0].removeprefix("IVF"))
        assert 2.5 <= lists / count**0.5 <= 6 or lists <= 131072
        assert count / lists >= 39


@pytest.mark.parametrize(
    "factory", ["Flat", "SQ8", "IVF16,Flat", "HNSW16", "IVF16,PQ8x4fs,Refine(SQfp16)", "PCA8,IVF16,SQ8", "IVF16,RaBitQ"]
)
def test_the_estimate_of_memory_is_that_of_the_file(factory):
    from index.memory import index_memory

    index = train_index(factory, VectorStore(unit_rows(20_000)))
    size = faiss.serialize_index(index).nbytes
    assert index_memory(index, 20_000) == pytest.approx(size, rel=0.06)
    assert memory_to_build(factory, 20_000, 16) >= index_memory(index, 20_000)


@pytest.mark.parametrize("factory", ["PQ2x4", "OPQ2,IVF4,PQ2x4", "IVF4,PQ2x4,RFlat"])
def test_codes_are_left_as_k_means_numbers_them_and_searches_are_those_of_faiss_alone(factory):
    rows, queries = unit_rows(600), unit_rows(20, seed=1)
    ours = train_index(factory, VectorStore(rows))
    theirs = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    theirs.train(rows)
    theirs.add(rows)
    for expected, found in zip(theirs.search(queries, 5), ours.search(queries, 5), strict=True):
        np.testing.assert_array_equal(found, expected)
    numbered, sorted_by_bits = codebook(ours), codebook(theirs)
    assert not np.array_equal(numbered, sorted_by_bits), "FAISS sorts them; else nothing is left out here"
    for one, other in zip(numbered, sorted_by_bits, strict=True):
        assert sorted(one.tolist()) == sorted(other.tolist())


def codebook(index: faiss.Index) -> np.ndarray:
    """Of the PQ within an index, float32 [codes, 2 ** bits, dim of a part]."""
    index = faiss.downcast_index(index)
    while not hasattr(index, "pq"):
        [(index, _), *_] = parts(index)
        index = faiss.downcast_index(index)
    return faiss.vector_to_array(index.pq.centroids).reshape(index.pq.M, index.pq.ksub, -1)


def test_the_measured_overlap_is_in_the_manifest(embedder, new_catalog, tmp_path):
    manifest = build_index(
        embedder, new_catalog(n=120), tmp_path / "index", factory="IVF4,Flat", recall=0.5, progress=False
    )
    assert manifest.factory == "IVF4,Flat"
    built = Built(manifest=manifest)
    said = "\nFAISS IVF4,Flat, as asked for; 120 vectors are few to train 4 clusters, 156 would do\nrecall@10 "
    assert said in describe_build(tmp_path / "index", built, 1.0)
    assert 0.2 < manifest.ann_overlap < 1.0
    file = manifest.generation_in(tmp_path / "index") / "index.faiss"
    assert isinstance(faiss.read_index(str(file)), faiss.IndexIVFFlat)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("NSG16", "makes a IndexNSGFlat, which is not supported; use flat"),
        ("HNSW16_PQ8", "without inner products"),
        ("IVF4_NSG8,Flat", "makes a IndexNSGFlat"),
        ("Pad32,Flat", "makes a RemapDimensionsTransform"),
        ("RQ2x4,RFlat", "makes a IndexResidualQuantizer"),
        ("PCA17,Flat", "asks PCA for 17 dimensions of 16, and it can only make fewer: write 16 at most"),
        ("IVF4(PCAR32,Flat),SQ8,RFlat", "asks PCA for 32 dimensions of 16"),
        ("IVF4(IVF2,Flat),SQ8", "has lists find their lists"),
        ("PCA8,IVF4(PCA4,IVF2,Flat),PQ4x4,RFlat", "has lists find their lists"),
        ("PCA8,PCA9,IVF4,Flat", "asks PCA for 9 dimensions of 8"),
        ("OPQ3,Flat", "has OPQ cut 16 dimensions into 3 equal parts, which does not come out"),
        ("OPQ4_6,PQ2", "has OPQ cut 6 dimensions into 4 equal parts"),
        ("SQ8,Refine(IVF2,Flat)", "makes a IndexIVFFlat to refine by"),
        ("IVF4,SQ8,Refine(PQ2x4fs)", "makes a IndexPQFastScan to refine by"),
        ("IVF4,SQ8,Refine(SQ8,RFlat)", "makes a IndexRefineFlat to refine by"),
        ("IVF4,SQ8,Refine(PCA8,IVF2,Flat)", "makes a IndexPreTransform to refine by"),
        ("IVF4(SQ8,Refine(IVF2,Flat)),Flat", "makes a IndexIVFFlat to refine by"),
    ],
)
def test_a_factory_whose_index_would_not_be_read_is_refused_at_once(factory, message):
    with pytest.raises(InputError, match=message):
        check_factory(factory, 16)
    with pytest.raises(InputError, match=message):
        choose_factory(factory, 10, 16)


def test_an_unknown_factory_is_refused_before_anything_is_encoded(embedder, new_catalog, tmp_path):
    with pytest.raises(InputError, match=r"factory 'Flattish'.*could not parse") as caught:
        build_index(embedder, new_catalog(), tmp_path / "index", factory="Flattish", progress=False)
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)
    assert embedder.module.batches == []


@pytest.mark.parametrize(
    ("factory", "clusters"),
    [("PQ2", 256), ("OPQ2,IVF16,PQ2x4", 256), ("IVF16_HNSW4,PQ2x4,RFlat", 16), ("IVF16(PQ2x4),Flat,Refine(PQ4x5)", 32)],
)
def test_few_rows_for_clusters_are_said_once_and_not_by_faiss(capfd, factory, clusters):
    train_index(factory, VectorStore(unit_rows(400)))
    assert capfd.readouterr() == ("", "")
    few = f"; 400 vectors are few to train {clusters} clusters, {39 * clusters:,} would do"
    assert choose_factory(factory, 400, 16, free=AMPLE).reason == "as asked for" + few
    assert choose_factory(factory, 39 * clusters, 16, free=AMPLE).reason == "as asked for"


def test_more_clusters_than_vectors_is_one_clear_line():
    with pytest.raises(InputError, match=r"'IVF64,Flat' does not suit 20 vectors.*training points.*fewer clusters"):
        train_index("IVF64,Flat", VectorStore(unit_rows(20)))
    for factory in ("PCA8,Flat", "PCAR8,IVF2,Flat"):
        with pytest.raises(
            InputError, match=rf"'{factory}' does not suit 5 vectors.*or one with a PCA to at most 5 dim"
        ):
            train_index(factory, VectorStore(unit_rows(5)))


@pytest.mark.parametrize("factory", ["IVF999999999,Flat", "PQ32x24", "Flat" + "," * 260])
def test_a_factory_that_no_manifest_may_name_is_refused_at_once(factory, monkeypatch):
    monkeypatch.setattr("faiss.index_factory", None)
    with pytest.raises(InputError, match="is the most"):
        check_factory(factory, 128)


@pytest.mark.parametrize(
    ("factory", "least"),
    [
        ("IVF0,Flat", "IVF0 where IVF1"),
        ("IVF0k,Flat", "IVF0 where IVF1"),
        ("IVF4(IVF0,Flat),PQ4", "IVF0 where IVF1"),
        ("PCA0,Flat", "0 where 1"),
        ("OPQ4_0,PQ4", "0 where 1"),
        ("PQ4x0", "x0 where x1"),
        ("HNSW0", "HNSW0 where HNSW2"),
        ("IVF4_HNSW1,Flat", "HNSW1 where HNSW2"),
    ],
)
def test_a_factory_of_none_of_something_never_comes_to_faiss(factory, least, monkeypatch):
    """Where it would end the process, or be refused once all is encoded."""
    monkeypatch.setattr("faiss.index_factory", None)
    with pytest.raises(InputError, match=f"asks for {least} is the least"):
        check_factory(factory, 128)


@pytest.mark.parametrize(
    "factory", ["PCA16,Flat", "OPQ4_32,PQ4x4", "RR32,Flat", "HNSW2", "IVF1,Flat", "IVF4(IVF2,Flat),Flat"]
)
def test_what_looks_like_one_of_these_is_made(factory):
    check_factory(factory, 16)
    vectors = VectorStore(unit_rows(700))
    assert train_index(factory, vectors).ntotal == 700


def test_a_factory_of_more_lists_than_the_memory_holds_is_refused(monkeypatch):
    def index_factory(*_):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr("faiss.index_factory", index_factory)
    with pytest.raises(InputError, match=r"'IVF4000000,Flat' is not one that FAISS can build .*std::bad_alloc"):
        check_factory("IVF4000000,Flat", 128)
