import datetime
import math
import re

import numpy as np
import pytest

from fanoise.errors import InputError
from index.where import (
    Contains,
    In,
    Not,
    Range,
    conditions,
    parse_where,
    written_where,
)


def test_the_command_lines_operators_become_conditions():
    pairs = ["price>=10", "price<=20", "category=shoes", "category=boots", "title*=red", "brand!=acme", "brand!=zeus"]
    assert parse_where(pairs) == {
        "price": {"min": "10", "max": "20"},
        "category": {"in": ["shoes", "boots"]},
        "title": {"contains": "red"},
        "brand": {"not": ["acme", "zeus"]},
    }
    assert parse_where(["a=1", "a*=x", "a*=y", "a!=2"]) == {
        "a": ["1", {"not": ["2"]}, {"contains": "x"}, {"contains": "y"}]
    }


@pytest.mark.parametrize(
    ("pair", "where"),
    [
        ("a=b=c", {"a": "b=c"}),
        ("a=b>=c", {"a": "b>=c"}),
        ("a!=b=c", {"a": {"not": ["b=c"]}}),
        ("a*==x", {"a": {"contains": "=x"}}),
        ("title=red, blue\nand more", {"title": "red, blue\nand more"}),
        ("unit price<=3", {"unit price": {"max": "3"}}),
    ],
)
def test_the_first_operator_counts_and_values_may_hold_anything(pair, where):
    assert parse_where([pair]) == where


@pytest.mark.parametrize("pair", ["", "shoes", "=shoes", "category=", ">=3", "price>3", "price>="])
def test_a_pair_without_field_operator_or_value_is_refused(pair):
    with pytest.raises(InputError, match="must be FIELD=VALUE, or with !=, >=, <="):
        parse_where([pair])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("price=>1", "'=>' is no operator; write 'price>=1', or 'price*=>1' for text that contains '>1'"),
        ("price=<1", "'=<' is no operator; write 'price<=1', or 'price*=<1' for text that contains '<1'"),
        ("price=>", "'=>' is no operator; write 'price>=VALUE'"),
    ],
)
def test_a_bound_with_its_signs_swapped_is_refused(pair, message):
    with pytest.raises(InputError, match=re.escape(f"--where {pair!r}: {message}")):
        parse_where([pair])
    assert parse_where(["price*=>1", "name!=>1"]) == {"price": {"contains": ">1"}, "name": {"not": [">1"]}}


def test_a_bound_that_is_given_twice_is_refused():
    with pytest.raises(InputError, match=r"price>= is given twice \('1' and '2'\)"):
        parse_where(["price>=1", "price>=2"])


def test_conditions_are_written_out_and_spelled_alike():
    assert conditions({"a": 20.0, "b": True, "c": [{"in": [1, 1.0, "x"]}, {"not": "y"}]}) == {
        "a": [In(("20",))],
        "b": [In(("True",))],
        "c": [In(("1", "x")), Not(("y",))],
    }
    assert conditions({"p": {"min": 1.5}, "q": {"max": 3, "min": None}, "r": {"contains": "Red"}}) == {
        "p": [Range("1.5", None)],
        "q": [Range(None, "3")],
        "r": [Contains("Red")],
    }
    assert conditions({"d": datetime.date(2026, 1, 2), "n": np.int64(3)}) == {
        "d": [In(("2026-01-02",))],
        "n": [In(("3",))],
    }
    assert conditions(None) == conditions({}) == {}


@pytest.mark.parametrize(
    "given",
    [
        {"gt": 3},
        {},
        {"min": 1, "in": [2]},
        {"min": None},
        [],
        {"in": []},
        {"not": []},
        None,
        math.nan,
        {"in": [None]},
        {"contains": ["a"]},
        b"x",
    ],
)
def test_what_is_no_condition_is_refused_by_its_field(given):
    with pytest.raises(InputError, match="'price'"):
        conditions({"price": given})


def test_a_filter_is_written_as_it_is_read():
    pairs = ["price>=10", "price<=20", "category=shoes", "category=boots", "title*=red", "brand!=acme"]
    assert written_where(parse_where(pairs)) == pairs
    assert written_where({"a": 1.0, "b": {"max": 2}}) == ["a=1", "b<=2"]
