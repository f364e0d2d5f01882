import hashlib

import numpy as np
import pytest

from index.encoding.known import KnownRows, copy_rows
from index.items import ItemWriter
from index.store import VectorStore, VectorWriter
from index.thumbnails import thumbnail_path

DIM = 8


def key(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def unit_rows(count, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder, keys, *, thumbnails=None, precision="fp32", seed=0):
    folder.mkdir(parents=True)
    items = ItemWriter()
    for row, one in enumerate(keys):
        thumbnail = None if thumbnails is None else thumbnails[row]
        items.append(
            id=f"{folder.name}-{row}", text="t", image=None, thumbnail_sha256=thumbnail, content_sha256=one, fields={}
        )
    items.write(folder / "items.parquet")
    rows = unit_rows(len(keys), seed)
    with VectorWriter(folder / "vectors.npy", DIM, precision) as vectors:
        vectors.append(rows)
    return rows


def known_of(tmp_path, *names, dim=DIM, precision="fp32"):
    return KnownRows([tmp_path / name for name in names], index=tmp_path, dim=dim, precision=precision)


def test_every_row_with_a_key_is_found_and_no_other(tmp_path):
    write(tmp_path / "a", [key(i) if i % 3 else None for i in range(100)])
    rows = write(tmp_path / "b", [key(i) for i in range(100, 150)], seed=1)
    known = known_of(tmp_path, "a", "b")
    assert len(known) == 66 + 50
    for i in range(150):
        found = known.find(key(i))
        if i < 100 and i % 3 == 0:
            assert found is None
            continue
        assert (found.content_sha256, found.row, found.thumbnail_sha256) == (key(i), i if i < 100 else i - 100, None)
    assert np.array_equal(known.find(key(120)).store.rows(np.array([20]))[0], rows[20])
    assert known.find(key(1000)) is None


def test_keys_that_begin_alike_are_told_apart(tmp_path):
    keys = [key(0)[:16] + key(i)[16:] for i in range(5)]
    write(tmp_path / "a", keys)
    known = known_of(tmp_path, "a")
    assert [known.find(one).row for one in keys] == [0, 1, 2, 3, 4]
    assert known.find(key(0)[:16] + key(9)[16:]) is None


def test_of_a_key_in_two_folders_the_first_is_taken(tmp_path):
    write(tmp_path / "a", [key(0), key(1)])
    write(tmp_path / "b", [key(1), key(0)])
    assert known_of(tmp_path, "b", "a").find(key(0)).row == 1
    assert known_of(tmp_path, "a", "b").find(key(0)).row == 0


@pytest.mark.parametrize("damage", [None, b"", b"pixelz", b"pixels and more"])
def test_a_row_whose_thumbnail_is_gone_or_damaged_is_not_known(tmp_path, damage):
    write(tmp_path / "a", [key(0), key(1), key(2)], thumbnails=[key("pixels"), key("others"), None])
    for content in ("pixels", "others"):
        path = thumbnail_path(tmp_path, key(content))
        path.parent.mkdir(parents=True)
        path.write_bytes(content.encode())
    known = known_of(tmp_path, "a")
    assert known.find(key(0)).thumbnail_sha256 == key("pixels")
    path = thumbnail_path(tmp_path, key("pixels"))
    path.unlink() if damage is None else path.write_bytes(damage)
    assert known.find(key(0)) is None
    assert known.find(key(1)).thumbnail_sha256 == key("others")
    assert known.find(key(2)).thumbnail_sha256 is None


@pytest.mark.parametrize("damage", ["no vectors", "no items", "half items", "fewer vectors", "a wrong key"])
def test_a_folder_that_cannot_be_read_is_left_out(tmp_path, damage):
    write(tmp_path / "a", [key(0), "zz" * 32 if damage == "a wrong key" else key(1)])
    write(tmp_path / "b", [key(2)])
    if damage == "no vectors":
        (tmp_path / "a" / "vectors.npy").unlink()
    elif damage == "no items":
        (tmp_path / "a" / "items.parquet").unlink()
    elif damage == "half items":
        data = (tmp_path / "a" / "items.parquet").read_bytes()
        (tmp_path / "a" / "items.parquet").write_bytes(data[: len(data) // 2])
    elif damage == "fewer vectors":
        np.save(tmp_path / "a" / "vectors.npy", unit_rows(1))
    known = known_of(tmp_path, "a", "b")
    assert len(known) == 1 and known.find(key(2)) is not None and known.find(key(0)) is None


def test_no_folders_are_no_rows(tmp_path):
    known = known_of(tmp_path)
    assert not known and known.find(key(0)) is None


@pytest.mark.parametrize(
    ("stored", "dim", "precision", "serves"),
    [
        ("fp32", 8, "fp16", True),
        ("fp32", 4, "fp32", True),
        ("fp32", 4, "int8", True),
        ("fp16", 8, "fp16", True),
        ("int8", 8, "int8", True),
        ("fp16", 8, "fp32", False),
        ("int8", 8, "fp16", False),
        ("fp16", 4, "fp16", False),
        ("fp32", 9, "fp32", False),
    ],
)
def test_vectors_serve_where_nothing_is_lost(tmp_path, stored, dim, precision, serves):
    write(tmp_path / "a", [key(0)], precision=stored)
    assert (len(known_of(tmp_path, "a", dim=dim, precision=precision)) == 1) is serves


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_copied_again_and_again_a_vector_stays_as_it_is(tmp_path, precision):
    write(tmp_path / "0", [key(i) for i in range(50)], precision=precision)
    for number in range(3):
        store = VectorStore.open(tmp_path / str(number) / "vectors.npy")
        (tmp_path / str(number + 1)).mkdir()
        with VectorWriter(tmp_path / str(number + 1) / "vectors.npy", DIM, precision) as target:
            copy_rows(store, list(range(50)), target, dim=DIM, precision=precision)
    first, last = ((tmp_path / name / "vectors.npy").read_bytes() for name in ("0", "3"))
    assert first == last


def test_a_longer_vector_is_cut_and_normalised(tmp_path):
    rows = write(tmp_path / "a", [key(0), key(1)])
    with VectorWriter(tmp_path / "cut.npy", 4, "fp32") as target:
        copy_rows(VectorStore.open(tmp_path / "a" / "vectors.npy"), [1, 0], target, dim=4, precision="fp32")
    short = rows[[1, 0], :4] / np.linalg.norm(rows[[1, 0], :4], axis=1, keepdims=True)
    assert np.allclose(np.load(tmp_path / "cut.npy"), short, atol=1e-7)
