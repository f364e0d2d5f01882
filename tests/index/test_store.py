import gc
import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fanoise.errors import ArtifactError, InputError
from index.store import (
    PRECISIONS,
    VectorStore,
    VectorWriter,
    load_array,
    non_unit_rows,
    read_deleted,
    rounding_loss,
    truncated,
    write_deleted,
)


def unit_rows(n: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(path, vectors, precision="fp32", pieces=3):
    writer = VectorWriter(path, vectors.shape[1], precision)
    for piece in np.array_split(vectors, pieces):
        writer.append(piece)
    assert writer.close() == len(vectors)
    return VectorStore.open(path)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_file_is_a_plain_npy_of_the_precision(tmp_path, precision):
    store = write(tmp_path / "v.npy", unit_rows(70), precision)
    plain = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert plain.shape == store.shape == (70, 32)
    assert plain.dtype == {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[precision]
    assert store.precision == precision


def test_full_precision_is_bitwise_what_numpy_would_have_saved(tmp_path):
    vectors = unit_rows(70)
    write(tmp_path / "v.npy", vectors)
    expected = io.BytesIO()
    np.save(expected, vectors)
    assert (tmp_path / "v.npy").read_bytes() == expected.getvalue()


# Half precision has 11 significant bits; a byte per entry costs the cosine (range/rms)² / (24 · 127²).
@pytest.mark.parametrize(("precision", "most"), [("fp32", 0), ("fp16", 2.0**-22), ("int8", 16 / (24 * 127**2))])
def test_rows_read_back_as_unit_float32_close_to_what_was_written(tmp_path, precision, most):
    vectors = unit_rows(500)
    store = write(tmp_path / "v.npy", vectors, precision)
    back = store.rows(slice(None))
    assert back.dtype == np.float32
    assert np.allclose(np.linalg.norm(back, axis=1), 1, atol=1e-6)
    lost = 1 - (back.astype(np.float64) * vectors.astype(np.float64)).sum(axis=1)
    assert lost.max() <= most + 1e-6
    if precision == "int8":
        assert lost.mean() > 1e-6  # it is really the byte form that was read


def test_int8_is_the_formula(tmp_path):
    vectors = unit_rows(9)
    store = write(tmp_path / "v.npy", vectors, "int8")
    expected = [[round(127 * x / max(abs(row))) for x in row] for row in vectors.astype(np.float64)]
    assert np.array_equal(store.stored(slice(None)), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_slices_row_lists_and_blocks_agree(tmp_path, precision):
    store = write(tmp_path / "v.npy", unit_rows(70), precision)
    whole = store.rows(slice(None))
    rows = np.array([69, 3, 3, 0])
    assert np.array_equal(store.rows(rows), whole[rows])
    assert np.array_equal(store.rows(slice(10, 20)), whole[10:20])
    assert store.rows(np.empty(0, np.int64)).shape == (0, 32)
    blocks = list(store.blocks(size=32))
    assert [start for start, _ in blocks] == [0, 32, 64]
    assert np.array_equal(np.concatenate([block for _, block in blocks]), whole)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_are_copied_as_they_are_stored(tmp_path, precision):
    store = write(tmp_path / "v.npy", unit_rows(70), precision)
    kept = np.array([1, 5, 69])
    with VectorWriter(tmp_path / "w.npy", 32, precision) as writer:
        writer.copy(store)
        writer.copy(store, kept)
    copied = VectorStore.open(tmp_path / "w.npy")
    assert np.array_equal(copied.stored(slice(0, 70)), store.stored(slice(None)))
    assert np.array_equal(copied.stored(slice(70, None)), store.stored(kept))


def test_rows_of_another_form_are_not_copied(tmp_path):
    store = write(tmp_path / "v.npy", unit_rows(4), "fp16")
    with VectorWriter(tmp_path / "w.npy", 32, "int8") as writer, pytest.raises(InputError, match="fp16 rows of dim 32"):
        writer.copy(store)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((2, 5), np.float32), r"shape \[B, 32\], got \[2, 5\]"),
        (np.zeros((1, 32), np.float32), "vector 2 has length 0"),
        (np.full((1, 32), np.nan, np.float32), "vector 2 has length nan"),
        (2 * unit_rows(1), "vector 2 has length 2; normalise it"),
    ],
)
def test_what_is_no_unit_row_is_refused(tmp_path, vectors, message):
    writer = VectorWriter(tmp_path / "v.npy", 32, "int8")
    writer.append(unit_rows(2))
    with pytest.raises(InputError, match=message):
        writer.append(vectors)
    assert writer.close() == 2


def test_a_header_grows_with_the_rows(tmp_path):
    with VectorWriter(tmp_path / "v.npy", 1) as writer:
        for _ in range(3):
            writer.append(np.ones((50_000, 1), np.float32))
    assert VectorStore.open(tmp_path / "v.npy").shape == (150_000, 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2)), r"float64 of shape \(2, 2\)"),
        (np.zeros(4, np.float32), r"shape \(4,\)"),
        (np.zeros((2, 2), ">f4"), "holds >f4"),
        (np.zeros((2, 3), np.float32, order="F"), "column by column"),
        (np.array([{"a": 1}], dtype=object), "cannot be read"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "v.npy", array)  # which pickles the last one; it must not be read
    with pytest.raises(ArtifactError, match=message):
        VectorStore.open(tmp_path / "v.npy")


def test_a_file_cut_short_is_refused(tmp_path):
    write(tmp_path / "v.npy", unit_rows(70))
    data = (tmp_path / "v.npy").read_bytes()
    for size in (0, 10, 200, len(data) - 1):
        (tmp_path / "v.npy").write_bytes(data[:size])
        with pytest.raises(ArtifactError, match="cannot be read"):
            VectorStore.open(tmp_path / "v.npy")


def test_truncation_keeps_the_first_dimensions_at_length_one():
    vectors = unit_rows(20)
    short = truncated(vectors, 8)
    assert short.dtype == np.float32
    expected = vectors[:, :8].astype(np.float64)
    assert np.allclose(short, expected / np.sqrt((expected**2).sum(axis=1))[:, None], atol=1e-6)
    assert truncated(vectors, 32) is vectors
    assert np.isnan(truncated(np.eye(4, dtype=np.float32)[3:], 2)).all()


def test_rows_off_the_sphere_are_found():
    vectors = unit_rows(6)
    vectors[1] *= 1.002
    vectors[2] *= 1.0005
    vectors[4, 3] = np.nan
    vectors[5, 0] = np.inf
    assert non_unit_rows(vectors).tolist() == [1, 4, 5]


def test_tombstones_are_stored_once_each_in_order(tmp_path):
    write_deleted(tmp_path / "d.npy", np.array([5, 0, 5, 3]))
    assert read_deleted(tmp_path / "d.npy", 6).tolist() == [0, 3, 5]


@pytest.mark.parametrize("rows", [[0, 6], [-1, 2], [3, 2], [2, 2], [[1]], [0.5]])
def test_tombstones_that_make_no_sense_are_refused(tmp_path, rows):
    np.save(tmp_path / "d.npy", np.array(rows))
    with pytest.raises(ArtifactError, match=r"d\.npy must hold"):
        read_deleted(tmp_path / "d.npy", 6)


@pytest.mark.parametrize("shape", ["round", "peaked", "one"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_rounding_takes_no_more_from_the_cosine_than_is_said(tmp_path, precision, shape):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 96)) ** {"round": 1, "peaked": 9, "one": 1}[shape]
    if shape == "one":  # everything but one entry is lost in int8
        vectors *= 1e-3 / np.sqrt(96)
        vectors[:, 0] = 1
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    with VectorWriter(tmp_path / "vectors.npy", 96, precision) as writer:
        writer.append(vectors)
    stored = VectorStore.open(tmp_path / "vectors.npy").rows(slice(None)).astype(np.float64)
    exact = vectors.astype(np.float64)
    cosine = (stored * exact).sum(axis=1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(exact, axis=1)
    loss, most = 1 - cosine, rounding_loss(vectors, precision)
    assert (loss <= most + 1e-12).all()
    if shape == "round" and precision != "fp32":
        assert (loss >= most / 10).mean() > 0.9  # it is a bound worth having: 3 is what random errors are below it


def test_threads_may_load_arrays_at_once(tmp_path):
    """Python 3.11's parser, which NumPy reads the headers with, cannot be in two threads."""
    np.save(tmp_path / "a.npy", np.arange(3))
    failures = []

    def pause(*_: object) -> None:
        time.sleep(1e-5)

    def load(depth: int) -> None:
        if depth:
            return load(depth - 1)
        try:
            for _ in range(400):
                load_array(tmp_path / "a.npy")
        except BaseException as error:
            failures.append(error)

    thresholds = gc.get_threshold()
    gc.set_threshold(2, 1000, 1000)
    gc.callbacks.append(pause)  # lets another thread in while the parser makes its objects
    try:
        threads = [threading.Thread(target=load, args=(9 * number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.callbacks.remove(pause)
        gc.set_threshold(*thresholds)
    assert failures == []


def resident_bytes(path):
    """How much of a file is mapped into this process and in its memory."""
    size, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split(" ", 1)[0].count("-") == 1:
            is_ours = line.endswith(str(path))
        elif is_ours and line.startswith("Rss:"):
            size += 1024 * int(line.split()[1])
    return size


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say what is resident")
def test_what_is_read_in_passing_does_not_stay_in_memory(tmp_path):
    vectors = unit_rows(32_768, dim=128)
    path = tmp_path / "v.npy"
    write(path, vectors)
    gc.collect()
    store, sizes, views = VectorStore.open(path, in_passing=True), [], []
    for start, block in store.blocks(1024):
        assert np.array_equal(block, vectors[start : start + 1024])
        views.append(block)
        sizes.append(resident_bytes(path))
    assert 0 < max(sizes) < vectors.nbytes / 2  # the system maps some more around what is read
    assert np.array_equal(np.concatenate(views), vectors), "views are read again where they are looked at"
    assert resident_bytes(path) >= vectors.nbytes
    store.rows(np.array([5, 3, 5]))
    assert resident_bytes(path) < vectors.nbytes / 2
    plain = VectorStore.open(path)
    assert sum(float(block.sum()) for _, block in plain.blocks(1024)) != 0
    assert resident_bytes(path) >= vectors.nbytes
