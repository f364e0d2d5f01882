"""Texts that spell what a field holds elsewhere: a CSV knows no other values."""

import json

import pyarrow as pa
import pyarrow.compute as pc

_WHOLE = r"^-?(0|[1-9]\d*)$"
_FRACTION = r"^-?(0|[1-9]\d*)(\.\d+)?$"
"""Without an exponent: 12E5 is a code rather than a number, as is what begins with a zero."""
_LONGEST = 16
"""Characters of a fraction, so that a float holds all its digits."""


def read_texts(texts: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Texts as values of a type, whole numbers as fractions where some are; None unless each of them spells one.

    Args:
        texts: string [N], null where there is none.
        kind: of numbers, truth values, times or lists of texts; None for others.
    """
    try:
        if pa.types.is_boolean(kind):
            truth = pc.index_in(pc.utf8_lower(texts), pa.array(["false", "true"]))
            return truth.cast(pa.bool_()) if truth.null_count == texts.null_count else None
        if pa.types.is_integer(kind) and _all(pc.match_substring_regex(texts, _WHOLE)):
            return texts.cast(pa.int64())
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            short = _all(pc.less_equal(pc.utf8_length(texts), _LONGEST))
            return texts.cast(pa.float64()) if short and _all(pc.match_substring_regex(texts, _FRACTION)) else None
        if pa.types.is_temporal(kind):
            return texts.cast(kind)
        if kind == pa.list_(pa.string()):
            return pa.array([_read_list(text) for text in texts.to_pylist()], kind)
    except pa.ArrowException:
        pass
    return None


def _all(flags: pa.Array) -> bool:
    return bool(pc.all(flags, min_count=0).as_py())


def _read_list(text: str | None) -> list[str | None] | None:
    """A text that spells a list of texts as that, any other as the only member of one."""
    if text is None:
        return None
    try:
        found = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        found = None
    is_list = isinstance(found, list) and all(member is None or isinstance(member, str) for member in found)
    return found if is_list else [text]
