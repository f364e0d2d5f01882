import datetime
import itertools
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from fanoise.errors import InputError
from index.filters import FieldFilter

COLUMNS = {
    "price": [20.0, 19.5, None, float("nan"), 5.0, 20.0],
    "stock": [1, 2, 9007199254740993, None, 9007199254740992, -3],
    "sale": [True, False, None, True, False, True],
    "title": ["Red shoe", "blue SHOE", "", None, "Straße", "red"],
    "csv": ["9", "10", "2.50", "", None, "100"],
    "mixed": ["9", "10", "n/a", "", None, "100"],
    "days": ["01/02/2026", "31/12/2025", None, "2026-03-01", "", "1/5/2024"],
    "tags": [["a", "b"], ["b"], [], None, ["c", None], ["B"]],
    "sizes": [[38, 40], [40], [], None, [42], [None]],
    "seen": [datetime.date(2026, 1, 2), datetime.date(2025, 12, 31), None, None, datetime.date(2026, 3, 1), None],
    "none": [None] * 6,
}


@pytest.fixture
def filter():
    return FieldFilter(list(COLUMNS), lambda name: pa.array(COLUMNS[name]))


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"price": 20}, [0, 5]),
        ({"price": "20.0"}, [0, 5]),
        ({"price": "cheap"}, []),
        ({"price": {"in": [5, "19.5"]}}, [1, 4]),
        ({"price": {"not": 20}}, [1, 4]),
        ({"price": {"min": 5, "max": 19.5}}, [1, 4]),
        ({"price": {"min": "19.6"}}, [0, 5]),
        ({"price": [{"min": 6}, {"not": 20}]}, [1]),
        ({"stock": 9007199254740993}, [2]),
        ({"stock": "9007199254740992"}, [4]),
        ({"stock": 1.5}, []),
        ({"stock": 10**30}, []),
        ({"stock": {"max": 1.5}}, [0, 5]),
        ({"stock": {"min": 9007199254740993}}, [2]),
        ({"sale": "true"}, [0, 3, 5]),
        ({"sale": False}, [1, 4]),
        ({"sale": {"not": "TRUE"}}, [1, 4]),
        ({"sale": 1}, []),
        ({"title": "red"}, [5]),
        ({"title": {"contains": "RED"}}, [0, 5]),
        ({"title": {"contains": "(red"}}, []),
        ({"title": [{"contains": "red"}, {"contains": "shoe"}]}, [0]),
        ({"title": {"not": "red"}}, [0, 1, 4]),
        ({"title": ""}, []),
        ({"title": {"min": "a"}}, [1, 5]),
        ({"csv": {"min": 9}}, [0, 1, 5]),
        ({"csv": {"max": "9.5"}}, [0, 2]),
        ({"csv": "2.5"}, [2]),
        ({"csv": "2.50"}, [2]),
        ({"mixed": {"min": "9"}}, [0, 1, 5]),
        ({"mixed": {"max": 9.5}}, [0]),
        ({"mixed": {"min": "9", "max": "o"}}, [0, 2]),
        ({"days": {"min": "2026"}}, [1, 3]),
        ({"days": {"min": "2026-01-01"}}, [1, 3]),
        ({"tags": "b"}, [0, 1]),
        ({"tags": ["a", "b"]}, [0]),
        ({"tags": {"in": ["a", "c"]}}, [0, 4]),
        ({"tags": {"not": "a"}}, [1, 4, 5]),
        ({"tags": {"contains": "b"}}, [0, 1, 5]),
        ({"sizes": 40}, [0, 1]),
        ({"sizes": {"min": 39, "max": 41}}, [0, 1]),
        ({"sizes": {"not": [40]}}, [4]),
        ({"seen": "2026-01-02"}, [0]),
        ({"seen": {"min": "2026"}}, [0, 4]),
        ({"none": "x"}, []),
        ({"none": {"not": "x"}}, []),
        ({"price": {"min": 1}, "sale": True}, [0, 5]),
    ],
)
def test_each_type_is_compared_as_documented(filter, where, rows):
    mask = filter.mask(where)
    assert mask.dtype == bool and np.flatnonzero(mask).tolist() == rows


SPELLED = {
    "cost": ["10.00", "10", " 1e1 ", "007", "7", "n/a", "", None, "0.5", "-0", "9007199254740993", "9007199254740992"],
    "active": ["True", "false", "TRUE", " true", "yes", None, "", "truth", "1", "no", "no", "no"],
    "food": ["café", "cafe\u0301", "CAFE\u0301", "Straße", "STRASSE", "ＡＢ", "ab", "ﬁn", "ΣΑΣ", "", None, "\u212b"],
    "costs": [["10.0", "x"], ["9"], [], None, ["1e1"], ["True"], ["cafe\u0301"], [""], [None], ["a"], ["b"], ["c"]],
    "huge": [
        "0e99999999999999999999999",
        "0",
        "9" * 400,
        "1e400",
        "inf",
        "nan",
        "00",
        "+0",
        "0.0",
        "0x0",
        "0_0",
        "1e-999",
    ],
}


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"cost": 10}, [0, 1, 2]),
        ({"cost": "10.000"}, [0, 1, 2]),
        ({"cost": {"not": " 10 "}}, [3, 4, 5, 8, 9, 10, 11]),
        ({"cost": {"in": ["1E1", "n/a", ".5"]}}, [0, 1, 2, 5, 8]),
        ({"cost": 7}, [4]),
        ({"cost": "007"}, [3]),
        ({"cost": "07"}, []),
        ({"cost": {"min": 7, "max": 7}}, [3, 4]),
        ({"cost": 0}, [9]),
        ({"cost": 9007199254740993}, [10]),
        ({"cost": "9007199254740992.0"}, [11]),
        ({"huge": 0}, [1, 7, 8]),
        ({"huge": "9" * 400}, [2]),
        ({"huge": "inf"}, [4]),
        ({"active": "true"}, [0, 2]),
        ({"active": True}, [0, 2]),
        ({"active": {"not": "FALSE"}}, [0, 2, 3, 4, 7, 8, 9, 10, 11]),
        ({"active": "YES"}, []),
        ({"active": "1.0"}, [8]),
        ({"food": "café"}, [0, 1]),
        ({"food": {"not": "cafe\u0301"}}, [2, 3, 4, 5, 6, 7, 8, 11]),
        ({"food": {"in": ["cafe\u0301", "\u00c5"]}}, [0, 1, 11]),
        ({"food": {"contains": "FÉ"}}, [0, 1, 2]),
        ({"food": {"contains": "FE\u0301"}}, [0, 1, 2]),
        ({"food": {"contains": "STRASSE"}}, [3, 4]),
        ({"food": {"contains": "raß"}}, [3, 4]),
        ({"food": {"contains": "AB"}}, [5, 6]),
        ({"food": {"contains": "FI"}}, [7]),
        ({"food": {"contains": "ας"}}, [8]),
        ({"costs": 10}, [0, 4]),
        ({"costs": {"not": "10"}}, [1, 5, 6, 9, 10, 11]),
        ({"costs": "true"}, [5]),
        ({"costs": "café"}, [6]),
    ],
)
def test_texts_are_equal_in_each_of_their_spellings(where, rows):
    filter = FieldFilter(list(SPELLED), lambda name: pa.array(SPELLED[name]))
    assert np.flatnonzero(filter.mask(where)).tolist() == rows


def test_random_texts_equal_a_number_as_python_has_it():
    rng = np.random.default_rng(4)
    whole, digits = rng.integers(-3, 4, 400), rng.integers(0, 3, 400)
    texts = [f"{' ' * int(d)}{w}{'.' if d else ''}{'0' * int(d)}" for w, d in zip(whole, digits, strict=True)]
    filter = FieldFilter(["text"], lambda _: pa.array(texts))
    for asked in ("2", "-1.0", "0", "9"):
        assert filter.mask({"text": asked}).tolist() == [float(text) == float(asked) for text in texts]


CENTS = [Decimal(cents).scaleb(-2) for cents in range(1, 100_000)]


@pytest.mark.parametrize("kind", [pa.decimal128(5, 2), pa.decimal128(38, 4), pa.decimal256(76, 2)], ids=str)
def test_decimals_are_what_they_are_written(kind):
    filter = FieldFilter(["price"], lambda _: pa.array([*CENTS, None], kind))
    every = np.arange(len(CENTS))
    for where in (list(map(str, CENTS[::7])), [float(one) for one in CENTS[::7]]):
        assert np.flatnonzero(filter.mask({"price": {"in": where}})).tolist() == every[::7].tolist()
        assert np.flatnonzero(filter.mask({"price": {"not": where}})).tolist() == every[every % 7 != 0].tolist()
    for row in np.random.default_rng(1).choice(every, 40).tolist():
        bound = CENTS[row]
        assert np.flatnonzero(filter.mask({"price": str(bound)})).tolist() == [row]
        assert np.flatnonzero(filter.mask({"price": {"max": str(bound)}})).tolist() == every[: row + 1].tolist()
        assert np.flatnonzero(filter.mask({"price": {"min": float(bound)}})).tolist() == every[row:].tolist()
        between = {"min": f"{bound}00001", "max": f"{bound + 1}99999"}
        assert np.flatnonzero(filter.mask({"price": between})).tolist() == every[row + 1 : row + 101].tolist()


VAST = ["-0.5", f"-{10**60}.25", f"{10**60}.25", f"{10**60}.26", "0", None, "9007199254740993", "9007199254740992"]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        (f"{10**60}.25", [2]),
        (f"{10**60}", []),
        ({"not": f"{10**60}.250"}, [0, 1, 3, 4, 6, 7]),
        ("-.50", [0]),
        ("-0", [4]),
        (2**53 + 1, [6]),
        ({"in": ["9007199254740992.0", "cheap"]}, [7]),
        ({"min": f"{10**60}.251"}, [3]),
        ({"min": f"{10**60}.25"}, [2, 3]),
        ({"max": f"-{10**60}.2499999"}, [1]),
        ({"min": -1, "max": 1e-300}, [0, 4]),
        ({"min": 1e300}, []),
        ({"max": "1e300"}, [0, 1, 2, 3, 4, 6, 7]),
    ],
)
def test_decimals_of_many_digits_are_compared_to_the_last(where, rows):
    values = [None if text is None else Decimal(text) for text in VAST]
    flat = FieldFilter(["n"], lambda _: pa.array(values))
    assert np.flatnonzero(flat.mask({"n": where})).tolist() == rows
    lists = FieldFilter(["n"], lambda _: pa.array([[value, value] for value in values]))
    assert np.flatnonzero(lists.mask({"n": where})).tolist() == rows


def test_whole_numbers_are_compared_to_the_last_digit_however_they_are_asked_for(filter):
    assert np.flatnonzero(filter.mask({"stock": "9007199254740993.0"})).tolist() == [2]
    assert np.flatnonzero(filter.mask({"stock": {"max": "9007199254740992.5", "min": 3}})).tolist() == [4]


DAYS = [
    datetime.date(2026, 1, 1),
    datetime.date(2026, 1, 2),
    None,
    datetime.date(1969, 12, 31),
    datetime.date(2026, 2, 1),
]
TIMES = [datetime.datetime.combine(day, datetime.time(12)) if day else None for day in DAYS]
TYPES = {
    "date32": (DAYS, pa.date32()),
    "date64": (DAYS, pa.date64()),
    "s": (TIMES, pa.timestamp("s")),
    "ms": (TIMES, pa.timestamp("ms")),
    "us": (TIMES, pa.timestamp("us")),
    "ns": (TIMES, pa.timestamp("ns")),
    "berlin": (TIMES, pa.timestamp("us", "Europe/Berlin")),
    "east": (TIMES, pa.timestamp("ms", "+05:30")),
    "lists": ([[one, None] for one in TIMES], pa.list_(pa.timestamp("us"))),
}
"""TIMES of a zone are in UTC."""


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        *[({name: {"min": "2026-01-02T12:00"}}, [1, 4]) for name in ("s", "ms", "us", "ns", "berlin", "east", "lists")],
        *[({name: {"min": "2026-01-02T12:00:00.000001"}}, [4]) for name in ("s", "ms", "us", "ns", "lists")],
        *[({name: {"max": "2026-01-01T11:59:59.999999"}}, [3]) for name in ("s", "ms", "us", "ns", "lists")],
        *[({name: "2026-01-02 12:00:00"}, [1]) for name in ("s", "ms", "us", "ns", "lists")],
        *[({name: "2026-01-02T13:00+01:00"}, [1]) for name in ("s", "us", "ns", "berlin", "east", "lists")],
        *[({name: {"min": "2026-01-02T00:00"}}, [1, 4]) for name in ("date32", "date64")],
        *[({name: {"min": "2026-01-02T00:01"}}, [4]) for name in ("date32", "date64")],
        *[({name: {"max": "2026-01-01T23:59"}}, [0, 3]) for name in ("date32", "date64")],
        *[({name: {"in": ["2026-01-02", "1969-12-31T00:00"]}}, [1, 3]) for name in ("date32", "date64")],
        ({"date32": {"not": datetime.date(2026, 1, 2)}}, [0, 3, 4]),
        ({"date32": "2026-01-02T12:00"}, []),
        ({"date32": "2026"}, []),
        ({"date32": {"min": "2026-02"}}, [4]),
        ({"date32": {"max": 2026}}, [0, 3]),
        ({"us": {"max": "2026-01-02"}}, [0, 3]),
        ({"us": "soon"}, []),
        ({"us": {"not": "soon"}}, [0, 1, 3, 4]),
        ({"us": {"contains": "-01 12"}}, [0, 4]),
        ({"ns": {"max": "9999-12-31"}}, [0, 1, 3, 4]),
        ({"ns": "9999-12-31"}, []),
        ({"berlin": "2026-01-02T13:00"}, [1]),
        ({"berlin": {"min": "2026-01-02T13:01"}}, [4]),
        ({"east": "2026-01-02T17:30"}, [1]),
        ({"lists": {"not": "2026-01-02T12:00"}}, [0, 3, 4]),
    ],
)  # fmt: skip
def test_times_are_compared_as_times(where, rows):
    filter = FieldFilter(list(TYPES), lambda name: pa.array(*TYPES[name]))
    assert np.flatnonzero(filter.mask(where)).tolist() == rows


def test_random_conditions_equal_a_loop_over_the_rows():
    rng = np.random.default_rng(3)
    words = ["ab", "Ba", "c", "", None, "cab"]
    columns = {
        "word": [words[i] for i in rng.integers(0, 6, 300)],
        "number": [None if v == 0 else v / 2 for v in rng.integers(0, 9, 300).tolist()],
        "tags": [[words[i] for i in rng.integers(0, 3, n)] for n in rng.integers(0, 3, 300)],
    }
    fields = FieldFilter(list(columns), lambda name: pa.array(columns[name]))

    def members(name, row):
        value = columns[name][row]
        return [v for v in (value if isinstance(value, list) else [value]) if v not in (None, "")]

    tests = {
        "word": [
            ("ab", lambda v: v == "ab"),
            ({"in": ["c", "Ba"]}, lambda v: v in ("c", "Ba")),
            ({"min": "ab", "max": "c"}, lambda v: "ab" <= v <= "c"),
            ({"contains": "A"}, lambda v: "a" in v.lower()),
        ],
        "number": [(1, lambda v: v == 1), ({"min": 1.5}, lambda v: v >= 1.5), ({"max": 2}, lambda v: v <= 2)],
        "tags": [("c", lambda v: v == "c"), ({"contains": "b"}, lambda v: "b" in v.lower())],
    }
    for name in tests:
        for condition, holds in tests[name]:
            expected = [any(holds(v) for v in members(name, row)) for row in range(300)]
            assert fields.mask({name: condition}).tolist() == expected
        expected = [bool(members(name, row)) and not {"c", 1.0} & set(members(name, row)) for row in range(300)]
        assert fields.mask({name: {"not": ["c", 1]}}).tolist() == expected
    for (a, holds_a), (b, holds_b) in itertools.product(tests["word"], tests["number"]):
        expected = [
            any(map(holds_a, members("word", row))) and any(map(holds_b, members("number", row))) for row in range(300)
        ]
        assert fields.mask({"word": a, "number": b}).tolist() == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"price": {"min": "cheap"}}, "where price>=cheap: the field 'price' holds numbers; give one, such as 10"),
        ({"csv": {"max": "dear"}}, "where csv<=dear: the field 'csv' holds numbers"),
        ({"sale": {"min": 0}}, "where sale>=0: the field 'sale' holds flags, which have no order; use ="),
        ({"price": {"contains": "2"}}, r"where price\*=2: the field 'price' holds numbers, and only text"),
        (
            {"seen": {"min": "soon"}},
            "where seen>=soon: the field 'seen' holds times; give one, such as 2026-01-31 or 2026-01-31T12:00",
        ),
        ({"colour": "red"}, "unknown field 'colour'; the fields of this index are: price, stock"),
        ({"prize": 3}, r"price, stock.*; did you mean 'price'\?"),
        ({"id": "a"}, "; an id is no field"),
    ],
)
def test_a_condition_that_does_not_suit_the_field_is_refused(filter, where, message):
    with pytest.raises(InputError, match=message):
        filter.mask(where)


@pytest.mark.parametrize(
    ("where", "notes"),
    [
        ({"title": "red"}, []),
        ({"title": {"in": ["red", "rad"]}}, ["no item has title 'rad'; near: 'red'"]),
        ({"title": {"not": "RED"}}, ["no item has title 'RED'; near: 'red'"]),
        ({"tags": "zzz"}, ["no item has tags 'zzz'; there are: 'B', 'a', 'b', 'c'"]),
        ({"price": 7}, ["no item has price 7; they run from 5 to 20"]),
        ({"price": "cheap"}, ["no item has price 'cheap'; they run from 5 to 20"]),
        ({"price": {"min": 30}}, ["no item has a price from 30; they run from 5 to 20"]),
        ({"csv": {"min": 101, "max": 200}}, ["no item has a csv from '101' to '200'; they run from 2.5 to 100"]),
        ({"seen": {"max": "2024"}}, ["no item has a seen to '2024'; they run from '2025-12-31' to '2026-03-01'"]),
        ({"seen": "soon"}, ["no item has seen 'soon'; they run from '2025-12-31' to '2026-03-01'"]),
        ({"sale": {"not": ["true", False]}}, ["every item with a value in sale has 'true' or 'False'"]),
        ({"price": {"not": [20, 19.5, 5]}}, ["every item with a value in price has 20 or 19.5 or 5"]),
        ({"title": {"contains": "zz"}}, ["no item has 'zz' in its title; there are: "]),
        ({"none": "x"}, ["no item has none 'x'"]),
        (
            {"mixed": {"min": 9}},
            ["mixed holds text that is no number and meets no bound that is one, for example 'n/a'"],
        ),
        ({"mixed": {"min": "9", "max": "o"}}, []),
        ({"mixed": {"min": "zzz"}}, ["no item has a mixed from 'zzz'; they run from '10' to 'n/a'"]),
        (
            {"days": {"min": "2026-01-01"}},
            ["days is compared as text, and not all of it is written like '2026-01-01': '01/02/2026'"],
        ),
        ({"days": {"max": "01/12/2026"}}, ["days is compared as text, and not all of it is written like '01/12/2026'"]),
        ({"price": 5, "title": "red"}, ["some items meet each condition of the filter, but none meets all"]),
    ],
)
def test_notes_name_what_nothing_matches_and_what_is_near(filter, where, notes):
    found = filter.notes(where)
    assert len(found) == len(notes)
    assert all(note.startswith(start) for note, start in zip(found, notes, strict=True))


def test_notes_print_decimals_as_they_are_written():
    filter = FieldFilter(["price"], lambda _: pa.array([Decimal("19.99"), Decimal("5.00"), None]))
    assert filter.notes({"price": "19.98"}) == ["no item has price 19.98; they run from 5.00 to 19.99"]
    assert filter.notes({"price": {"min": 20}}) == ["no item has a price from 20; they run from 5.00 to 19.99"]
    tiny = FieldFilter(["price"], lambda _: pa.array([Decimal("0E-8"), Decimal("1E-8")]))
    assert tiny.notes({"price": 1}) == ["no item has price 1; they run from 0.00000000 to 0.00000001"]


def test_rows_that_are_null_match_nothing_and_are_not_near():
    titles = pa.array(["boot", "book", "shoe"])
    gone = FieldFilter(["title"], lambda name: titles.take(pa.array([None, 1, 2], pa.int64())))
    assert gone.mask({"title": {"contains": "o"}}).tolist() == [False, True, True]
    assert gone.notes({"title": "boots"}) == ["no item has title 'boots'; near: 'book'"]


def test_a_number_beyond_all_fractions_is_none():
    columns = {"text": ["9" * 400, "5"], "price": [1.5, 2.5]}
    filter = FieldFilter(list(columns), lambda name: pa.array(columns[name]))
    assert filter.mask({"text": {"min": "4"}}).tolist() == [False, True]
    assert filter.mask({"price": "9" * 400}).tolist() == [False, False]
