import datetime
import decimal
import json
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from fanoise.errors import InputError
from index.backends.layout import MAX_BYTES, OTHER, Field, Layout, count_shortened, ordered_digits, value_of


def table_of(fields: dict[str, list], ids: list[str] | None = None) -> pa.Table:
    n = len(next(iter(fields.values())))
    columns = {
        "id": pa.array(ids or [f"i{i}" for i in range(n)]),
        "text": pa.array(["some text"] * n),
        "image": pa.nulls(n, pa.string()),
        "thumbnail_sha256": pa.nulls(n, pa.string()),
    }
    members = [pa.array(values) for values in fields.values()]
    return pa.table(columns | {"fields": pa.StructArray.from_arrays(members, names=list(fields))})


def rows_of(table: pa.Table, layout: Layout) -> list[dict]:
    return list(layout.rows(table, np.eye(len(table), 4, dtype=np.float32), 0))


FIELDS = {
    "colour": ["Red", None],
    "sku": ["a1", "b2"],
    "price": ["10", "2.5"],
    "n": [1, None],
    "w": [float("nan"), 2.0],
    "sale": [True, None],
    "made": [datetime.date(2020, 1, 2), None],
    "cost": [decimal.Decimal("1.10"), None],
    "tags": [["A", ""], None],
    "years": [[1.0, 2.5], []],
    "id": ["own", "field"],
    "odd name!": ["x", "y"],
    "odd name?": ["x", "y"],
    "none": [None, None],
}


def test_each_kind_of_field_has_its_places():
    layout = Layout.of([table_of(FIELDS)])
    places = {
        field.name: (field.kind, field.value, field.compared, field.folded, field.number) for field in layout.fields
    }
    assert places["colour"] == ("text", "f_colour", "f_colour", "c_colour", "")
    assert places["sku"] == ("text", "f_sku", "f_sku", "f_sku", "")
    assert places["price"] == ("text", "f_price", "f_price", "f_price", "n_price")
    assert places["n"] == ("int", "f_n", "f_n", "", "f_n")
    assert places["w"] == ("float", "f_w", "f_w", "", "f_w")
    assert places["sale"] == ("bool", "f_sale", "f_sale", "", "")
    assert places["made"] == ("time", 'other["v6"]', 'other["t6"]', 'other["c6"]', 'other["t6"]')
    assert places["cost"] == ("decimal", 'other["v7"]', 'other["t7"]', "", 'other["t7"]')
    assert places["tags"] == ("list", 'other["v8"]', 'other["t8"]', 'other["c8"]', "")
    assert places["id"][1] == "f_id"
    assert {places["odd name!"][1], places["odd name?"][1]} == {"f_odd_name_", "f_odd_name__12"}


def test_values_come_back():
    table = table_of(FIELDS)
    layout = Layout.of([table])
    first, second = rows_of(table, layout)
    assert layout.values(first) == {
        name: values[0] for name, values in FIELDS.items()
    } | {"w": None, "made": "2020-01-02", "cost": "1.10"}  # fmt: skip
    assert layout.values(second)["w"] == 2.0
    assert set(layout.values(second)) == set(FIELDS)
    assert first["n_price"] == 10.0
    assert value_of(first, layout.field("cost").compared) == "1110"
    assert json.loads(json.dumps(first[OTHER])) == first[OTHER]
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@pytest.mark.parametrize("most", [7, 8, 10, 64])
def test_fields_beyond_the_columns_go_into_json(most):
    table = table_of(FIELDS)
    layout = Layout.of([table], most_columns=most)
    rows = rows_of(table, layout)
    assert len(set(rows[0]) | set(rows[1])) <= most
    assert [layout.values(row) for row in rows] == [
        Layout.of([table]).values(row) for row in rows_of(table, Layout.of([table]))
    ]
    assert set(layout.lengths) <= set(rows[0])


def test_text_is_cut_to_what_a_column_holds_at_a_whole_character():
    long = "ü" * MAX_BYTES
    table = table_of({"note": [long, "short"]})
    layout = Layout.of([table])
    row = rows_of(table, layout)[0]
    assert row["f_note"] == "ü" * (MAX_BYTES // 2)
    assert layout.lengths["f_note"] == MAX_BYTES
    assert count_shortened(table) == 1


def test_lengths_are_bytes_with_room():
    layout = Layout.of([table_of({"note": ["ü" * 100]}, ids=["x" * 70])])
    assert (layout.lengths["f_note"], layout.lengths["id"]) == (256, 128)


def test_an_id_that_is_too_long_is_named():
    with pytest.raises(InputError, match=r"id 'xxxx.*'… has 65,536 bytes; Milvus holds at most 65,535"):
        Layout.of([table_of({"n": [1]}, ids=["x" * 65_536])])


def test_half_precision_is_half_precision():
    table = table_of({"n": [1]})
    [row] = rows_of(table, Layout.of([table], is_half=True))
    assert row["vector"].dtype == np.float16


def test_digits_are_in_the_order_of_the_decimals():
    values = [-999, -101, -100, -1, 0, 1, 7, 10, 999]
    field = Field("cost", "decimal", "v", "t", precision=3, scale=1)
    digits = [ordered_digits(field, Fraction(value, 10)) for value in values]
    assert digits == sorted(set(digits)) and {len(one) for one in digits} == {4}
    assert ordered_digits(field, Fraction("7.05"), rounded=math.floor) == ordered_digits(field, Fraction(7))
    assert ordered_digits(field, Fraction(-(10**9))) < digits[0] < digits[-1] < ordered_digits(field, Fraction(10**9))


def test_an_unknown_field_lists_the_known():
    with pytest.raises(InputError, match="group_by: unknown field 'x'; the fields of this index are: n"):
        Layout.of([table_of({"n": [1]})]).field("x", said_of="group_by: ")
