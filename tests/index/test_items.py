import numpy as np
import pyarrow as pa
import pytest

from fanoise.errors import ArtifactError, InputError
from index.items import Items, ItemWriter, concat_items, write_items
from index.parquet import read_parquet


def table(path, *fields):
    writer = ItemWriter()
    for i, values in enumerate(fields):
        writer.append(id=f"{path.stem}{i}", text=None, image=None, thumbnail_sha256=None, fields=values)
    writer.write(path)
    return read_parquet(path)


def joined(tmp_path, *parts):
    tables = [table(tmp_path / f"{'abc'[i]}.parquet", *part) for i, part in enumerate(parts)]
    write_items(tmp_path / "all.parquet", concat_items(tables))
    items = Items.read(tmp_path / "all.parquet")
    return items, items.fields_of(range(len(items)))


def test_rows_are_numbered_anew_and_ids_stay(tmp_path):
    items, fields = joined(tmp_path, [{"n": 1}, {"n": 2}], [{"n": 3}])
    assert items.ids == ["a0", "a1", "b0"]
    assert fields == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert items.column("n").type == pa.int64()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (1, 2.5, [1.0, 2.5]),
        (2**60 + 1, 2.5, [str(2**60 + 1), "2.5"]),  # a float would lose the last digit
        (1, "x", ["1", "x"]),
        (True, "x", ["True", "x"]),
        (None, 5, [None, 5]),
        (None, None, [None, None]),
        ([1], ["a"], ["[1]", '["a"]']),
        ([], [1], [[], [1]]),
        ({"w": 1}, "x", ['{"w": 1}', "x"]),
    ],
)
def test_types_meet_where_no_value_is_lost_and_else_as_text(tmp_path, first, second, expected):
    for parts in ((first, second), (second, first)):
        _, fields = joined(tmp_path, *[[{"f": value}] for value in parts])
        values = [line["f"] for line in fields]
        assert (values if parts[0] is first else values[::-1]) == expected


def test_of_names_that_are_printed_alike_the_last_one_counts(tmp_path):
    fields = [{"a": 1}, {"\ud800": 2, "a": 2, "\\ud800": 3}, {"\ud800": 4}]
    assert table(tmp_path / "a.parquet", *fields)["fields"].to_pylist() == [
        {"a": 1, "\\ud800": None},
        {"a": 2, "\\ud800": 3},
        {"a": None, "\\ud800": 4},
    ]


def test_fields_that_a_table_lacks_are_null_there(tmp_path):
    items, fields = joined(tmp_path, [{"a": 1}], [{}], [{"b": "x", "a": 3}])
    assert items.field_names == ["a", "b"]
    assert fields == [{"a": 1, "b": None}, {"a": None, "b": None}, {"a": 3, "b": "x"}]


def test_tables_without_any_field(tmp_path):
    items, fields = joined(tmp_path, [{}], [{}])
    assert items.field_names == [] and fields == [{}, {}]


def test_ids_must_be_unique_among_the_living_only(tmp_path):
    part = table(tmp_path / "a.parquet", {"n": 1}, {"n": 2})
    write_items(tmp_path / "all.parquet", concat_items([part, part.slice(0, 1)]))
    with pytest.raises(ValueError, match="ids are not unique"):
        Items.read(tmp_path / "all.parquet")
    assert len(Items.read(tmp_path / "all.parquet", deleted=[0])) == 3


@pytest.mark.parametrize("name", ["../../etc/passwd", "AB" * 32, "ab", "ab" * 32 + "\n"])
def test_a_digest_that_is_none_never_becomes_a_path(tmp_path, name):
    writer = ItemWriter()
    writer.append(id="a", text=None, image=None, thumbnail_sha256=name, fields={})
    writer.write(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="thumbnail_sha256"):
        Items.read(tmp_path / "a.parquet")


def test_fields_are_read_when_asked_for_also_of_a_file_that_is_gone(tmp_path):
    path = tmp_path / "a.parquet"
    table(path, {"n": 1, "a.b": "x", "a": {"b": 2}}, {"n": 2, "a.b": "y", "a": None})
    items = Items.read(path)
    path.unlink()
    assert items.fields_of([1, 0, 1]) == [
        {"n": 2, "a.b": "y", "a": None},
        {"n": 1, "a.b": "x", "a": {"b": 2}},
        {"n": 2, "a.b": "y", "a": None},
    ]
    assert items.column("n").to_pylist() == [1, 2]
    assert items.column("a.b").to_pylist() == ["x", "y"], "which is not b of a"
    assert items.column("a").to_pylist() == [{"b": 2}, None]
    assert [piece.column_names for piece in items.pieces(["id", "text"])] == [["id", "text"]]
    with pytest.raises(InputError, match=r"unknown field 'b'; the fields of this index are: n, a\.b, a"):
        items.column("b")


def test_items_without_fields_have_none(tmp_path):
    table(tmp_path / "a.parquet", {}, {})
    items = Items.read(tmp_path / "a.parquet")
    assert (items.field_names, items.fields_of([1, 0])) == ([], [{}, {}])


def test_a_file_that_is_damaged_after_it_was_opened_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    table(path, *({"n": "x" * 50 + str(number)} for number in range(100)))
    items = Items.read(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    for read in (lambda: items.fields_of([3]), lambda: items.column("n"), lambda: list(items.pieces(["fields"]))):
        with pytest.raises(ArtifactError, match=r"a\.parquet cannot be read .* rebuild the index"):
            read()


def test_fields_that_are_no_struct_are_refused(tmp_path):
    whole = table(tmp_path / "a.parquet", {"n": 1})
    write_items(tmp_path / "b.parquet", whole.set_column(whole.column_names.index("fields"), "fields", pa.array([1])))
    with pytest.raises(ValueError, match="its fields are no struct"):
        Items.read(tmp_path / "b.parquet")


def test_a_field_too_large_to_filter_by_is_named(tmp_path, monkeypatch):
    table(tmp_path / "a.parquet", {"n": "x"})
    items = Items.read(tmp_path / "a.parquet")
    size = 3 << 29
    buffers = [None, pa.py_buffer(np.array([0, size], np.int32)), pa.py_buffer(np.zeros(size, np.uint8))]  # untouched
    half = pa.StructArray.from_arrays([pa.Array.from_buffers(pa.string(), 1, buffers)], names=["n"])
    monkeypatch.setattr(items, "table", lambda columns: pa.table({"fields": pa.chunked_array([half, half])}))
    with pytest.raises(InputError, match=r"the field 'n' holds more text \(2 GB\) than can be filtered"):
        items.column("n")
