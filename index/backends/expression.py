"""Conditions as an expression of Milvus' filter language.

Values come from whoever searches, so each is written as a literal here and nowhere else: numbers from Python numbers,
texts with every character escaped that could end one.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fanoise.errors import InputError
from fanoise.values import spelled
from index.backends.folding import fold, marked
from index.backends.layout import Field, Layout, column_of
from index.where import Condition, Contains, In, Not, Range, are_numbers, as_number, conditions

NEVER = "row < 0"
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_INT64 = 2**63
_HOLDS = {"int": "numbers", "float": "numbers", "bool": "flags", "text": "text", "list": "lists"}


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
        return is_in(field, condition.values) or NEVER
    if isinstance(condition, Not):
        found = is_in(field, condition.values)
        return f"{field.exists} and not ({found})" if found else field.exists
    if isinstance(condition, Range):
        return _between(field, condition)
    return _containing(field, condition)


def is_in(field: Field, values: Iterable[Any]) -> str:
    """True where the field equals one of the values as its type spells them; empty where it cannot."""
    if field.kind == "list":
        members = [_member(field, spelled(value)) for value in values]
        return " or ".join(f"{field.compared} like {literal('%' + one + '%')}" for one in members if one)
    literals = list(dict.fromkeys(one for value in values if (one := _literal(field, spelled(value)))))
    if len(literals) > 1 and column_of(field.compared) == field.compared:
        return f"{field.compared} in [{', '.join(literals)}]"
    return " or ".join(f"{field.compared} == {one}" for one in literals)  # Milvus Lite has no `in` for JSON


def literal(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates cannot be sent
    return f'"{text.translate(_ESCAPES)}"'


def _literal(field: Field, text: str) -> str:
    """The value as the field's type spells it; empty for one that the field cannot have."""
    if field.kind == "text":
        return literal(text) if text else ""
    if field.kind == "bool":
        return text.lower() if text.lower() in ("true", "false") else ""
    number = as_number(text)
    if number is None:
        return ""
    if field.kind == "float":
        return repr(float(number))
    return repr(int(number)) if number == int(number) and abs(number) < _INT64 else ""


def _member(field: Field, text: str) -> str:
    if field.is_numeric:
        number = as_number(text)
        return "" if number is None else marked([spelled(number)]) or ""
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
        if not field.number or (field.is_mixed and not are_numbers(condition)):
            parts.append(f"{field.compared} {sign} {literal(end)}")
            continue
        number = as_number(end)
        if number is None:
            raise _senseless(field, sign, end, "numbers; give one, such as 10 or 2.5")
        if field.kind == "int":
            number = max(1 - _INT64, min(_INT64 - 1, rounded(number)))
        parts.append(f"{field.number} {sign} {number if field.kind == 'int' else float(number)!r}")
    return " and ".join(parts)


def _containing(field: Field, condition: Contains) -> str:
    if not field.folded:
        holds = f"{_HOLDS[field.kind]}, and only text contains text; use ="
        raise _senseless(field, "*=", condition.text, holds)
    return f"{field.exists} and {field.folded} like {literal('%' + fold(condition.text) + '%')}"


def _senseless(field: Field, sign: str, value: str, rule: str) -> InputError:
    return InputError(f"where {field.name}{sign}{value}: the field {field.name!r} holds {rule}")
