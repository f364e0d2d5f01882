import sys

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from index.backends.folding import MARK, fold, marked


def test_letters_are_equal_where_the_folder_finds_them_equal():
    """Against pyarrow's substring search, which filters an index folder, over all letters with two cases."""
    letters = [chr(code) for code in range(sys.maxunicode) if not 0xD800 <= code < 0xE000]
    cased = [letter for letter in letters if letter.lower() != letter or letter.upper() != letter]
    assert len(cased) > 2500
    wrong = []
    for letter in cased:
        others = {letter.lower(), letter.upper(), letter.casefold(), letter.title()}
        expected = pc.match_substring(pa.array(sorted(others)), letter, ignore_case=True).to_pylist()
        wrong += [(letter, o) for o, e in zip(sorted(others), expected, strict=True) if (fold(letter) in fold(o)) != e]
    assert wrong == []


def test_nothing_that_means_something_in_a_pattern_or_a_literal_is_left():
    folded = fold('100% of_"A\\B"\n\r\t')
    assert not set(folded) & set('%_"\\\n\r\t')
    assert len(set(fold('%_"\\\n\r\t'))) == 7
    assert folded.startswith("100") and "a" in folded


def test_ascii_takes_the_same_way():
    text = "".join(map(chr, range(128)))
    assert fold(text) == fold(text + "ß")[:-1]


def test_members_are_between_marks():
    assert marked(["a", "b"]) == f"{MARK}a{MARK}b{MARK}"
    assert marked([]) is None
    assert "%" not in (marked(["100%"]) or "")


@pytest.mark.parametrize("text", ["", "plain", "ÄÖ"])
def test_folding_twice_is_folding_once(text):
    assert fold(fold(text)) == fold(text)
