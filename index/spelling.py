"""What a text spells: a number, a time, or a value of what a field holds elsewhere.

as_number          a condition's number, or one in a field of text; as Python reads it, to the last digit
spelled_numbers    the same for a column, as floats
as_time            a time in ISO 8601
read_texts         a column of texts as values of a type, for rows that come from a CSV; strict, for what it takes is
                   written in another way from then on: no number begins with a zero or has an exponent, for 007
                   and 12E5 are codes
"""

import datetime
import json
import math
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise.errors import InputError

_CODE = re.compile(r"\s*[+-]?0\d")
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"
_NUMBER_OF_ANY_SCRIPT = r"^[\s\pZ\pC]*[+-]?[\p{Nd}.]+([eE][+-]?\p{Nd}+)?[\s\pZ\pC]*$"
"""All that Python takes, but for words such as nan, and some that it does not."""
_LONG_EXPONENT = re.compile(r"[eE][+-]?\d{4}")
"""No number, for it would have as many digits."""
_LONGEST = 1000
"""Nor a text of more characters: arithmetic with a million digits would hold up everybody."""
_YEAR_OR_MONTH = re.compile(r"\d{4}(-\d{2})?")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_WHOLE = r"^-?(0|[1-9]\d*)$"
_FRACTION = r"^-?(0|[1-9]\d*)(\.\d+)?$"
_FEW_DIGITS = r"^-?(\d\.?){1,15}$"
"""All of which a float holds."""
_TIME_OF_DAY = r"^\d\d:\d\d(:\d\d(\.\d{1,6})?)?$"
_MOST_DIGITS = {128: 38, 256: 76}
"""Of a decimal, by its bits."""


def as_number(text: str, *, codes: bool = True) -> Decimal | None:
    """The number that a text spells, to the last digit; None if it spells none, or one beyond all fractions.

    Args:
        codes: whether a number may begin with a zero, as 007 does.
    """
    if len(text) > _LONGEST or "_" in text or _LONG_EXPONENT.search(text) or (not codes and _CODE.match(text)):
        return None  # Python would take _
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and math.isfinite(float(number)) else None


def are_numbers(texts: Iterable[str]) -> bool:
    """Whether each spells one, so that numbers are meant."""
    return all(as_number(text) is not None for text in texts)


def spelled_numbers(texts: pa.Array) -> np.ndarray:
    """float64 [N]: the number that each text spells, as `as_number` reads it; NaN where it spells none."""
    trimmed = pc.utf8_trim_whitespace(texts)
    is_short = pc.less_equal(pc.utf8_length(texts), _LONGEST)
    is_plain = pc.and_(pc.match_substring_regex(trimmed, _NUMBER), is_short)
    numbers = pc.if_else(is_plain, trimmed, None).cast(pa.float64()).to_numpy(zero_copy_only=False)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)  # a copy, which can be written to
    odd = pc.and_not(pc.match_substring_regex(texts, _NUMBER_OF_ANY_SCRIPT), is_plain)
    read = [as_number(text) for text in texts.filter(odd).to_pylist()]
    numbers[odd.to_numpy(zero_copy_only=False)] = [np.nan if number is None else float(number) for number in read]
    return numbers


def as_time(text: str, zone: str = "", *, is_bound: bool = False) -> int | None:
    """The time that a text spells in ISO 8601, in microseconds since 1970; None if it spells none.

    A date alone is its midnight; as a bound, a year or a month alone is its first.

    Args:
        zone: of a text without an offset, such as Europe/Berlin or +02:00; UTC if empty.
    """
    text = text.strip()
    if is_bound and _YEAR_OR_MONTH.fullmatch(text):
        text += "-01-01"[len(text) - 4 :]
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=_zone(zone))
    return (time - _EPOCH) // datetime.timedelta(microseconds=1)


def read_texts(texts: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Texts as values of a type; None unless each of them spells one, or if digits would be lost.

    Whole numbers are fractions where some are, decimals have as many digits as they need.
    Args:
        texts: string [N], null where there is none.
        kind: of numbers, truth values, times, or lists of these or of texts; None for others.
    """
    try:
        if pa.types.is_boolean(kind):
            truth = pc.index_in(pc.utf8_lower(texts), pa.array(["false", "true"]))
            return truth.cast(pa.bool_()) if truth.null_count == texts.null_count else None
        if pa.types.is_integer(kind) and _all_match(texts, _WHOLE):
            return texts.cast(pa.int64())
        if pa.types.is_decimal(kind):
            return texts.cast(_wide_enough(kind, texts)) if _all_match(texts, _FRACTION) else None
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            fits = _all_match(texts, _FRACTION) and _all_match(texts, _FEW_DIGITS)
            return texts.cast(pa.float64()) if fits else None
        if pa.types.is_time(kind):
            return pa.array(map(_time_of_day, texts.to_pylist()), kind) if _all_match(texts, _TIME_OF_DAY) else None
        if pa.types.is_temporal(kind):
            return texts.cast(kind)
        if pa.types.is_list(kind):
            return _read_lists(texts, kind.value_type)
    except (pa.ArrowException, ValueError):  # a value beyond the type, such as 2026-02-30 or 25:00
        pass
    return None


def _all_match(texts: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(texts, pattern), min_count=0).as_py())


def _wide_enough(kind: pa.DataType, texts: pa.Array) -> pa.DataType:
    """A type of decimals for those of `kind` and for these. Raises ValueError where there is none."""
    places = pc.utf8_length(pc.replace_substring_regex(texts, r"^[^.]*\.?", ""))
    whole = pc.utf8_length(pc.replace_substring_regex(texts, r"^-|\..*$", ""))
    scale = max(kind.scale, pc.max(places).as_py() or 0)
    precision = scale + max(kind.precision - kind.scale, pc.max(whole).as_py() or 0)
    return kind if (precision, scale) == (kind.precision, kind.scale) else decimal_type(precision, scale)


def decimal_type(precision: int, scale: int) -> pa.DataType:
    """The smallest type of decimals with so many digits, and with so many of them after the point.

    Raises: ValueError (also pyarrow's) for more than 76 digits.
    """
    return pa.decimal128(precision, scale) if precision <= _MOST_DIGITS[128] else pa.decimal256(precision, scale)


def _time_of_day(text: str | None) -> datetime.time | None:
    return None if text is None else datetime.time.fromisoformat(text)


def _read_lists(texts: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Texts as lists: those that spell a list in JSON as that, any other as the only member of one."""
    lists = [_read_list(text, keep_texts=pa.types.is_string(kind)) for text in texts.to_pylist()]
    members = pa.array([member for one in lists for member in one or ()], pa.string())
    values = members if pa.types.is_string(kind) else read_texts(members, kind)
    if values is None:
        return None
    ends = np.cumsum([0, *(len(one or ()) for one in lists)])
    offsets = pa.array(ends, pa.int32(), mask=np.array([*(one is None for one in lists), False]))
    return pa.ListArray.from_arrays(offsets, values)


def _read_list(text: str | None, *, keep_texts: bool) -> list[str | None] | None:
    """
    Args:
        keep_texts: a list of other things than texts is a text; else its members are, as they are written.
    """
    if text is None:
        return None
    as_written: Any = {} if keep_texts else {"parse_int": str, "parse_float": str, "parse_constant": str}
    try:
        found = json.loads(text, **as_written) if text.startswith("[") else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and not keep_texts:
        found = [str(member).lower() if isinstance(member, bool) else member for member in found]
    is_list = isinstance(found, list) and all(member is None or isinstance(member, str) for member in found)
    return found if is_list else [text]


def _zone(name: str) -> datetime.tzinfo | None:
    """Raises: InputError for what names none: it comes from a file, which may be a stranger's."""
    try:
        if name.startswith(("+", "-")):
            return datetime.datetime.fromisoformat(f"1970-01-01T00:00{name}").tzinfo
        return ZoneInfo(name) if name else datetime.UTC
    except (KeyError, ValueError, OSError):
        raise InputError(f"{name[:20]!r} is no time zone, so times in it cannot be compared") from None
