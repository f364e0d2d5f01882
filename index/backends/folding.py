"""Texts in a form in which LIKE needs no escapes.

What stands for something in a pattern or a literal (a percent sign, an underscore, a backslash …) is replaced, in what
is stored and in what is asked alike, by one of the code points that Unicode keeps out of texts. The rules by which
servers undo escapes differ; this works with all.
"""

from collections.abc import Sequence

from index.texts import folded

MARK = "\ufdd0"
"""Stands between the members of a list."""
_SPECIAL = str.maketrans({special: chr(0xFDD1 + i) for i, special in enumerate('\\%_"\n\r\t')})


def fold(text: str) -> str:
    """`index.texts.folded`, in which equal letters are equal characters."""
    return folded(text).translate(_SPECIAL)


def marked(members: Sequence[str]) -> str | None:
    """The members of a list in one text, each between two marks; None for none."""
    return MARK + MARK.join(member.translate(_SPECIAL) for member in members) + MARK if members else None
