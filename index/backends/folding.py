"""Texts in a form in which LIKE needs no escapes.

What stands for something in a pattern or a literal (a percent sign, an underscore, a backslash …) is replaced, in what
is stored and in what is asked alike, by one of the code points that Unicode keeps out of texts. The rules by which
servers undo escapes differ; this works with all.
"""

from collections.abc import Sequence
from functools import lru_cache

MARK = "\ufdd0"
"""Stands between the members of a list."""
_SPECIAL = str.maketrans({special: chr(0xFDD1 + i) for i, special in enumerate('\\%_"\n\r\t')})


def fold(text: str) -> str:
    """The text with capital letters small, so that equal letters are equal characters.

    A character becomes one character (ß stays ß): the simple folding of Unicode, which pyarrow's substring search uses.
    """
    return "".join(map(_fold_character, text)).translate(_SPECIAL) if not text.isascii() else _fold_ascii(text)


def marked(members: Sequence[str]) -> str | None:
    """The members of a list in one text, each between two marks; None for none."""
    return MARK + MARK.join(member.translate(_SPECIAL) for member in members) + MARK if members else None


def _fold_ascii(text: str) -> str:
    return text.lower().translate(_SPECIAL)


@lru_cache(4096)
def _fold_character(character: str) -> str:
    folded = character.casefold()
    lowered = character.lower()
    return folded if len(folded) == 1 else lowered if len(lowered) == 1 else character
