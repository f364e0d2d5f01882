"""Conditions as an expression of Milvus' filter language.

Values come from whoever searches, so each is written as a literal here and nowhere else: numbers from Python numbers,
texts with every character escaped that could end one.
"""

import math
import unicodedata
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from fanoise.errors import InputError
from index.backends.folding import fold, marked
from index.backends.layout import Field, Layout, column_of, ordered_digits, spelled_member
from index.spelling import are_numbers, as_number, as_time
from index.texts import composed
from index.where import (
    NO_NUMBER,
    NO_TIME,
    Condition,
    Contains,
    In,
    Not,
    Range,
    conditions,
)

NEVER = "row < 0"
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_INT64, _EXACT = 2**63, 2**53
_HOLDS = {
    "int": "numbers",
    "float": "numbers",
    "decimal": "numbers",
    "bool": "flags",
    "time": "times",
    "text": "text",
    "list": "lists",
}


def filter_expression(where: Mapping[str, Any] | None, layout: Layout) -> str:
    """The expression that is true for the items that meet all conditions; empty without any.

    Raises: InputError for an unknown field, or a condition that makes no sense for the field's type.
    """
    parts = []
    for name, several in conditions(where).items():
        field = layout.field(name, said_of="where: ")
        parts += [f"({condition_expression(field, one)})" for one in several]
    return " and ".join(parts)


def condition_expression(field: Field, condition: Condition) -> str:
    if isinstance(condition, In):
        parts = [_is_in(field, condition.values), *_same_numbers(field, condition.values)]
        return " or ".join(filter(None, parts)) or NEVER
    if isinstance(condition, Not):
        found = _is_in(field, condition.values)
        parts = [field.exists, f"not ({found})" if found else ""]
        # apart, as nothing is true of a comparison with the number that a text does not spell, its negation neither
        parts += [f"({_absent(field.number)} or not ({one}))" for one in _same_numbers(field, condition.values)]
        return " and ".join(filter(None, parts))
    if isinstance(condition, Range):
        return _between(field, condition)
    return _containing(field, condition)


def is_group(field: Field, values: Iterable[Any]) -> str:
    """True where the field is one of these values of `field.compared`, to the letter."""
    return _equals(field, [_stored(field, value) for value in values])


def _is_in(field: Field, values: Iterable[str]) -> str:
    """True where the field equals one of the values as its type spells them; empty where it cannot."""
    if field.kind == "list":
        members = dict.fromkeys(form for value in values for one in _forms(value) if (form := _member(field, one)))
        return " or ".join(f"{field.compared} like {literal('%' + one + '%')}" for one in members)
    if field.kind != "text":
        return _equals(field, [one for value in values if (one := _literal(field, value))])
    parts = [_equals(field, [literal(form) for value in values if value for form in _forms(value)])]
    flags = dict.fromkeys(value.lower() for value in values if value.lower() in ("true", "false"))
    return " or ".join(filter(None, [*parts, *(f"{field.folded} == {literal(flag)}" for flag in flags)]))


def _same_numbers(field: Field, values: Iterable[str]) -> list[str]:
    """For each value that is a number, true where a text spells it; codes such as 007 left out as far as LIKE can.

    A number with more digits than a float holds is none here: others would equal it.
    """
    if field.kind != "text" or not field.number:
        return []
    numbers = [float(number) for value in values if (number := as_number(value, codes=False)) is not None]
    return [
        f'{field.number} == {number!r} and not ({field.compared} like "{"-" * (number < 0)}{_zeros(number)}%")'
        for number in dict.fromkeys(numbers)
        if abs(number) < _EXACT
    ]


def _zeros(number: float) -> str:
    return "0" if abs(number) >= 1 else "00"  # 0.5 is no code


def _absent(place: str) -> str:
    return f"not (exists {place})" if column_of(place) != place else f"{place} is null"


def _equals(field: Field, literals: Iterable[str]) -> str:
    literals = list(dict.fromkeys(literals))
    if len(literals) > 1 and column_of(field.compared) == field.compared:
        return f"{field.compared} in [{', '.join(literals)}]"
    return " or ".join(f"{field.compared} == {one}" for one in literals)  # Milvus Lite has no `in` for JSON


def _forms(text: str) -> list[str]:
    """The text as it was given, and in the two forms in which letters with marks are typed."""
    return [text, composed(text), unicodedata.normalize("NFD", text)]


def _stored(field: Field, value: Any) -> str:
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, bool):
        return str(value).lower()
    return repr(float(value) if field.kind == "float" else value)


def literal(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates cannot be sent
    return f'"{text.translate(_ESCAPES)}"'


def _literal(field: Field, text: str) -> str:
    """The value as the field's type spells it; empty for one that the field cannot have."""
    if field.kind == "bool":
        return text.lower() if text.lower() in ("true", "false") else ""
    if field.kind == "time":
        time = as_time(text, field.zone)
        return "" if time is None else repr(time)
    number = as_number(text)
    if number is None:
        return ""
    if field.kind == "float":
        return repr(float(number))
    if field.kind == "decimal":
        low, high = (literal(ordered_digits(field, Fraction(number), rounded=one)) for one in (math.floor, math.ceil))
        return low if low == high else ""
    return repr(int(number)) if number == int(number) and abs(number) < _INT64 else ""


def _member(field: Field, text: str) -> str:
    if field.is_numeric:
        number = as_number(text)
        return "" if number is None else marked([spelled_member(field, number)]) or ""
    return marked([text]) or "" if text else ""


def _between(field: Field, condition: Range) -> str:
    parts = [field.exists]
    for sign, end, rounded in ((">=", condition.min, math.ceil), ("<=", condition.max, math.floor)):
        if end is None:
            continue
        if field.kind == "list":
            raise _senseless(field, sign, end, "lists, whose members Milvus cannot order; use = or *=")
        if field.kind == "bool":
            raise _senseless(field, sign, end, "flags, which have no order; use =")
        if not field.number or (field.is_mixed and not are_numbers(condition.ends)):
            parts.append(f"{field.compared} {sign} {literal(end)}")
            continue
        is_time = field.kind == "time"
        number = as_time(end, field.zone, is_bound=True) if is_time else as_number(end)
        if number is None:
            raise _senseless(field, sign, end, NO_TIME if is_time else NO_NUMBER)
        if field.kind == "decimal":
            bound = literal(ordered_digits(field, Fraction(number), rounded=rounded))
        elif field.kind == "int":
            bound = repr(max(1 - _INT64, min(_INT64 - 1, rounded(number))))
        else:
            bound = repr(number if is_time else float(number))
        parts.append(f"{field.number} {sign} {bound}")
    return " and ".join(parts)


def _containing(field: Field, condition: Contains) -> str:
    if not field.folded:
        holds = f"{_HOLDS[field.kind]}, and only text contains text; use ="
        raise _senseless(field, "*=", condition.text, holds)
    return f"{field.exists} and {field.folded} like {literal('%' + fold(condition.text) + '%')}"


def _senseless(field: Field, sign: str, value: str, rule: str) -> InputError:
    return InputError(f"where {field.name}{sign}{value}: the field {field.name!r} holds {rule}")
