import math

import pytest

from fanoise.values import is_missing, spelled


@pytest.mark.parametrize("value", [None, "", math.nan])
def test_what_an_empty_cell_becomes_is_missing(value):
    assert is_missing(value)


@pytest.mark.parametrize("value", [0, 0.0, False, " ", "nan", [], b""])
def test_falsy_values_are_values(value):
    assert not is_missing(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(20, "20"), (20.0, "20"), (-0.0, "0"), (0.5, "0.5"), (2.0**60, str(2**60)), ("20.0", "20.0"), (True, "True")],
)
def test_whole_numbers_are_spelled_without_a_fraction(value, text):
    assert spelled(value) == text


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_whole_number_keeps_its_name(value):
    assert spelled(value) == str(value)
