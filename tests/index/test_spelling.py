import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from index.spelling import as_number, as_time, decimal_type, read_texts, spelled_numbers

TEXTS = pa.list_(pa.string())
WHOLES, FRACTIONS, DECIMALS = pa.list_(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.decimal128(4, 2))
PRICE = pa.decimal128(4, 2)
DAY, TIME = datetime.date(2026, 2, 3), datetime.time


# What each form makes of a text: `as_number`, with codes and without; `read_texts` for int64 or float64, and for
# decimals.
FORMS = {
    "20": ("20", "20", 20, "20"),
    "-3": ("-3", "-3", -3, "-3"),
    "2.50": ("2.5", "2.5", 2.5, "2.50"),
    "-0": ("0", "0", 0, "0"),
    "9007199254740993": (2**53 + 1, 2**53 + 1, 2**53 + 1, 2**53 + 1),
    "0.12345678901234567": ("0.12345678901234567", "0.12345678901234567", None, "0.12345678901234567"),
    "9" * 60: ("9" * 60, "9" * 60, None, "9" * 60),
    "9" * 80: ("9" * 80, "9" * 80, None, None),
    "007": (7, None, None, None),
    " -01.5": ("-1.5", None, None, None),
    "12E5": (1200000, 1200000, None, None),
    "+1e-1": ("0.1", "0.1", None, None),
    " 20 ": (20, 20, None, None),
    "\n7\t": (7, 7, None, None),
    "5\x85": (5, 5, None, None),
    "\u30005": (5, 5, None, None),
    "5.": (5, 5, None, None),
    ".5": ("0.5", "0.5", None, None),
    "٣": (3, 3, None, None),
    "１０.５": ("10.5", "10.5", None, None),
    "1E-400": ("1E-400", "1E-400", None, None),
    "9" * 400: (None, None, None, None),
    "-" + "9" * 5000: (None, None, None, None),
    "1e400": (None, None, None, None),
    "0." + "1" * 1200: (None, None, None, None),
    "1e9999999999999999999999": (None, None, None, None),
    "0e-9999": (None, None, None, None),
    **dict.fromkeys(["", ".", "cheap", "1,5", "nan", "inf", "-Infinity", "sNaN", "1_000"], (None, None, None, None)),
    **dict.fromkeys(["0x10", "12 kg", "1.2.3", "+ 5", "--5", "1e", "e5", "5\0", "1 000"], (None, None, None, None)),
}  # fmt: skip


@pytest.mark.parametrize(("text", "forms"), FORMS.items())
def test_each_form_of_a_number(text, forms):
    number, no_code, typed, decimal = forms
    assert as_number(text) == (None if number is None else Decimal(number))
    assert as_number(text, codes=False) == (None if no_code is None else Decimal(no_code))
    column = pa.array([text, None])
    kind = pa.int64() if isinstance(typed, int) else pa.float64()
    found = read_texts(column, kind)
    assert (None if found is None else found.to_pylist()) == (None if typed is None else [typed, None])
    found = read_texts(column, PRICE)
    assert (None if found is None else found.to_pylist()) == (None if decimal is None else [Decimal(decimal), None])


def test_columns_spell_the_numbers_that_single_texts_do():
    texts = list(FORMS)
    expected = [np.nan if (number := as_number(text)) is None else float(number) for text in texts]
    np.testing.assert_array_equal(spelled_numbers(pa.array(texts)), expected)
    assert len(spelled_numbers(pa.array([], pa.string()))) == 0


def test_random_decimals_are_read_to_the_last_bit():
    rng = np.random.default_rng(1)
    texts = [repr(x) for x in (rng.normal(size=500) * 10.0 ** rng.integers(-300, 300, 500)).tolist()]
    assert spelled_numbers(pa.array(texts)).tolist() == list(map(float, texts))
    assert [float(as_number(text)) for text in texts] == list(map(float, texts))


@pytest.mark.parametrize(
    ("texts", "kind", "expected"),
    [
        (["5", None, "-3"], pa.int64(), [5, None, -3]),
        (["5", "7.50"], pa.int64(), [5.0, 7.5]),
        (["0.25", "-3"], pa.float64(), [0.25, -3.0]),
        (["7", "n/a"], pa.int64(), None),
        ([str(2**70)], pa.int64(), None),
        ([str(2**60 + 1)], pa.float64(), None),
        (["9999999999999999", "0.5"], pa.int64(), None),
        (["5", "19.99", None], PRICE, [Decimal("5.00"), Decimal("19.99"), None]),
        (["19.999", "-12345.1"], PRICE, [Decimal("19.999"), Decimal("-12345.100")]),
        (["5", "cheap"], PRICE, None),
        ([None], PRICE, [None]),
        (["True", "FALSE", None], pa.bool_(), [True, False, None]),
        (["yes"], pa.bool_(), None),
        (["2026-02-03", None], pa.date32(), [DAY, None]),
        (["soon"], pa.date32(), None),
        (["05:06", "23:59:59.25", None], pa.time64("us"), [TIME(5, 6), TIME(23, 59, 59, 250_000), None]),
        (["25:00"], pa.time64("us"), None),
        (["05"], pa.time64("us"), None),
        (["05:06+01:00"], pa.time64("us"), None),
        (["a", '["b", "c"]', "[1]", None], TEXTS, [["a"], ["b", "c"], ["[1]"], None]),
        (["[1, 3]", "5", None, "[]", "[null]"], WHOLES, [[1, 3], [5], None, [], [None]]),
        (["[1, 2.5]"], WHOLES, [[1.0, 2.5]]),
        (["[0.5]", "3"], FRACTIONS, [[0.5], [3.0]]),
        (["[19.99]", "3"], DECIMALS, [[Decimal("19.99")], [Decimal(3)]]),
        (["[1, 2]", "x"], WHOLES, None),
        (["[1, NaN]"], FRACTIONS, None),
        (["[[1]]"], WHOLES, None),
        (["[true, false]", "True"], pa.list_(pa.bool_()), [[True, False], [True]]),
        (['["2026-02-03"]', "2026-02-03"], pa.list_(pa.date32()), [[DAY], [DAY]]),
        (["{}"], pa.struct([("a", pa.int64())]), None),
        ([None], pa.int64(), [None]),
    ],
)
def test_texts_are_read_if_each_spells_a_value_and_nothing_of_it_is_lost(texts, kind, expected):
    found = read_texts(pa.array(texts, pa.string()), kind)
    assert expected == (None if found is None else found.to_pylist())


@pytest.mark.parametrize(
    ("text", "kind"),
    [("5", PRICE), ("19.999", pa.decimal128(5, 3)), ("123", pa.decimal128(5, 2)), ("1" * 40, pa.decimal256(42, 2))],
)
def test_decimals_get_the_digits_that_they_need(text, kind):
    assert read_texts(pa.array([text]), PRICE).type == kind == decimal_type(kind.precision, kind.scale)


@pytest.mark.parametrize(
    ("text", "zone", "seconds"),
    [
        ("1970-01-01", "", 0),
        (" 1970-01-01 00:00:01.5 ", "", 1.5),
        ("1970-01-01T01:00+01:00", "Europe/Berlin", 0),
        ("1970-01-01T01:00", "Europe/Berlin", 0),
        ("1970-07-01T00:00", "+02:00", 181 * 86_400 - 7200),
        ("1969-12-31T23:59:59Z", "", -1),
        ("1970-01-01T05:30", "+05:30", 0),
    ],
)
def test_texts_that_spell_times(text, zone, seconds):
    assert as_time(text, zone) == as_time(text, zone, is_bound=True) == seconds * 10**6


def test_a_year_or_a_month_is_a_time_as_a_bound_alone():
    assert as_time("1970-02", is_bound=True) == 31 * 86_400 * 10**6
    assert as_time("1970", is_bound=True) == 0
    assert [as_time(text) for text in ("1970-02", "1970", "soon", "", "1970-13-01", "12:00")] == [None] * 6
    assert as_time("1970-13", is_bound=True) is None
