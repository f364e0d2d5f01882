import pytest

from index.backends.folding import MARK, fold, marked


def test_nothing_that_means_something_in_a_pattern_or_a_literal_is_left():
    folded = fold('100% of_"A\\B"\n\r\t')
    assert not set(folded) & set('%_"\\\n\r\t')
    assert len(set(fold('%_"\\\n\r\t'))) == 7
    assert folded.startswith("100") and "a" in folded


def test_members_are_between_marks():
    assert marked(["a", "b"]) == f"{MARK}a{MARK}b{MARK}"
    assert marked([]) is None
    assert "%" not in (marked(["100%"]) or "")


@pytest.mark.parametrize("text", ["", "plain", "ÄÖ", "STRASSE ẞ", "İΐ", "１％"])
def test_folding_twice_is_folding_once(text):
    assert fold(fold(text)) == fold(text)
