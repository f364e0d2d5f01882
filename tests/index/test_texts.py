import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from index.texts import composed, composed_texts, folded, folded_texts, spelled_numbers
from index.where import as_number

EVERY = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
"""All characters that Python's version of Unicode knows."""
JOINED = [
    "e\u0301x",
    "\u1100\u1161\u11a8",
    "a\u0323\u0302",
    "a\u0302\u0323",
    "ΣΑΣ",
    "STRASSE",
    "straße",
    "",
    "ﬁn",
    "か\u3099",
]


@pytest.mark.parametrize("texts", [EVERY, JOINED, ["Plain", "ASCII"], []], ids=["every", "joined", "ascii", "none"])
def test_columns_are_changed_as_single_texts_are(texts):
    column = pa.array(texts, pa.string())
    assert composed_texts(column).to_pylist() == list(map(composed, texts))
    assert folded_texts(column).to_pylist() == list(map(folded, texts))


def test_what_is_missing_stays_so():
    column = pa.array(["É", None, "ß", ""])
    assert folded_texts(column).to_pylist() == ["é", None, "ss", ""]
    assert composed_texts(column).to_pylist() == ["É", None, "ß", ""]


def test_columns_spell_the_numbers_that_single_texts_do():
    plain = ["20", " 20 ", "+5", "5.", ".5", "1e3", "1E-400", "-0", "007", "9007199254740993", "1e400", "9" * 400]
    odd = [
        "٣",
        "１０.５",
        "\u30005",
        "5\x85",
        "\n7\t",
        "1.2.3",
        ".",
        "",
        "+ 5",
        "--5",
        "1e",
        "e5",
        "nan",
        "inf",
        "1_000",
    ]
    texts = [*plain, *odd, "0x10", "12 kg", "1,5", "5\0", "-" + "9" * 5000]
    expected = [np.nan if (number := as_number(text)) is None else float(number) for text in texts]
    np.testing.assert_array_equal(spelled_numbers(pa.array(texts)), expected)
    assert len(spelled_numbers(pa.array([], pa.string()))) == 0


def test_random_decimals_are_read_to_the_last_bit():
    rng = np.random.default_rng(1)
    texts = [repr(x) for x in (rng.normal(size=500) * 10.0 ** rng.integers(-300, 300, 500)).tolist()]
    assert spelled_numbers(pa.array(texts)).tolist() == list(map(float, texts))
