import pyarrow as pa
import pytest

from index.items import Items, ItemWriter, concat_items, read_items, write_items


def table(path, *fields):
    writer = ItemWriter()
    for i, values in enumerate(fields):
        writer.append(id=f"{path.stem}{i}", text=None, image=None, thumbnail_sha256=None, fields=values)
    writer.write(path)
    return read_items(path)


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
