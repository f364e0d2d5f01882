import datetime
import decimal
import zoneinfo

import numpy as np
import pyarrow as pa
import pytest

from fanoise.catalog.arrow import arrow_rows
from fanoise.errors import CatalogError

FLOATS = [19.99, -0.1, 0.0, -0.0, float("nan"), float("inf"), 3e4, 7.5]
KINDS = {
    "float32": (pa.float32(), FLOATS),
    "float64": (pa.float64(), FLOATS),
    "float16": (pa.float16(), FLOATS),
    "int8": (pa.int8(), [-128, 0, 127]),
    "int64": (pa.int64(), [2**53 + 1, -(2**63), 2**63 - 1, 0]),
    "uint64": (pa.uint64(), [2**64 - 1, 2**53 + 1, 0]),
    "bool": (pa.bool_(), [True, False]),
    "string": (pa.string(), ["1", "", "x"]),
    "decimal": (pa.decimal128(9, 2), [decimal.Decimal("19.99"), decimal.Decimal("-1")]),
    "date": (pa.date32(), [datetime.date(2024, 1, 2)]),
    "lists": (pa.list_(pa.float32()), [[0.1, 2], [], None]),
}
LISTS = {
    "list": pa.list_,
    "large": pa.large_list,
    "fixed": lambda kind: pa.list_(kind, 3),
    "fixed long": lambda kind: pa.list_(kind, 70),
}


def rows_of(column, vectors=None):
    batch = pa.record_batch({"n": pa.array(range(len(column))), "v": column, "w": column})
    rows = [row for start in (0, 5) for row in arrow_rows(batch.slice(start, len(batch) - 7), "here", 1, vectors)]
    assert [list(row) for row in rows] == [["n", "v", "w"]] * len(rows)
    return rows


def same(one, other):
    return repr(one) == repr(other)  # tells -0.0, NaN and True from what they equal


@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("kind", KINDS)
def test_number_rows_are_the_lists_to_the_last_bit(kind, lists):
    """Nulls for lists and inside them, empty lists, slices, short lists and long ones, over several pieces."""
    rng = np.random.default_rng(0)
    number, pool = KINDS[kind]
    of_list = LISTS[lists](number)
    for share_of_nulls in (0.0, 0.3):
        values = []
        for row in range(300):
            length = of_list.list_size if lists.startswith("fixed") else int(rng.integers(0, (5, 100, 200)[row // 100]))
            members = [pool[i] for i in rng.integers(0, len(pool), length)]
            if length and row % 50 == 0:
                members[-1] = None if share_of_nulls else pool[0]
            values.append(None if rng.random() < share_of_nulls else members)
        column = pa.array(values, of_list)
        plain = column.to_pylist()
        lists_of, arrays_of = (rows_of(column, vectors) for vectors in (None, "v"))
        taken = 0
        for other, row in zip(lists_of, arrays_of, strict=True):
            assert same(row["w"], other["w"]) and row["n"] == other["n"]
            taken += isinstance(row["v"], np.ndarray)
            expected = plain[row["n"]]
            if isinstance(row["v"], np.ndarray):
                assert row["v"].astype(np.float64).tobytes() == np.asarray(expected, np.float64).tobytes()
            else:
                assert same(row["v"], expected)
        is_number = pa.types.is_floating(number) or pa.types.is_integer(number)
        assert (taken > 0) == is_number
        if is_number and not share_of_nulls:
            assert taken == len(arrays_of)


def test_number_rows_keep_their_type_and_no_more_of_the_batch_than_their_piece():
    [row] = arrow_rows(pa.record_batch({"v": pa.array([[0.1] * 100], pa.list_(pa.float32()))}), "here", 1, "v")
    assert row["v"].dtype == np.float32 and row["v"].base.nbytes == 400
    column = pa.array([[1, 2]] * 1000)
    rows = list(arrow_rows(pa.record_batch({"v": column}), "here", 1, "v"))
    assert rows[0]["v"].base.nbytes == 128 * 16


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32()])
def test_small_floats_are_the_fractions_that_were_written_wherever_they_are(kind):
    price = 19.98 if kind == pa.float16() else 19.99
    value = [price, None]
    columns = {
        "plain": pa.array([price, None], kind),
        "list": pa.array([value, None], pa.list_(kind)),
        "large": pa.array([value, None], pa.large_list(kind)),
        "fixed": pa.array([value, None], pa.list_(kind, 2)),
        "struct": pa.array([{"a": price, "b": "x"}, None], pa.struct([("a", kind), ("b", pa.string())])),
        "nested": pa.array([[{"a": value}], []], pa.list_(pa.struct([("a", pa.list_(kind, 2))]))),
        "matrix": pa.array([[value, []], [None]], pa.list_(pa.list_(kind))),
        "long": pa.array([[price] * 65, [price] * 65], pa.list_(kind, 65)),
    }
    batch = pa.record_batch({name: pa.concat_arrays([column[:1], column]) for name, column in columns.items()})
    first, second = arrow_rows(batch.slice(1), "here", 1)
    assert first | {"long": None} == {
        "plain": price,
        "list": value,
        "large": value,
        "fixed": value,
        "struct": {"a": price, "b": "x"},
        "nested": [{"a": value}],
        "matrix": [value, []],
        "long": None,
    }
    assert first["long"] == columns["long"][0].as_py() != [price] * 65
    assert {name: second[name] for name in ("plain", "list", "large", "fixed", "struct", "nested", "matrix")} == {
        **dict.fromkeys(("plain", "list", "large", "fixed", "struct")),
        "nested": [],
        "matrix": [None],
    }


def test_each_half_is_a_fraction_that_rounds_to_it():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    batch = pa.record_batch({"v": pa.array(halves)})
    found = np.array([row["v"] for row in arrow_rows(batch, "here", 1)])
    finite = np.isfinite(halves)
    assert np.array_equal(found.astype(np.float16)[finite], halves[finite])
    assert np.array_equal(found[~finite], halves[~finite].astype(float), equal_nan=True)


def test_times_past_the_end_of_a_zone_are_in_utc_and_others_in_theirs():
    """9999-12-31T23:59:59Z stands for "no end" in many tables."""
    end, start = 253_402_300_799_000_000, -62_135_596_800_000_000
    day = 86_400_000_000
    for zone, far in (("Europe/Berlin", end), ("America/New_York", start)):
        kind = pa.timestamp("us", zone)
        column = pa.array([far, None, 0, far - day * (1 if far > 0 else -1)], pa.int64()).cast(kind)
        first, second, third, fourth = (row["t"] for row in arrow_rows(pa.record_batch({"t": column}), "here", 1))
        assert (first.year, first.tzinfo) == (9999 if far > 0 else 1, zoneinfo.ZoneInfo("UTC")) and second is None
        assert (
            third == datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
            and str(third.tzinfo) == str(fourth.tzinfo) == zone
        )


def test_nanoseconds_are_cut_whether_or_not_pandas_is_there():
    times = pa.record_batch({"t": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", "UTC"))})
    first, second = (row["t"] for row in arrow_rows(times, "here", 1))
    assert type(first) is datetime.datetime and first.microsecond == 123_456 and second is None


def test_a_zone_that_is_not_known_here_is_named_by_row_and_column():
    column = pa.array([None, 5], pa.int64()).cast(pa.timestamp("us", "Mars/Olympus"))
    with pytest.raises(CatalogError, match=r"^x: row 2: the value of 't' cannot be read"):
        list(arrow_rows(pa.record_batch({"t": column}), "x", 1))


def test_a_value_that_python_cannot_hold_is_named_by_row_and_column():
    numbers = pa.array([0, 2**62], pa.int64())
    batch = pa.record_batch({"a": pa.array([1, 2]), "t": numbers.cast(pa.timestamp("us"))})
    with pytest.raises(CatalogError, match=r"^x\.parquet: row 8: the value of 't' cannot be read"):
        list(arrow_rows(batch, "x.parquet", 7))
