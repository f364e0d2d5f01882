"""Values of tables: which of them are none, and how each is spelled. Imports nothing, so that `--help` stays quick."""

import math
from decimal import Decimal
from typing import Any


def is_missing(value: Any) -> bool:
    """None, an empty string, or the NaN that pandas writes for an empty cell."""
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and math.isnan(value))


def printable_text(text: str) -> str:
    """Text that every encoder can take: lone surrogates (undecodable file names, JSON escapes) become escapes."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text  # and no copy of it


def spelled(value: Any) -> str:
    """The one text of a value, an id or a field's: 20 for 20.0, which pandas makes of 20 where another row has none."""
    if isinstance(value, Decimal):
        return f"{value:f}"  # 0.00000000 would be 0E-8
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
