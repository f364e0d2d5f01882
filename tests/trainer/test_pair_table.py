import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fanoise.catalog import Item
from fanoise.errors import CatalogError
from trainer.pair_columns import PairRow, batch_of_rows
from trainer.pair_table import Pair, PairTable, pair_keys, parts
from trainer.pairs import equal_keys, read_pairs, valid_answers

ROOT = Path(__file__).parents[2]


def row(number: int) -> PairRow:
    return PairRow((f"query {number}", f"q/{number}.png"), (f"positive {number}", None), [(f"not {number}", "n.png")])


def store(*rows: PairRow, images: str = "images") -> PairTable:
    return PairTable.write(map(batch_of_rows, parts(rows)), path=Path("folder/pairs.jsonl"), images=Path(images))


def test_every_row_comes_back_wherever_it_lies():
    table = store(*(row(number) for number in range(10_000)))
    assert len(table) == 10_000
    for number in (0, 1, 4095, 4096, 8191, 8192, 9999):
        pair = table[number]
        assert (pair.query.text, pair.query.image) == (f"query {number}", Path(f"images/q/{number}.png"))
        assert (pair.positive.text, pair.positive.image) == (f"positive {number}", None)
        assert [(item.text, item.image) for item in pair.negatives] == [(f"not {number}", Path("images/n.png"))]
        assert pair.query.id == f"folder/pairs.jsonl:{number + 1}"
    assert table[-1] == table[9999]
    assert table[4094:4098] == [table[number] for number in range(4094, 4098)]
    with pytest.raises(IndexError):
        table[10_000]


def test_opening_a_file_keeps_no_objects_and_reading_one_needs_no_more_memory_for_more_rows(tmp_path):
    def measure(count: int) -> tuple[int, int, int]:
        file = tmp_path / f"{count}.jsonl"
        with file.open("w") as lines:
            for number in range(count):
                text = f"query {number} " + "x" * 200
                lines.write(json.dumps({"query_text": text, "positive_image": f"{number}.png"}) + "\n")
        gc.collect()
        objects, buffers = len(gc.get_objects()), pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            table = read_pairs(file)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 40 * count + 2**18, "keys, row numbers and little else"
        gc.collect()
        more = len(gc.get_objects()) - objects
        assert pa.total_allocated_bytes() - buffers < 2**16
        assert len(table) == count
        return more, held, peak

    measure(5_000)  # what is imported and cached at the first time
    small, large = measure(5_000), measure(40_000)
    assert large[0] < small[0] + 200, "a handful of objects for every 4,096 rows"
    assert large[2] - large[1] < 1.5 * (small[2] - small[1]), "the peak is one part of the file, whatever its length"


def test_the_file_of_a_table_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = []

    def rows():
        for number in range(9000):
            seen.append(list(tmp_path.iterdir()))
            yield row(number)

    table = PairTable.write(map(batch_of_rows, parts(rows())), path=Path("pairs.jsonl"), images=Path())
    assert len(table) == 9000
    assert not any(seen), "not even while it is written"
    assert not list(tmp_path.iterdir())


def test_rows_with_images_of_their_own_are_written_fewer_at_a_time():
    image = bytes(2**25)
    rows = [PairRow(("a", image), ("p", None)), PairRow(("a", None), ("p", None), [(None, image)])] * 5
    assert [len(part) for part in parts(rows)] == [2] * 5
    assert [len(part) for part in parts(row(number) for number in range(9000))] == [4096, 4096, 808]


def test_forked_processes_read_the_same_rows():
    table = store(*(row(number) for number in range(5000)))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps([table[number].query.text for number in (4999, 0, 4096)]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert json.load(pipe) == ["query 4999", "query 0", "query 4096"]


def test_a_handle_opens_the_same_table_and_no_other_file():
    table, other = store(*(row(number) for number in range(5000))), store(row(0))
    opened = PairTable.open(table.handle)
    assert list(opened) == list(table)
    assert np.array_equal(opened.keys, table.keys)
    with pytest.raises(OSError, match="is another file"):
        PairTable.open(table.handle._replace(path=other.handle.path))


def test_no_room_on_the_disk_is_one_line_with_the_folder_and_the_remedy():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            CatalogError, match=r"folder/pairs.jsonl: .* cannot be written to .*; .*set TMPDIR"
        ) as caught:
            store(*(row(number) for number in range(20_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tempfile.gettempdir() in str(caught.value)


def test_a_sample_is_of_the_size_asked_for_repeatable_and_part_of_a_larger_one():
    table = store(*(row(number) for number in range(500)))
    small, again, large, other = (table.sample(n, seed=s) for n, s in ((100, 0), (100, 0), (300, 0), (100, 1)))

    def numbers(sample: PairTable) -> list[int]:
        found = [int(pair.query.text.split()[1]) for pair in sample]
        assert [pair.query.id for pair in sample] == [f"folder/pairs.jsonl:{number + 1}" for number in found]
        assert np.array_equal(sample.keys, table.keys[found])
        return found

    assert len(small) == 100 and len(large) == 300
    assert numbers(small) == numbers(again) == sorted(set(numbers(small)))
    assert set(numbers(small)) < set(numbers(large))
    assert numbers(small) != numbers(other)
    assert 200 < np.mean(numbers(small)) < 300, "from all over the file"
    assert table.sample(500, seed=0) is table.sample(None, seed=0) is table


def test_keys_are_equal_exactly_where_the_content_is():
    rows = [
        PairRow(("a", None), ("p", None), group="g"),
        PairRow(("a", None), ("p", "x.png")),
        PairRow(("a", "x.png"), (None, "x.png")),
        PairRow((None, "x.png"), ("p", "sub/../x.png")),
        PairRow(("ax.png", None), ("p", "./x.png"), group="h"),
        PairRow(("1 a", None), ("g", None), group="g"),
    ]
    table = store(*rows)

    def equal(column: int) -> set[tuple[int, int]]:
        values = table.keys[:, column]
        return {(i, j) for i in range(6) for j in range(i) if values[i] == values[j]}

    assert equal(0) == {(1, 0)}
    assert equal(1) == {(3, 1), (4, 1), (4, 3)}
    assert equal(2) == {(5, 0)} | {(i, j) for i, j in ((2, 1), (3, 1), (3, 2))}
    assert (table.keys[1:4, 2] == 0).all()
    assert [pair_keys(pair) for pair in table] == [tuple(keys) for keys in table.keys.tolist()]
    assert np.array_equal(equal_keys(table.keys), valid_answers(list(table)))


def test_keys_do_not_take_a_text_for_an_image():
    one, other = Item(text="a", image="/x.png"), Item(text="a/x.png")
    keys = [pair_keys(Pair(query=item, positive=item)) for item in (one, other)]
    assert keys[0] != keys[1]


def test_keys_know_an_image_however_its_file_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = store(PairRow(("a", None), (None, "../photos/x.png")), images="pairs")
    absolute = store(PairRow(("a", None), (None, str(tmp_path / "photos/x.png"))), images="elsewhere")
    assert np.array_equal(relative.keys, absolute.keys)


def test_keys_are_the_same_in_another_process():
    code = (
        "from trainer.pair_table import *; from fanoise.catalog import Item;"
        "print(pair_keys(Pair(query=Item(text='a', image='/x.png'), positive=Item(text='é'), group='g')))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    pair = Pair(query=Item(text="a", image="/x.png"), positive=Item(text="é"), group="g")
    assert found.stdout.strip() == str(pair_keys(pair)), found.stderr


def test_a_table_says_whether_it_names_images():
    assert store(PairRow(("a", None), ("b", None), [("c", None), (None, "n.png")])).names_images
    assert not store(PairRow(("a", None), ("b", None), [("c", None)])).names_images
