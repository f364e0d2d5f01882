import sys
import unicodedata

import pyarrow as pa
import pytest

from index.texts import composed, composed_texts, folded, folded_texts

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
