"""Filters: conditions on fields, as a mapping in Python and as `--where` on the command line.

`where` maps a field to what its values must meet:

    20, "shoes", True            the value
    {"in": [...]}                one of these values
    {"not": value or [...]}      another value than these
    {"min": x, "max": y}         from x to y, both included; either may be left out; text that spells numbers counts as
                                 numbers where the bounds are numbers, and other text meets none then
    {"contains": "text"}         the text somewhere inside, in small or capital letters (Unicode's NFKC, case folded)

or to a list of these, all of which must hold. In a field that holds lists, a condition holds if it holds for one
member, `not` if none of its values is a member. An item whose value is missing (null, "", NaN, an empty list) meets no
condition, `not` among them: what has no price has no other price than 5 either.

Values may be given as text, as the command line does: the field's type says how they are compared (see
`index.filters`). Nothing here knows where the vectors lie.
"""

import datetime
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fanoise.errors import InputError
from fanoise.values import spelled

_PAIR = re.compile(r"(.*?)(!=|>=|<=|\*=|=)(.*)", re.DOTALL)
_DIGITS = re.compile(r"\d[\d./:T -]*")
_FORMS = '{"in": [...]}, {"not": [...]}, {"min": x, "max": y} or {"contains": "text"}'


@dataclass(frozen=True)
class In:
    """One of these values; a single one is equality. Values are spelled as `spelled` does, in every condition."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Not:
    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Both ends are included; None is no end."""

    min: str | None
    max: str | None

    @property
    def ends(self) -> list[str]:
        """Those that there are."""
        return [end for end in (self.min, self.max) if end is not None]


@dataclass(frozen=True)
class Contains:
    text: str


Condition = In | Not | Range | Contains


def conditions(where: Mapping[str, Any] | None) -> dict[str, list[Condition]]:
    """`where` with every shorthand written out. Raises InputError, naming the field, for what is no condition."""
    written: dict[str, list[Condition]] = {}
    for name, given in (where or {}).items():
        several = given if isinstance(given, (list, tuple)) else [given]
        if not several:
            raise InputError(f"where: the list of conditions on {name!r} is empty; give one, or leave the field out")
        written[name] = [_condition(name, one) for one in several]
    return written


def parse_where(pairs: Sequence[str]) -> dict[str, Any]:
    """`["category=shoes", "category=boots", "price>=10"]` as a filter.

    `=` repeated on a field means one of the values, `!=` none of them, `*=` all of the texts.
    Raises: InputError for a pair without an operator, an empty side, a bound given twice, or `=>` and `=<`: a value
        that begins so is taken from Python alone.
    """
    given: dict[str, dict[str, list[str]]] = {}
    for pair in pairs:
        match = _PAIR.fullmatch(pair)
        if match is None or not (match[1] and match[3]):
            raise InputError(
                f"--where {pair!r}: must be FIELD=VALUE, or with !=, >=, <= or *= (contains), as in category=shoes"
            )
        name, operator, value = match.groups()
        if operator == "=" and value[0] in "<>":
            raise InputError(
                f"--where {pair!r}: '={value[0]}' is no operator; write '{name}{value[0]}={value[1:] or 'VALUE'}', or "
                f"'{name}*={value}' for text that contains {value!r}"
            )
        values = given.setdefault(name, {}).setdefault(operator, [])
        if values and operator in (">=", "<="):
            raise InputError(
                f"--where {name}{operator} is given twice ({values[0]!r} and {value!r}); give each bound once"
            )
        values.append(value)
    return {name: _from_operators(operators) for name, operators in given.items()}


def written_where(where: Mapping[str, Any]) -> list[str]:
    """The filter as `parse_where` reads it, for people."""
    pairs: list[str] = []
    for name, several in conditions(where).items():
        for one in several:
            if isinstance(one, Range):
                pairs += [f"{name}{sign}{end}" for sign, end in ((">=", one.min), ("<=", one.max)) if end is not None]
            elif isinstance(one, Contains):
                pairs.append(f"{name}*={one.text}")
            else:
                pairs += [f"{name}{'=' if isinstance(one, In) else '!='}{value}" for value in one.values]
    return pairs


NO_NUMBER = "numbers; give one, such as 10 or 2.5"
NO_TIME = "times; give one, such as 2026-01-31 or 2026-01-31T12:00"
NO_NUMBERS = "holds text that is no number and meets no bound that is one"
"""What a field holds, where a condition on it makes no sense."""


def no_other(name: str, values: Iterable[str]) -> str:
    """What is to be said of a `not` that no item meets, though each of the values is one that items have."""
    return f"every item with a value in {name} has {' or '.join(values)}"


def digits_form(text: str) -> str | None:
    """How digits with separators are set, as in a date: 0000-00-00 and 00/00/0000; None for other text."""
    return re.sub(r"\d", "0", text) if _DIGITS.fullmatch(text) else None


def unknown_field(name: str, known: Sequence[str], *, said_of: str = "") -> InputError:
    """The error for a field that an index has not; `said_of` names the option, as in "where: "."""
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; an id is no field" if name == "id" else ""
    return InputError(
        f"{said_of}unknown field {name!r}; the fields of this index are: {', '.join(known) or 'none'}{hint}"
    )


def _from_operators(operators: Mapping[str, list[str]]) -> Any:
    several: list[Any] = []
    if equal := operators.get("="):
        several.append(equal[0] if len(equal) == 1 else {"in": equal})
    if others := operators.get("!="):
        several.append({"not": others})
    bounds = {end: operators[sign][0] for end, sign in (("min", ">="), ("max", "<=")) if sign in operators}
    if bounds:
        several.append(bounds)
    several += [{"contains": text} for text in operators.get("*=", [])]
    return several[0] if len(several) == 1 else several


def _condition(name: str, given: Any) -> Condition:
    if isinstance(given, Condition):
        return given
    if not isinstance(given, Mapping):
        return In((_value(name, given),))
    keys = set(given)
    if keys == {"in"}:
        return In(_values(name, "in", given["in"]))
    if keys == {"not"}:
        return Not(_values(name, "not", given["not"]))
    if keys == {"contains"}:
        return Contains(_value(name, given["contains"]))
    if keys and keys <= {"min", "max"}:
        ends = {end: _value(name, given[end]) for end in keys if given[end] is not None}
        if ends:
            return Range(ends.get("min"), ends.get("max"))
    raise InputError(f"where: {given!r} is no condition on {name!r}; it must be a value, {_FORMS}")


def _values(name: str, key: str, given: Any) -> tuple[str, ...]:
    values = given if isinstance(given, (list, tuple, set, frozenset)) else [given]
    if not values:
        raise InputError(f"where: {key!r} on {name!r} has no values; give at least one")
    return tuple(dict.fromkeys(_value(name, value) for value in values))


def _value(name: str, given: Any) -> str:
    if hasattr(given, "item") and not isinstance(given, (str, bytes)):
        given = given.item()  # NumPy's numbers
    if isinstance(given, (bool, int, str, datetime.date, datetime.time)):
        return spelled(given)
    if isinstance(given, float) and math.isfinite(given):
        return spelled(given)
    raise InputError(f"where: {given!r} on {name!r} is no value to compare with; it must be text, a number or a flag")
