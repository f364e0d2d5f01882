import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import index.parquet
from index.parquet import PieceWriter, Rows, open_file, read_pieces

_POOLS: list[pa.MemoryPool] = []
"""Kept: a pool must outlive what was taken from it."""


def table(sizes: list[int], first: int = 0) -> pa.Table:
    """A row with a text of each size; the fields say which row it is."""
    texts = [chr(97 + row % 26) * size for row, size in enumerate(sizes, start=first)]
    numbers, column = pa.array(range(first, first + len(sizes)), pa.int64()), pa.array(texts, pa.string())
    return pa.table({"text": column, "fields": pa.StructArray.from_arrays([numbers, column], names=["n", "text"])})


def write(path: Path, *tables: pa.Table) -> pq.ParquetFile:
    with PieceWriter(path, tables[0].schema) as writer:
        for one in tables:
            writer.write(one)
    return pq.ParquetFile(path)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(index.parquet, "GROUP_ROWS", 10)
    monkeypatch.setattr(index.parquet, "GROUP_BYTES", 4096)


def test_row_groups_are_limited_by_rows_and_by_bytes_and_a_large_row_is_alone(tmp_path):
    sizes = [1] * 25 + [1000] * 9 + [9000] + [0] * 3
    tables = [table(sizes[:7]), table(sizes[7:7], 7), table(sizes[7:], 7)]
    file = write(tmp_path / "a.parquet", *tables)
    assert file.read().equals(pa.concat_tables(tables).combine_chunks())
    groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
    assert all(1 <= len(group) <= 10 for group in groups)
    assert all(group.nbytes <= 4096 or len(group) == 1 for group in groups)
    assert sorted(map(len, groups))[-1] >= 5, "rows that fit are together"


def test_no_rows_are_a_file_with_the_schema(tmp_path):
    file = write(tmp_path / "a.parquet", table([]))
    assert file.read().equals(table([])) and list(read_pieces(tmp_path / "a.parquet")) == []


def test_a_file_that_is_broken_off_says_why_and_not_that_it_cannot_be_closed(tmp_path):
    with pytest.raises(KeyboardInterrupt), PieceWriter(tmp_path / "a.parquet", table([1]).schema) as writer:
        writer.write(table([5]))
        raise KeyboardInterrupt


def test_pieces_of_one_large_row_group_are_small(tmp_path):
    rng = np.random.default_rng(0)
    texts = [rng.integers(97, 123, 500, dtype=np.uint8).tobytes().decode() for _ in range(200)]
    whole = pa.table({"n": range(200), "text": texts})
    pq.write_table(whole, tmp_path / "a.parquet", row_group_size=200)
    pieces = list(read_pieces(tmp_path / "a.parquet"))
    assert pa.concat_tables(pieces).combine_chunks().equals(whole)
    assert max(piece.nbytes for piece in pieces) < 3 * index.parquet.GROUP_BYTES
    assert next(read_pieces(tmp_path / "a.parquet", ["n"])).column_names == ["n"]


@pytest.fixture
def reads(monkeypatch):
    """The row groups that were read, in order."""
    numbers = []

    class Counting(pq.ParquetFile):
        def read_row_group(self, number, **options):
            numbers.append(number)
            return super().read_row_group(number, **options)

    monkeypatch.setattr(index.parquet.pq, "ParquetFile", Counting)
    return numbers


def test_rows_are_found_where_they_are_and_what_was_used_last_is_kept(tmp_path, reads):
    write(tmp_path / "a.parquet", table([10] * 45))
    (size,) = {pq.ParquetFile(tmp_path / "a.parquet").read_row_group(0, columns=["fields"]).nbytes}
    reads.clear()
    rows = Rows(open_file(tmp_path / "a.parquet"), ["fields"], keep_bytes=int(2.5 * size))
    (tmp_path / "a.parquet").unlink()

    def take(*numbers):
        found = rows.take(numbers)
        assert [row["fields"]["n"] for row in found] == list(numbers)
        assert all(row.keys() == {"fields"} for row in found)

    take(44, 0, 9, 10, 0)
    groups = list(reads)
    assert len(set(groups)) == len(groups) == 3
    take(0, 9, 10)
    assert reads == groups, "the last two are kept"
    take(44)
    assert reads == [*groups, groups[0]], "and the one before is not"
    take(*range(45))


def test_one_row_group_is_kept_however_large(tmp_path, reads):
    write(tmp_path / "a.parquet", table([10] * 20))
    rows = Rows(open_file(tmp_path / "a.parquet"), ["fields"], keep_bytes=0)
    assert rows.take([3, 4]) == [*rows.take([3]), *rows.take([4])]
    assert len(reads) == 1


def test_of_rows_in_many_row_groups_one_group_at_a_time_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(index.parquet, "GROUP_BYTES", 1 << 18)
    file = write(tmp_path / "a.parquet", *(table([10_000] * 10, first) for first in range(0, 300, 10)))
    assert file.num_row_groups == 30
    rows = Rows(open_file(tmp_path / "a.parquet"), ["fields"], keep_bytes=0)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        found = rows.take(range(299, -1, -7))
    finally:
        pa.set_memory_pool(before)
    assert [row["fields"]["n"] for row in found] == list(range(299, -1, -7))
    assert 100_000 <= pool.max_memory() < 30 * 100_000 / 3, "that of all groups is 30 times as much"
    _POOLS.append(pool)


def test_threads_may_ask_at_once(tmp_path):
    write(tmp_path / "a.parquet", *(table([30] * 8, first) for first in range(0, 400, 8)))
    rows = Rows(open_file(tmp_path / "a.parquet"), ["fields"], keep_bytes=3000)
    wrong = []

    def ask(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            numbers = rng.integers(0, 400, 5).tolist()
            try:
                found = [row["fields"]["n"] for row in rows.take(numbers)]
            except Exception as error:
                wrong.append(error)
            else:
                if found != numbers:
                    wrong.append((numbers, found))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
