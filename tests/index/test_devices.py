"""No GPU here: `FakeGpus` stands for the few calls that faiss-gpu has and faiss-cpu has not."""

import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from fanoise.errors import InputError
from index import devices
from index.build import build_index
from index.devices import CpuIndex, GpuIndex, describe_device, gpu_count, serve
from index.factory import choose_factory, train_index
from index.nearest import Nearest
from index.search import Index
from index.selection import Selection
from index.store import VectorStore
from index.update import delete_items


def unit_rows(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class FakeGpus:
    """GPUs with room for a number of indexes; they refuse what real ones do."""

    def __init__(self, count: int, *, room: str = "copies") -> None:
        self.count, self.room = count, room
        self.made: list[SimpleNamespace] = []
        self.searches: list[tuple[int, int]] = []
        self.failing = False
        self.threads: set[int] = set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeGpus":
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: self.count)
        monkeypatch.setattr(
            faiss, "GpuMultipleClonerOptions", lambda: SimpleNamespace(useFloat16=False, shard=False), raising=False
        )
        monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", self.clone)
        return self

    def clone(self, index: faiss.Index, co: SimpleNamespace, ngpu: int) -> SimpleNamespace:
        self.made.append(co)
        if self.room == "none" or (self.room == "shards" and not co.shard):
            raise RuntimeError(
                "Error in x at /a/StandardGpuResources.cpp:471: Error: 'err == cudaSuccess' failed: out of memory"
            )
        copy = faiss.clone_index(index)

        def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            self.searches.append((len(queries), k))
            self.threads.add(threading.get_ident())
            if self.failing or k > 2048:
                raise RuntimeError("Error in x at /a/GpuIndex.cu:1: Error: out of memory")
            scores, rows = copy.search(queries, k)
            return np.round(np.maximum(scores, -2), 3), rows  # about half precision

        return SimpleNamespace(search=search)


@pytest.fixture
def flat() -> faiss.Index:
    index = faiss.IndexFlatIP(16)
    index.add(unit_rows(5000))
    return index


def test_without_a_gpu_the_cpu_searches_and_no_gpu_symbol_is_touched(flat, monkeypatch):
    monkeypatch.delattr(faiss, "index_cpu_to_all_gpus")
    served = serve(flat)
    assert isinstance(served, CpuIndex) and served.device == "CPU" and served.note is None
    assert np.array_equal(served.search(unit_rows(3), 5)[1], flat.search(unit_rows(3), 5)[1])
    monkeypatch.delattr(faiss, "get_num_gpus")
    assert gpu_count() == 0


@pytest.mark.parametrize(
    ("count", "room", "device", "sharded"),
    [
        (1, "copies", "1 GPU, at half precision", [False]),
        (2, "copies", "2 GPUs, the index on each, at half precision", [False]),
        (2, "shards", "2 GPUs, a part of the index on each, at half precision", [False, True]),
    ],
)
def test_an_index_is_copied_to_each_gpu_or_shared_out(flat, monkeypatch, count, room, device, sharded):
    gpus = FakeGpus(count, room=room).install(monkeypatch)
    served = serve(flat)
    assert served.device == device
    assert [options.shard for options in gpus.made] == sharded
    assert all(options.useFloat16 for options in gpus.made)
    assert np.array_equal(served.search(unit_rows(3), 5)[1], flat.search(unit_rows(3), 5)[1])
    assert gpus.searches == [(3, 5)] and served.note is None
    served.close()


def test_an_index_that_no_gpu_has_room_for_stays_on_the_cpu_and_says_so(flat, monkeypatch):
    FakeGpus(2, room="none").install(monkeypatch)
    with pytest.warns(RuntimeWarning, match="the index stays on the CPU.*out of memory"):
        served = serve(flat)
    assert served.device == "CPU (the GPU does not take it: 'err == cudaSuccess' failed: out of memory)"
    assert served.search(unit_rows(1), 5)[1].shape == (1, 5)


@pytest.mark.parametrize(
    ("factory", "whole", "half"),
    [("Flat", 512_000, 128_000), ("IVF4,Flat", 317_000, 158_000), ("IVF4,SQ8", 106_000, 53_000)],
)  # fmt: skip
def test_faiss_is_not_asked_for_what_does_not_fit(monkeypatch, factory, whole, half):
    """A copy that fails halfway is never freed (faiss/gpu/GpuCloner.cpp)."""
    gpus = FakeGpus(2).install(monkeypatch)
    index = train_index(factory, VectorStore(unit_rows(4000)))
    for free, sharded in ((1.05 * whole, [False]), (0.95 * whole, [True]), (0.8 * half, [])):
        monkeypatch.setattr(devices, "_free_on_gpus", lambda count, free=free: int(devices._WORKSPACE + free))
        gpus.made.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            served = serve(index)
        assert [options.shard for options in gpus.made] == sharded
        assert bool(caught) == (not sharded)
        if not sharded:
            assert served.device == "CPU (the GPU does not take it: it takes 1.5 GiB, and 1.5 are free)"
        served.close()


def test_a_gpu_that_another_process_has_filled_leaves_the_index_on_the_cpu(monkeypatch):
    def full(count):
        raise RuntimeError("CUDA error: out of memory")

    gpus = FakeGpus(1).install(monkeypatch)
    monkeypatch.setattr(devices, "_free_on_gpus", full)
    with pytest.warns(RuntimeWarning, match="the index stays on the CPU"):
        served = serve(train_index("Flat", VectorStore(unit_rows(200))))
    assert served.device.startswith("CPU (the GPU does not take it: ") and gpus.made == []


@pytest.mark.parametrize(
    ("factory", "part"),
    [("HNSW8", "IndexHNSWFlat"), ("IVF4,PQ8x4fs", "IndexIVFPQFastScan"), ("PCA8,SQ8", "IndexScalarQuantizer"),
     ("IVF4_HNSW8,Flat", "IndexHNSWFlat"), ("IVF4,SQ8,RFlat", "IndexRefineFlat")],
)  # fmt: skip
def test_types_that_faiss_has_on_no_gpu_stay_on_the_cpu(monkeypatch, factory, part):
    gpus = FakeGpus(1).install(monkeypatch)
    served = serve(train_index(factory, VectorStore(unit_rows(200))))
    assert served.device == f"CPU (there is a GPU, but FAISS has no {part} for it)"
    assert gpus.made == []
    assert describe_device(factory, 16) == served.device


def test_a_type_that_a_manifest_names_is_not_made_if_it_is_none_that_is_read(monkeypatch):
    FakeGpus(1).install(monkeypatch)
    with pytest.raises(InputError, match="has 'Residual' in it"):
        describe_device("Residual3x10,Flat", 16)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "IVF4,SQ8", "IVF4,PQ4", "PCA8,IVF4,Flat"])
def test_types_for_the_gpu_go_there(monkeypatch, factory):
    FakeGpus(1).install(monkeypatch)
    served = serve(train_index(factory, VectorStore(unit_rows(300))))
    assert isinstance(served, GpuIndex)
    assert describe_device(factory, 16) == "1 GPU"
    served.close()


@pytest.mark.parametrize(
    ("count", "dim", "options", "factory"),
    [
        (20_000_000, 64, {}, "IVF16384,SQfp16"),
        (20_000_000, 64, {"precision": "int8"}, "IVF16384,SQ8"),
        (20_000_000, 64, {"precision": "int8", "recall": 0.99}, "IVF16384,SQfp16"),
        (20_000_000, 64, {"free": 3 * 10**9}, "IVF16384,SQ8"),
        (20_000_000, 64, {"recall": 1.0}, "Flat"),
        (1_000_000, 512, {"precision": "fp16"}, "Flat"),
        (5_000_000, 64, {}, "IVF8192,Flat"),
    ],
)
def test_auto_prefers_types_that_a_gpu_serves_where_there_is_one(monkeypatch, count, dim, options, factory):
    options = {"free": 10**13} | options
    without = choose_factory("auto", count, dim, **options)
    FakeGpus(1).install(monkeypatch)
    choice = choose_factory("auto", count, dim, **options)
    assert choice.factory == factory
    assert describe_device(choice.factory, dim) == "1 GPU"
    assert (choice.factory != without.factory) == ("since there is a GPU for it" in choice.reason)


def test_auto_takes_the_cpus_types_where_gpus_have_no_room(monkeypatch):
    asked = {"count": 20_000_000, "dim": 64, "free": 10**13}
    without = choose_factory("auto", **asked)
    assert without.factory == "IVF16384,PQ32x4fs,RFlat"
    FakeGpus(2).install(monkeypatch)
    half_of_sq8 = 1.1 * 20_000_000 * (64 + 8) / 2 + devices._WORKSPACE
    for free, factory in ((2 * half_of_sq8, "IVF16384,SQfp16"), (1.02 * half_of_sq8, "IVF16384,SQ8"),
                          (0.98 * half_of_sq8, without.factory)):  # fmt: skip
        monkeypatch.setattr(devices, "_free_on_gpus", lambda count, free=free: int(free))
        assert choose_factory("auto", **asked).factory == factory
    assert choose_factory("auto", **asked) == without


def test_more_results_than_a_gpu_gives_come_from_the_cpu_with_a_note(flat, monkeypatch):
    gpus = FakeGpus(1).install(monkeypatch)
    served = serve(flat)
    assert np.array_equal(served.search(unit_rows(2), 2049)[1], flat.search(unit_rows(2), 2049)[1])
    assert served.note == "searched on the CPU: 2,049 results are more than the 2,048 of a GPU"
    assert gpus.searches == []
    served.search(unit_rows(2), 2048)
    assert served.note is None and gpus.searches == [(2, 2048)]
    served.close()


def test_more_lists_than_a_gpu_probes_are_searched_by_the_cpu(monkeypatch):
    FakeGpus(1).install(monkeypatch)
    index = train_index("IVF4,Flat", VectorStore(unit_rows(200)))
    index.nprobe = 3000
    served = serve(index)
    served.search(unit_rows(1), 5)
    assert "nprobe 3,000 is more than" in (served.note or "")
    served.close()


def test_a_failing_gpu_is_replaced_by_the_cpu_with_a_note_each_time_and_one_warning(flat, monkeypatch):
    gpus = FakeGpus(1).install(monkeypatch)
    served = serve(flat)
    gpus.failing = True
    with pytest.warns(RuntimeWarning, match="searched on the CPU, since the GPU failed: out of memory"):
        _, rows = served.search(unit_rows(4), 6)
    assert np.array_equal(rows, flat.search(unit_rows(4), 6)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        served.search(unit_rows(4), 6)
    assert served.note == "searched on the CPU: out of memory"
    gpus.failing = False
    served.search(unit_rows(4), 6)
    assert served.note is None
    served.close()


def test_a_note_belongs_to_the_thread_that_searched(flat, monkeypatch):
    FakeGpus(1).install(monkeypatch)
    served = serve(flat)

    def search(k):
        served.search(unit_rows(1, seed=k), k)
        return served.note is not None

    ks = [5, 2049] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(search, ks)) == [k > 2048 for k in ks]
    served.close()


def _ask(served, seed):
    return served.search(unit_rows(1, seed=seed), 3)


def test_one_thread_uses_the_gpu_and_ends_with_the_index(flat, monkeypatch):
    gpus = FakeGpus(1).install(monkeypatch)
    served = serve(flat)
    with ThreadPoolExecutor(8) as pool:
        found = [rows for _, rows in pool.map(partial(_ask, served), range(50))]
    for i, rows in enumerate(found):
        assert np.array_equal(rows, flat.search(unit_rows(1, seed=i), 3)[1])
    assert len(gpus.threads) == 1
    del served
    gc.collect()
    assert not any(thread.name == "index-search" for thread in threading.enumerate())


def assert_same(found, expected):
    assert np.array_equal(found[1], expected[1]) and np.allclose(found[0], expected[0], atol=1e-6)


def test_an_opened_index_is_served_by_the_gpu_but_for_filters(embedder, new_catalog, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    build_index(embedder, new_catalog(n=3000, images=0), folder, progress=False)
    on_cpu = Index.open(folder)
    assert on_cpu.device == "CPU"
    gpus = FakeGpus(2).install(monkeypatch)
    index = Index.open(folder)
    assert index.device.startswith("2 GPUs")
    queries = unit_rows(7)
    assert_same(index.search(queries, 5), on_cpu.search(queries, 5))  # with cosines that are not rounded
    assert gpus.searches == [(7, 5)] and index.notes() == []
    where = {"colour": "red"}
    assert_same(index.search(queries, 5, where), on_cpu.search(queries, 5, where))
    assert gpus.searches == [(7, 5)]
    assert index.notes(where) == ["searched on the CPU: FAISS has no filters on a GPU"]
    [puce] = index.notes({"colour": "puce"})  # nothing was searched for this one
    assert "no item has colour 'puce'" in puce
    index.search(queries, 2049)
    assert index.notes() == ["searched on the CPU: 2,049 results are more than the 2,048 of a GPU"]
    most = {"colour": {"not": "red"}}
    assert_same(index.search(queries, 5, most), on_cpu.search(queries, 5, most))
    assert gpus.searches[-1] == (7, 5 + 750) and index.notes(most) == []
    # a few deleted rows are no filter: the GPU finds as many more
    gone = on_cpu.ids[int(on_cpu.search(queries[:1], 1)[1][0, 0])]
    delete_items(folder, ids=[gone, "g1", "g2"])
    index = Index.open(folder)
    found = index.search(queries, 5)
    assert gpus.searches[-1] == (7, 8) and index.notes() == []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert_same(found, Index.open(folder).search(queries, 5))


def test_a_filter_that_leaves_few_rows_is_left_to_the_cpu(monkeypatch):
    """Among few rows of many, a GPU that searches for as many more would find fewer of them than the CPU."""
    rows = unit_rows(2000)
    index = train_index("IVF32,Flat", VectorStore(rows))
    index.nprobe = 2
    gpus = FakeGpus(1).install(monkeypatch)
    nearest = Nearest(index, VectorStore(rows))
    few = Selection(np.arange(2000) % 3 == 0)
    assert not nearest.compares_all(few)  # FAISS filters
    found = nearest.search(unit_rows(20, seed=1), 5, few)[1]
    assert gpus.searches == [] and nearest.note == "searched on the CPU: FAISS has no filters on a GPU"
    assert few.mask[found].all()
    nearest.search(unit_rows(20, seed=1), 5, Selection(np.arange(2000) % 3 > 0))
    assert gpus.searches == [(20, 5 + 667)] and nearest.note is None
