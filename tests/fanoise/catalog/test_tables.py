import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fanoise.catalog import tables
from fanoise.catalog.tables import TABLE_SUFFIXES, read_rows
from fanoise.errors import CatalogError
from tests.fanoise.catalog.files import raw, write

ROWS = [
    {"id": "m-1", "title": "Mug, blue", "text": 'a "blue" mug', "price": "12"},
    {"id": "näh 2", "title": "'Lamp'\ttab", "text": "first line\nsecond line", "price": ""},
]


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_every_kind_of_table_gives_the_same_rows_with_none_for_empty_cells(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", ROWS).rename(tmp_path / f"the shop{suffix.upper()}")
    assert list(read_rows(path)) == [(1, ROWS[0]), (2, {**ROWS[1], "price": None})]


def test_a_float32_is_the_fraction_that_was_written(tmp_path):
    columns = {
        "price": pa.array([19.99, None, float("inf"), 1e-10], pa.float32()),
        "sizes": pa.array([[0.1, 7.5], [], None, [None, 3e38]], pa.list_(pa.float32())),
        "vector": pa.array([[0.1] * 65] * 4, pa.list_(pa.float32())),
        "double": pa.array([0.1] * 4),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows = [row for _, row in read_rows(tmp_path / "a.parquet")]
    assert [row["price"] for row in rows] == [19.99, None, float("inf"), 1e-10]
    assert [row["sizes"] for row in rows] == [[0.1, 7.5], [], None, [None, 3e38]]
    assert rows[0]["vector"] == columns["vector"][0].as_py() and rows[0]["double"] == 0.1


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path, name):
    content = "id,text\nx,y\n" if name.endswith("csv") else '{"id": "x", "text": "y"}\n'
    path = raw(tmp_path / name, b"\xef\xbb\xbf" + content.encode())
    assert list(read_rows(path)) == [(1, {"id": "x", "text": "y"})]


def test_blank_lines_are_not_rows(tmp_path):
    assert [row for row, _ in read_rows(raw(tmp_path / "a.csv", "text\r\n\r\na\r\n\r\nb\r\n"))] == [1, 2]
    assert [row for row, _ in read_rows(raw(tmp_path / "a.jsonl", '\n{"text": "a"}\n  \n{"text": "b"}\n'))] == [1, 2]


def test_rows_come_as_a_stream(tmp_path):
    rows = read_rows(raw(tmp_path / "long.jsonl", '{"text": "a"}\n{"text": "b"}\nnot json\n'))
    assert [next(rows), next(rows)] == [(1, {"text": "a"}), (2, {"text": "b"})]
    with pytest.raises(CatalogError, match="line 3: not JSON"):
        next(rows)


def test_a_cell_may_hold_an_image_as_text(tmp_path):
    cell = "A" * 1_000_000
    assert next(read_rows(write(tmp_path / "a.csv", [{"image": cell}]))) == (1, {"image": cell})


@pytest.mark.parametrize("row", ["b", "b,c,d"])
def test_a_ragged_csv_row_is_named(tmp_path, row):
    path = raw(tmp_path / "a.csv", f"id,text\na,x\n{row}\n")
    with pytest.raises(CatalogError, match=r"a\.csv: row 2: expected 2 columns \(id, text\)"):
        list(read_rows(path))


def test_a_column_twice_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="a column name occurs twice in the header: id, text, id"):
        list(read_rows(raw(tmp_path / "a.csv", "id,text,id\n1,2,3\n")))
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["id", "id"]), tmp_path / "a.parquet")
    with pytest.raises(CatalogError, match="a column name occurs twice: id, id"):
        list(read_rows(tmp_path / "a.parquet"))


def test_columns_without_a_name_at_the_end_are_those_of_a_spreadsheet(tmp_path):
    path = raw(tmp_path / "a.csv", "id,text,,\na,x,,\nb,y\n")
    assert [row for _, row in read_rows(path)] == [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}]
    for row in ("c,z,1,", "c,z,,,", "c"):
        with pytest.raises(CatalogError, match=r"a\.csv: row 3: expected 2 columns \(id, text\)"):
            list(read_rows(raw(tmp_path / "a.csv", f"id,text,,\na,x,,\nb,y\n{row}\n")))
    with pytest.raises(CatalogError, match=r"row 1: expected 4 columns \(id, ' text', '', x\)"):
        list(read_rows(raw(tmp_path / "a.csv", "id, text,,x\na\n")))


@pytest.mark.parametrize(
    ("content", "line"),
    [('"text', 1), ('text\n"a', 2), ('text\n"a\nb"\n"c\nd\n', 4), ('text\na\n"b" c\nd\n', 3)],
)
def test_a_quote_that_is_not_closed_never_swallows_rows(tmp_path, content, line):
    with pytest.raises(CatalogError, match=rf"a\.csv: line {line}: .*write each quote twice and close the last"):
        list(read_rows(raw(tmp_path / "a.csv", content)))


@pytest.fixture
def small_cells(monkeypatch):
    monkeypatch.setattr(tables, "MAX_CELL", 1000)
    before = csv.field_size_limit(1000)
    yield
    csv.field_size_limit(before)


def test_a_cell_or_line_that_never_ends_is_not_read_to_its_end(tmp_path, small_cells):
    with pytest.raises(CatalogError, match=r"a\.csv: line 2: field larger than field limit \(1000\)"):
        list(read_rows(raw(tmp_path / "a.csv", 'text\n"' + "a" * 2000)))
    line = '{"a": "' + "a" * 992 + '"}'
    assert len(line) == 1001
    with pytest.raises(CatalogError, match=r"a\.jsonl: line 2: longer than 1000 characters"):
        list(read_rows(raw(tmp_path / "a.jsonl", f'{{"a": 1}}\n{line}')))
    assert len(list(read_rows(raw(tmp_path / "a.jsonl", line.replace("aa", "a", 1))))) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "b"', r"not JSON \(Expecting ',' delimiter at column 13\)"),
        ('{"text": "b', r"not JSON \(Unterminated string starting at column 10\)"),
        ("[1]", "expected an object, got list"),
        ("null", "expected an object, got NoneType"),
        ("[" * 100_000, "not usable JSON"),
        ('{"text": ' + "1" * 5000 + "}", "not usable JSON"),
    ],
)
def test_a_broken_json_line_is_named_by_its_number(tmp_path, line, reason):
    path = raw(tmp_path / "a.jsonl", '{"text": "a"}\n\n' + line + "\n")
    with pytest.raises(CatalogError, match=rf"a\.jsonl: line 3: {reason}"):
        list(read_rows(path))


def test_an_escaped_emoji_is_one_character_and_half_of_one_is_not_fatal(tmp_path):
    path = raw(tmp_path / "a.jsonl", r'{"text": "\ud83d\ude00"}' + "\n" + r'{"text": "\ud83d"}' + "\n")
    assert [row["text"] for _, row in read_rows(path)] == ["😀", "\ud83d"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_line_that_is_not_utf8_is_named_by_its_number(tmp_path, name):
    is_json = name.endswith("jsonl")
    line = b'{"text": "x"}\n' if is_json else b"x\n"
    content = b"text\n" * (not is_json) + line * 5000 + b'{"text": "gr\xfcn"}\n' + line
    with pytest.raises(CatalogError, match=rf"{name}: line {5001 + (not is_json)}: not UTF-8"):
        list(read_rows(raw(tmp_path / name, content)))


@pytest.mark.parametrize("position", [0.0, 0.1, 0.5, 1.0])
def test_a_damaged_parquet_file_is_a_catalog_error(tmp_path, position):
    path = write(tmp_path / "a.parquet", [{"text": f"number {number}"} for number in range(500)])
    data = bytearray(path.read_bytes())
    start = int(position * (len(data) - 40))
    data[start : start + 40] = bytes(255 - byte for byte in data[start : start + 40])
    with pytest.raises(CatalogError, match=r"a\.parquet: .*read") as error:
        list(read_rows(raw(path, bytes(data))))
    assert "\n" not in str(error.value)


def test_a_truncated_or_empty_parquet_file_is_a_catalog_error(tmp_path):
    path = write(tmp_path / "a.parquet", [{"text": "x"}])
    for content in (path.read_bytes()[:-10], b""):
        with pytest.raises(CatalogError, match="not a readable Parquet file"):
            list(read_rows(raw(path, content)))


@pytest.mark.parametrize(
    "column",
    [
        pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")),
        pa.array([2**40], pa.int64()).cast(pa.timestamp("s")),
    ],
)
def test_a_parquet_value_that_python_cannot_hold_is_named_by_its_rows(tmp_path, column):
    pq.write_table(pa.table({"text": pa.concat_arrays([column.slice(0, 0), column])}), tmp_path / "a.parquet")
    with pytest.raises(CatalogError, match=r"a\.parquet: row 1: the value of .* cannot be read"):
        list(read_rows(tmp_path / "a.parquet"))


def test_the_images_of_a_row_group_are_not_all_in_memory_at_once(tmp_path):
    rows = [{"image": bytes([number % 256]) * 200_000} for number in range(400)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none", write_batch_size=1)
    del rows, table
    before = pa.total_allocated_bytes()
    peak = 0
    for _ in read_rows(tmp_path / "a.parquet"):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 0 < peak < 60_000_000


def test_missing_files_unknown_kinds_and_folders_are_refused(tmp_path):
    with pytest.raises(CatalogError, match=r"no: no such file; give a .csv, .tsv, .jsonl, .parquet file"):
        list(read_rows(tmp_path / "no"))
    with pytest.raises(CatalogError, match=r"unknown kind '.xlsx'; expected one of .csv, .tsv, .jsonl, .parquet"):
        list(read_rows(raw(tmp_path / "a.xlsx", "x")))
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(CatalogError, match=r"a\.csv: cannot be read \(Is a directory\)"):
        list(read_rows(tmp_path / "a.csv"))
