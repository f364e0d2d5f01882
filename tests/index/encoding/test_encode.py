import json
import os
import random
import select
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fanoise.catalog import Item, RemoteImage, read_catalog
from fanoise.embedder import Embedder
from fanoise.errors import InputError
from index.encoding.cut import Shard, catalog_rows, cut
from index.encoding.encode import Encoder, _seconds, settle_workers
from index.encoding.known import KnownRows
from index.encoding.lookup import Looked
from index.encoding.near_duplicates import SIGNATURE_BYTES
from index.encoding.shard import EncodedShard, ShardOptions
from index.items import Items
from index.parquet import read_parquet
from tests.index.encoding.fakes import DIM, draw, vector_of, write_catalog


def test_the_model_begins_with_what_is_soon_prepared_and_goes_on_with_the_longest(tmp_path):
    items = [Item(id=str(i), text="x") for i in range(10)]
    shard = EncodedShard(Shard(0, items), ShardOptions(dim=4, precision="fp32"), root=tmp_path, embedder_dim=4)
    looked = [(position, Looked(float(position), None), None) for position in range(10)]
    assert shard.plan(looked, 2) == [[5, 4], [3, 2], [1, 0], [9, 8], [7, 6]]
    assert shard.plan(looked[:4], 2) == [[3, 2], [1, 0]]


def test_urls_that_answer_late_have_their_own_time_each():
    rows = [(0, Item(id="a", text="x")), (1, Item(id="b", image=RemoteImage("https://images.example/1.jpg")))]
    assert _seconds(rows) == 140 and _seconds(rows[:1]) == 120 and _seconds([*rows, *rows]) == 160


@pytest.fixture
def encode(tmp_path):
    """Encodes rows into folders, one a shard; returns the encoder."""

    def run(embedder, rows, name="shards", *, size=16, batch_size=4, workers=0, known=None, **options):
        options = ShardOptions(**{"dim": embedder.dim, "precision": "fp32"} | options)
        with Encoder(
            embedder, options, batch_size=batch_size, workers=workers, index=tmp_path, root=tmp_path, known=known
        ) as encoder:
            for shard in encoder.encode(cut(rows, size)):
                folder = tmp_path / name / f"{shard.number:03d}"
                folder.mkdir(parents=True)
                shard.write(folder)
        return encoder

    return run


def vectors(folder):
    return np.concatenate([np.load(path) for path in sorted(folder.glob("*/vectors.npy"))])


def ids(folder):
    return [id for path in sorted(folder.glob("*/items.parquet")) for id in Items.read(path).ids]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def real(tiny_base):
    return Embedder.from_pretrained(tiny_base, device="cpu")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Forty rows of text, picture or both; sizes from 28 × 28 to 400 × 300, texts from one word to sixty."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = random.Random(3)
    rows = []
    for i in range(40):
        text = (
            None if i % 5 == 0 else " ".join(rng.choice(["red", "blue", "square", "9"]) for _ in range(1 + i * 3 % 61))
        )
        path = None
        if i % 5 != 3:
            path = folder / f"{i}.png"
            draw(path, i, size=(rng.randint(28, 400), rng.randint(28, 300)))
        rows.append(Item(id=f"m{i}", text=text, image=path, fields={"n": i}))
    return rows


def test_vectors_are_those_of_encoding_one_by_one(real, mixed, encode, tmp_path):
    encode(real, mixed, workers=1, batch_size=8)
    alone = np.concatenate([real.encode([row], role="item", batch_size=1) for row in mixed])
    assert ids(tmp_path / "shards") == [row.id for row in mixed]
    assert np.abs(vectors(tmp_path / "shards") - alone).max() <= 1e-5
    assert np.abs(alone - alone[::-1]).max() > 0.05  # rows in another order would be seen


def test_any_number_of_workers_writes_the_same_bytes(real, mixed, encode, tmp_path):
    for workers in (0, 1, 2):
        encode(real, mixed, str(workers), workers=workers, signatures=True)
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "0")) == 3 * 4


def test_rows_of_a_batch_are_about_as_long(encode, split):
    rows = [Item(id=str(i), text="x" * (1 + i * 37 % 101)) for i in range(100)]
    seen = []
    collate = split.collate
    split.collate = lambda items, role: seen.append([len(item.text) for item in items]) or collate(items, role)
    encode(split, rows, size=100, batch_size=10)
    assert [len(batch) for batch in seen] == [10] * 10
    flat = [length for batch in seen for length in batch]
    assert flat[30:] + flat[:30] == sorted(flat, reverse=True)


def test_the_batch_size_is_never_exceeded(encode, split):
    encode(split, [Item(id=str(i), text=f"t{i}") for i in range(50)], size=20, batch_size=7)
    assert split.module.batches == [7, 7, 6, 7, 7, 6, 7, 3]


def test_the_model_is_in_eval_mode_while_it_encodes_and_as_before_after(encode, split):
    seen = []
    split.module.train()
    split.module.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    encode(split, [Item(id="a", text="x")])
    assert seen == [False] and split.module.training


def test_what_a_row_alone_is_refused_for_does_not_take_its_batch_along(encode, split, tmp_path):
    rows = [Item(id=str(i), text="refused" if i in (3, 4, 9) else f"t{i}") for i in range(12)]
    encode(split, rows, size=12)
    assert ids(tmp_path / "shards") == [row.id for row in rows if row.text != "refused"]
    assert np.array_equal(
        vectors(tmp_path / "shards"), np.stack([vector_of(row) for row in rows if row.text != "refused"])
    )
    ledger = (tmp_path / "shards" / "000" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in ledger] == ["3", "4", "9"]
    assert json.loads(ledger[0])["reason"] == "too thin for the vision tower"


def test_an_error_of_another_kind_is_not_a_reject(encode, split):
    def broken(items, role):
        raise RuntimeError("a fault of ours")

    split.collate = broken
    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="a fault of ours"):
            encode(split, [Item(id="a", text="x")], workers=workers)


def test_a_row_that_kills_its_worker_is_one_reject(encode, split, tmp_path):
    collate = split.collate

    def deadly(items, role):
        if any(item.text == "deadly" for item in items):
            os._exit(9)
        return collate(items, role)

    split.collate = deadly
    rows = [Item(id=str(i), text="deadly" if i == 5 else f"t{i}") for i in range(20)]
    encoder = encode(split, rows, size=20, workers=2)
    assert ids(tmp_path / "shards") == [row.id for row in rows if row.id != "5"]
    assert np.array_equal(vectors(tmp_path / "shards"), np.stack([vector_of(row) for row in rows if row.id != "5"]))
    [line] = (tmp_path / "shards" / "000" / "rejects.jsonl").read_text().splitlines()
    assert "ended the process (exit status 9)" in json.loads(line)["reason"]
    assert encoder.deaths == 2


def test_out_of_memory_halves_the_batches(encode, split, tmp_path, capsys):
    forward = split.module.forward

    def small(batch):
        if len(batch["vectors"]) > 3:
            raise torch.OutOfMemoryError("no room")
        return forward(batch)

    split.module.forward = small
    rows = [Item(id=str(i), text=f"t{i}") for i in range(60)]
    encode(split, rows, size=30, batch_size=8, workers=1)
    assert ids(tmp_path / "shards") == [row.id for row in rows]
    assert np.array_equal(vectors(tmp_path / "shards"), np.stack([vector_of(row) for row in rows]))
    assert capsys.readouterr().err.splitlines() == [
        "note: out of device memory; going on with batches of 4",
        "note: out of device memory; going on with batches of 2",
    ]


def test_no_room_for_one_row_is_an_error(encode, split):
    def full(batch):
        raise torch.OutOfMemoryError("no room")

    split.module.forward = full
    with pytest.raises(InputError, match="no room for a single row"):
        encode(split, [Item(id="a", text="x")])


def test_known_rows_are_copied_and_the_others_encoded(encode, split, tmp_path):
    rows = list(read_catalog(write_catalog(tmp_path / "c.jsonl", 40, images=10)))
    encode(split, rows, "first")
    split.module.batches.clear()
    changed = [
        Item(id=row.id, text=f"new {i}" if i % 8 == 0 else row.text, image=row.image) for i, row in enumerate(rows)
    ]
    known = KnownRows(sorted((tmp_path / "first").iterdir()), index=tmp_path, dim=DIM, precision="fp32")
    encode(split, changed, "second", known=known, workers=1)
    assert sum(split.module.batches) == 5
    assert np.array_equal(vectors(tmp_path / "second"), np.stack([vector_of(row) for row in changed]))
    first, second = (
        [Items.read(path).thumbnail_column.to_pylist() for path in sorted((tmp_path / name).glob("*/*.parquet"))]
        for name in ("first", "second")
    )
    assert first == second and sum(one is not None for shard in first for one in shard) == 10


def test_signatures_of_known_rows_are_those_of_encoded_ones(encode, split, tmp_path):
    rows = list(read_catalog(write_catalog(tmp_path / "c.jsonl", 20, images=10)))
    encode(split, rows, "first", signatures=True)
    known = KnownRows(sorted((tmp_path / "first").iterdir()), index=tmp_path, dim=DIM, precision="fp32")
    encode(split, rows, "second", signatures=True, known=known)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    column = read_parquet(tmp_path / "first" / "000" / "items.parquet", columns=["signature"])["signature"]
    lengths = [None if one is None else len(one) for one in column.to_pylist()]
    assert lengths == [None if row.image is None else SIGNATURE_BYTES for row in rows[:16]]


@pytest.mark.parametrize("images", [False, True])
def test_given_vectors_are_taken_and_the_model_is_left_alone(encode, split, tmp_path, images):
    draw(tmp_path / "a.png", 1)
    rng = np.random.default_rng(0)
    given = rng.normal(size=(8, DIM))
    numbers = [1.0] * (DIM - 1)
    none = [None, numbers, [float("nan")] * DIM, [0.0] * DIM, "text", [[1.0] * DIM], [float("inf"), *numbers]]
    none += [["1"] * DIM, [True] * DIM, [True, *numbers], [None, *numbers], [10**400, *numbers]]
    values = [*given.tolist(), *none]
    rows = [
        Item(
            id=str(i),
            text="t",
            image=tmp_path / ("a.png" if i else "gone.png") if images else None,
            fields={"v": v, "n": i},
        )
        for i, v in enumerate(values)
    ]
    encode(split, rows, size=5, vectors="v", workers=1)
    assert split.module.batches == []
    first = 1 if images else 0  # whose picture is missing
    unit = (given / np.linalg.norm(given, axis=1, keepdims=True)).astype(np.float32)
    assert np.allclose(vectors(tmp_path / "shards"), unit[first:], atol=1e-7)
    assert ids(tmp_path / "shards") == [str(i) for i in range(first, 8)]
    tables = [read_parquet(path) for path in sorted((tmp_path / "shards").glob("*/*.parquet"))]
    assert [one for table in tables[:2] for one in table["fields"].to_pylist()] == [{"n": i} for i in range(first, 8)]
    assert {one is None for table in tables for one in table["thumbnail_sha256"].to_pylist()} == {not images}
    assert {one for table in tables for one in table["content_sha256"].to_pylist()} == {None}
    ledger = [
        json.loads(line)
        for path in sorted((tmp_path / "shards").glob("*/rejects.jsonl"))
        for line in path.read_text().splitlines()
    ]
    reasons = [entry["reason"] for entry in ledger][first:]
    assert reasons == [
        "its vector is missing",
        "its vector has shape [15], and the embedder's have [16]",
        "its vector is not finite",
        "its vector is zero, which has no direction",
        "its vector is not a list of numbers",
        "its vector has shape [1, 16], and the embedder's have [16]",
        "its vector is not finite",
        *["its vector is not a list of numbers"] * 5,
    ]


@pytest.mark.parametrize("dim", [DIM, 5])
@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-30, 1e30, 1e200, 1e307])
def test_given_vectors_of_any_length_have_a_direction(encode, split, tmp_path, scale, dim):
    given = np.random.default_rng(0).normal(size=(8, DIM))
    given[-1, :5] = 0
    rows = [Item(id=str(i), text="t", fields={"v": v}) for i, v in enumerate((scale * given).tolist())]
    encode(split, rows, vectors="v", dim=dim)
    first = given[:, :dim] if dim == DIM else given[:-1, :dim]  # of the last there is nothing left
    unit = first / np.linalg.norm(first, axis=1, keepdims=True)
    assert np.allclose(vectors(tmp_path / "shards"), unit, atol=1e-7)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "shards/000/rejects.jsonl").read_text().splitlines()]
    assert reasons == ["its vector is zero, which has no direction"] * (dim < DIM)


@pytest.mark.parametrize("dim", [DIM, 5])
def test_vectors_of_a_table_are_those_of_its_lists_to_the_last_bit(encode, split, tmp_path, dim):
    rng = np.random.default_rng(0)
    none = [None, [], [1.0] * 3, [float("nan")] * DIM, [0.0] * DIM, [None, *[1.0] * (DIM - 1)], [float("inf")] * DIM]
    for number, kind in enumerate((pa.float16(), pa.float32(), pa.float64(), pa.int64())):
        for lists in (pa.list_, pa.large_list, lambda kind: pa.list_(kind, DIM)):
            scale = 2.0**52 if kind == pa.int64() else 1
            given = rng.normal(size=(150, DIM)) * scale * 10.0 ** rng.integers(-2, 2, (150, 1))
            given = given.astype(kind.to_pandas_dtype())
            values = [*given.tolist(), *none]
            if kind == pa.int64():
                values = [one for one in values if one is None or all(map(np.isfinite, filter(None, one)))]
            if pa.types.is_fixed_size_list(lists(kind)):
                values = [one for one in values if one is None or len(one) == DIM]
            values = [values[i] for i in rng.permutation(len(values))]
            table = {"text": ["t"] * len(values), "v": pa.array(values, lists(kind)), "n": range(len(values))}
            pq.write_table(pa.table(table), tmp_path / "c.parquet", row_group_size=50)
            written = []
            for vectors in (None, "v"):
                rows = list(catalog_rows(tmp_path / "c.parquet", vectors=vectors))
                is_array = any(isinstance(row.fields["v"], np.ndarray) for row in rows)
                assert is_array == (vectors is not None)
                if not is_array:  # in short lists, small floats have become the fractions that round to them
                    rows = [replace(row, fields={**row.fields, "v": v}) for row, v in zip(rows, values, strict=True)]
                folder = f"{number}-{lists(kind)}-{vectors}"
                encode(split, rows, folder, size=70, vectors="v", dim=dim)
                written.append(contents(tmp_path / folder))
            assert written[0] == written[1]
            assert len(written[0]) > 4


def test_only_a_few_shards_are_in_memory(encode, split):
    """However long the catalogue: counted in rows that have been read and not yet written."""
    alive, most = 0, 0

    class Price(int):  # fields do not leave this process
        def __del__(self):
            nonlocal alive
            alive -= 1

    def rows():
        nonlocal alive, most
        for i in range(2000):
            alive += 1
            most = max(most, alive)
            yield Item(id=str(i), text=f"t{i}", fields={"price": Price(i)})

    encode(split, rows(), size=50, batch_size=10, workers=1)
    assert alive <= 50
    assert 50 <= most <= 4 * 50


@pytest.mark.parametrize("workers", [1, 2])
def test_the_next_batch_is_prepared_while_the_model_is_at_work(encode, split, workers):
    """Also that of the next shard: no batch leaves the model before the one after it has been collated."""
    reader, writer = os.pipe()
    collate, forward = split.collate, split.module.forward
    split.collate = lambda items, role: os.write(writer, b"x") and collate(items, role)
    count = 0

    def slow(batch):
        nonlocal count
        count += 1
        # the first batch's byte, then one each; of the last there is none after it
        for _ in range(0 if count == 12 else 2 if count == 1 else 1):
            ready, _, _ = select.select([reader], [], [], 60)
            assert ready, f"batch {count + 1} is not prepared while batch {count} is in the model"
            os.read(reader, 1)
        return forward(batch)

    split.module.forward = slow
    encoder = encode(
        split, [Item(id=str(i), text=f"t{i}") for i in range(120)], size=40, batch_size=10, workers=workers
    )
    assert count == 12 and 0 < encoder.model_seconds <= encoder.seconds
    os.close(reader)
    os.close(writer)


def test_a_vector_without_a_direction_is_a_reject(encode, split, tmp_path):
    forward = split.module.forward

    def zero(batch):
        vectors = forward(batch).clone()
        vectors[0] = 0
        return vectors

    split.module.forward = zero
    encode(split, [Item(id=str(i), text="x" * (9 - i)) for i in range(5)], batch_size=5)
    assert ids(tmp_path / "shards") == ["1", "2", "3", "4"]
    [line] = (tmp_path / "shards" / "000" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": "0", "path": None, "reason": "its embedding is zero, which has no direction"}


def test_a_known_row_whose_thumbnail_is_damaged_is_encoded_again(encode, split, tmp_path):
    rows = list(read_catalog(write_catalog(tmp_path / "c.jsonl", 8, images=4)))
    encode(split, rows, "first", signatures=True)
    for path in list((tmp_path / "thumbnails").rglob("*.jpg"))[:2]:
        path.write_bytes(path.read_bytes()[:50])
    split.module.batches.clear()
    known = KnownRows([tmp_path / "first" / "000"], index=tmp_path, dim=DIM, precision="fp32")
    encode(split, rows, "second", signatures=True, known=known)
    assert sum(split.module.batches) == 2
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_few_rows_are_not_worth_a_process():
    number, rows = settle_workers(None, iter(range(256)))
    assert number == 0 and list(rows) == list(range(256))
    number, rows = settle_workers(None, iter(range(257)))
    assert number >= 1 and list(rows) == list(range(257))
    assert settle_workers(3, iter([]))[0] == 3
