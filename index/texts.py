"""Forms of texts in which equal is equal by bytes, for whole columns at once.

pyarrow has Unicode's normal forms, but they take longer there than in Python, and it has no case folding at all. So
the texts that hold a letter which a form may change are found by a pattern, and Python changes those alone.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

_JOINING = r"\p{M}\x{1100}-\x{11ff}"
"""Marks, and the parts of Korean syllables: what a normal form may join with the letter before."""


def composed(text: str) -> str:
    """Unicode's NFC: é is one character, however it was typed."""
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """NFKC with case folded: STRASSE is straße, and what is typed in full width is what is not."""
    return unicodedata.normalize("NFKC", text).casefold()


def composed_texts(texts: pa.Array) -> pa.Array:
    """string [N]: `composed` of each."""
    return _changed(texts, texts, _composed_pattern, composed)


def folded_texts(texts: pa.Array) -> pa.Array:
    """string [N]: `folded` of each."""
    return _changed(texts, _small(texts), _folded_pattern, folded)


def _changed(texts: pa.Array, mostly: pa.Array, pattern: Callable[[], str], change: Callable[[str], str]) -> pa.Array:
    """`mostly`, but the change of the texts that the pattern is found in."""
    if pc.all(pc.string_is_ascii(texts), min_count=0).as_py():
        return mostly  # without the half second that the first pattern takes
    found = pc.match_substring_regex(texts, pattern())
    return pc.replace_with_mask(mostly, found, pa.array(map(change, texts.filter(found).to_pylist()), pa.string()))


def _small(texts: pa.Array) -> pa.Array:
    """What folding does to most texts."""
    return pc.replace_substring(pc.utf8_lower(texts), "ß", "ss")


@cache
def _composed_pattern() -> str:
    return _one_of(lambda letter: composed(letter) != letter)


@cache
def _folded_pattern() -> str:
    small = dict(zip(_letters(), _small(pa.array(_letters())).to_pylist(), strict=True))
    return _one_of(lambda letter: folded(letter) != small[letter])


def _one_of(holds: Callable[[str], bool]) -> str:
    return f"[{_JOINING}{re.escape(''.join(filter(holds, _letters())))}]"


@cache
def _letters() -> list[str]:
    """All that a form may change: beyond these planes there are only signs that stay, and marks."""
    return [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
