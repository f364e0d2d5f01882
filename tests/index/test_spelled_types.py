import datetime

import pyarrow as pa
import pytest

from index.spelled_types import read_texts

LIST = pa.list_(pa.string())
DAY = datetime.date(2026, 2, 3)


@pytest.mark.parametrize(
    ("texts", "kind", "expected"),
    [
        (["5", None, "-3"], pa.int64(), [5, None, -3]),
        (["5", "7.50"], pa.int64(), [5.0, 7.5]),
        (["0.25", "-3"], pa.float64(), [0.25, -3.0]),
        (["7", "n/a"], pa.int64(), None),
        (["007"], pa.int64(), None),
        (["12E5"], pa.float64(), None),
        ([" 7"], pa.int64(), None),
        (["1,5"], pa.float64(), None),
        ([str(2**70)], pa.int64(), None),
        ([str(2**60 + 1)], pa.float64(), None),
        (["0.12345678901234567"], pa.float64(), None),
        (["True", "FALSE", None], pa.bool_(), [True, False, None]),
        (["yes"], pa.bool_(), None),
        (["2026-02-03", None], pa.date32(), [DAY, None]),
        (["soon"], pa.date32(), None),
        (["a", '["b", "c"]', "[1]", None], LIST, [["a"], ["b", "c"], ["[1]"], None]),
        (["{}"], pa.struct([("a", pa.int64())]), None),
        ([None], pa.int64(), [None]),
    ],
)
def test_texts_are_read_if_each_spells_a_value_and_nothing_of_it_is_lost(texts, kind, expected):
    found = read_texts(pa.array(texts, pa.string()), kind)
    assert expected == (None if found is None else found.to_pylist())
    if found is not None and not pa.types.is_integer(kind):
        assert found.type == kind
