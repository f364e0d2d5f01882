"""Which rows meet a filter. A field's type says how its values are compared:

numbers    as numbers: 20, 20.0 and "20" are one price; whole numbers and decimals to the last digit. A text that is no
           number equals none; as a bound it is an error.
flags      true and false, in small or capital letters; they have no order.
times      dates and timestamps, as times (see `index.spelling.as_time`). A text that is no time equals none; as a bound
           it is an error. `contains` looks at their text.
text       letter by letter, in the order of Unicode. But values that spell numbers equal a number: 10 is 10.00, though
           not 007, a code; `min` and `max` that are numbers compare numbers where values spell some, as in a CSV, and
           text that spells none meets no such bound. True and false are compared as flags are. For equality é is é in
           each of its spellings (NFC), and `contains` compares small letters in compatibility form (NFKC, case folded).
others     (objects, times of day) by their text.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise.errors import InputError
from fanoise.values import spelled
from index.spelling import are_numbers, as_number, as_time, spelled_numbers
from index.texts import composed_texts, folded, folded_texts
from index.where import (
    NO_NUMBER,
    NO_NUMBERS,
    NO_TIME,
    Condition,
    Contains,
    In,
    Not,
    Range,
    conditions,
    digits_form,
    no_other,
    unknown_field,
)

Kind = Literal["number", "flag", "time", "text"]

_MICROSECONDS: dict[str, int | Fraction] = {
    "day": 86_400 * 10**6,
    "s": 10**6,
    "ms": 1000,
    "us": 1,
    "ns": Fraction(1, 1000),
}
_MOST_COMPARED = 20_000
_MOST_LISTED = 12


class FieldFilter:
    """Conditions on columns of equal length. A column is prepared once, when first asked for; threads may share one.

    Args:
        names: of the fields.
        column: a field's values by row; null where there is none, or where a row is to match nothing.
    """

    def __init__(self, names: Sequence[str], column: Callable[[str], pa.Array]) -> None:
        self._names, self._column = names, column
        self._fields: dict[str, Field] = {}

    def mask(self, where: Mapping[str, Any]) -> np.ndarray:
        """bool [N]: rows that meet every condition; `where` must have one.

        Raises: InputError for an unknown field, or a condition that makes no sense for the field's type.
        """
        masks = [self.field(name).mask(one) for name, several in conditions(where).items() for one in several]
        return np.logical_and.reduce(masks)

    def notes(self, where: Mapping[str, Any]) -> list[str]:
        """What a user may have mistyped: values that no row has, with the near ones; conditions that no row meets."""
        notes = [
            note
            for name, several in conditions(where).items()
            for one in several
            for note in self.field(name).notes(one)
        ]
        if where and not notes and not self.mask(where).any():
            notes.append("some items meet each condition of the filter, but none meets all")
        return notes

    def field(self, name: str) -> "Field":
        """Raises InputError for an unknown one, listing the known."""
        if name not in self._names:
            raise unknown_field(name, self._names, said_of="where: ")
        if name not in self._fields:  # two threads may both do this once, with the same result
            self._fields[name] = Field(name, self._column(name))
        return self._fields[name]


class Field:
    """A column as its distinct values and, for each value of a row, which of them it is."""

    def __init__(self, name: str, column: pa.Array) -> None:
        self.name = name
        self._count = len(column)
        self._owners: np.ndarray | None = None
        """int64 [V]: the row of each value, where rows hold lists."""
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            column = column.cast(pa.list_(column.type.value_type))
        self.is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if self.is_list:
            self._owners = pc.list_parent_indices(column).to_numpy()
            column = pc.list_flatten(column)
        self.kind, values = _normalised(column)
        encoded = values.dictionary_encode()
        self.distinct: pa.Array = encoded.dictionary
        """Each value once; missing ones are not among them."""
        self.codes = encoded.indices.fill_null(len(self.distinct)).to_numpy()
        """Place in `distinct` of each value, its length where there is none."""

    def mask(self, condition: Condition) -> np.ndarray:
        """bool [N]. Raises InputError for a condition that makes no sense for the kind of field."""
        if isinstance(condition, In):
            return self._rows(self._equal(condition.values))
        if isinstance(condition, Not):
            return self.present & ~self._rows(self._equal(condition.values))
        if isinstance(condition, Range):
            return self._rows(self._between(condition))
        return self._rows(self._containing(condition))

    @cached_property
    def present(self) -> np.ndarray:
        """bool [N]: rows that have a value."""
        return self._rows(np.ones(len(self.distinct), dtype=bool))

    def notes(self, condition: Condition) -> list[str]:
        """As `FieldFilter.notes`, for one condition."""
        if isinstance(condition, (In, Not)):
            unknown = [value for value in condition.values if not self._equal([value]).any()]
            if not unknown and not self.mask(condition).any():
                return [no_other(self.name, map(self._quoted, condition.values))]
            return [f"no item has {self.name} {self._quoted(value)}{self._instead(value)}" for value in unknown]
        said = self._bounds_note(condition) if isinstance(condition, Range) else []
        if said or self.mask(condition).any():
            return said
        if isinstance(condition, Contains):
            return [f"no item has {condition.text!r} in its {self.name}{self._instead(condition.text)}"]
        asked = [("from", condition.min), ("to", condition.max)]
        span = " ".join(f"{word} {self._quoted(end)}" for word, end in asked if end is not None)
        return [f"no item has a {self.name} {span}{self._extent(as_numbers=self._compares_numbers(condition))}"]

    def _bounds_note(self, condition: Range) -> list[str]:
        """Where values are not what the bounds look like: text among numbers, days first and years first."""
        if self.kind != "text":
            return []
        if self._compares_numbers(condition):
            return [] if self._odd_text is None else [f"{self.name} {NO_NUMBERS}, for example {self._odd_text!r}"]
        for end in filter(None, (condition.min, condition.max)):
            if (own := digits_form(end)) is None:
                continue
            for form, text in self._forms.items():
                if not (form.startswith(own) or own.startswith(form)):
                    return [f"{self.name} is compared as text, and not all of it is written like {end!r}: {text!r}"]
        return []

    @cached_property
    def _forms(self) -> dict[str, str]:
        """How values of digits and separators are set, each with one of them; of the first values only."""
        forms: dict[str, str] = {}
        for text in self.distinct.slice(0, _MOST_COMPARED).to_pylist():
            if (form := digits_form(text)) is not None:
                forms.setdefault(form, text)
        return forms

    def _rows(self, chosen: np.ndarray) -> np.ndarray:
        """bool [N] from bool [distinct values]: rows with a value that is chosen."""
        hit = np.append(chosen, False)[self.codes]  # the last place is that of missing values
        if self._owners is None:
            return hit
        rows = np.zeros(self._count, dtype=bool)
        rows[self._owners[hit]] = True
        return rows

    def _equal(self, values: Sequence[str]) -> np.ndarray:
        if self.kind == "text":
            return self._equal_text(values)
        if self.kind == "flag":
            return _bools(pc.is_in(self.distinct, value_set=pa.array(_flags(values)).cast(pa.bool_())))
        numbers: list[Any] = [number for value in values if (number := self._asked(value)) is not None]
        dtype = self._numbers.dtype
        if dtype.kind != "f":  # as whole numbers, since a float would lose digits
            numbers = [int(number) for number in numbers if number.denominator == 1]
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            numbers = [number for number in numbers if info.min <= number <= info.max]
        return np.isin(self._numbers, np.array(numbers, dtype=dtype))

    def _equal_text(self, values: Sequence[str]) -> np.ndarray:
        chosen = _bools(pc.is_in(self._composed, value_set=composed_texts(pa.array(values, pa.string()))))
        if flags := _flags(values):
            chosen |= _bools(pc.is_in(pc.utf8_lower(self.distinct), value_set=pa.array(flags)))
        numbers = {number for value in values if (number := as_number(value, codes=False)) is not None}
        if numbers and self._numbers is not None:
            # floats find the few spellings that may be equal; all digits of those decide
            near = np.flatnonzero(np.isin(self._numbers, [float(number) for number in numbers]))
            spellings = self.distinct.take(pa.array(near)).to_pylist()
            chosen[near] |= np.array([as_number(text, codes=False) in numbers for text in spellings], dtype=bool)
        return chosen

    def _between(self, condition: Range) -> np.ndarray:
        as_numbers = self._compares_numbers(condition)
        chosen = np.ones(len(self.distinct), dtype=bool)
        for sign, end in ((">=", condition.min), ("<=", condition.max)):
            if end is None:
                continue
            if self.kind == "flag":
                raise self._senseless(sign, end, "flags, which have no order; use =")
            if not as_numbers:
                compare = pc.greater_equal if sign == ">=" else pc.less_equal
                chosen &= _bools(compare(self.distinct, end))
                continue
            number = self._asked(end, is_bound=True)
            if number is None:
                raise self._senseless(sign, end, NO_TIME if self.kind == "time" else NO_NUMBER)
            # NumPy would compare fractions one value after the other
            whole = math.ceil(number) if sign == ">=" else math.floor(number)
            bound = float(number) if self._numbers.dtype.kind == "f" else whole
            chosen &= (self._numbers >= bound if sign == ">=" else self._numbers <= bound).astype(bool)  # False of NaN
        return chosen

    def _asked(self, text: str, *, is_bound: bool = False) -> Fraction | None:
        """What `_numbers` are compared with for a text; None for one that is no number, or no time."""
        kind = self.distinct.type
        if self.kind == "time":
            is_date = pa.types.is_date(kind)
            time = as_time(text, "" if is_date else kind.tz or "", is_bound=is_bound)
            return None if time is None else Fraction(time) / _MICROSECONDS["day" if is_date else kind.unit]
        number = as_number(text)
        return None if number is None else Fraction(number) * 10 ** (kind.scale if pa.types.is_decimal(kind) else 0)

    def _compares_numbers(self, condition: Range) -> bool:
        """Whether the bounds are compared with numbers: in text, too, unless they are none, and some of it is none."""
        return self._numbers is not None and (are_numbers(condition.ends) or self._odd_text is None)

    def _containing(self, condition: Contains) -> np.ndarray:
        if self.kind not in ("text", "time"):
            raise self._senseless("*=", condition.text, f"{self.kind}s, and only text contains text; use =")
        return _bools(pc.match_substring(self._folded, folded(condition.text)))

    def _senseless(self, sign: str, value: str, rule: str) -> InputError:
        return InputError(f"where {self.name}{sign}{value}: the field {self.name!r} holds {rule}")

    @cached_property
    def _composed(self) -> pa.Array:
        return composed_texts(self.distinct)

    @cached_property
    def _folded(self) -> pa.Array:
        return folded_texts(self.distinct if self.kind == "text" else _spelled(self.distinct))

    @cached_property
    def _odd_text(self) -> str | None:
        """The first text that spells no number, where others do."""
        if self.kind != "text" or self._numbers is None:
            return None
        odd = np.flatnonzero(np.isnan(self._numbers))
        return self.distinct[int(odd[0])].as_py() if len(odd) else None

    @cached_property
    def _numbers(self) -> Any:
        """The distinct values as numbers, in their order; times and decimals as whole numbers of their unit, or of
        their last digit. NaN for text that spells none; None if there are none.
        """
        if self.kind == "flag":
            return None
        if self.kind == "text":
            numbers = spelled_numbers(self.distinct)
            return None if np.isnan(numbers).all() else numbers
        if self.kind == "time":  # dates have 32 bits
            return self.distinct.view(f"int{self.distinct.type.bit_width}").cast(pa.int64()).to_numpy()
        if pa.types.is_decimal(self.distinct.type):
            return _last_digits(self.distinct)
        return self.distinct.to_numpy(zero_copy_only=False)

    def _quoted(self, value: str) -> str:
        return value if self.kind == "number" and as_number(value) is not None else repr(value)

    def _instead(self, value: str) -> str:
        """Near values, or all if they are few, or where numbers lie."""
        if self.kind in ("number", "time"):
            return self._extent()
        known = sorted(map(spelled, self.distinct.slice(0, _MOST_COMPARED).to_pylist()))
        folded = {text.casefold(): text for text in known}
        near = [folded[name] for name in difflib.get_close_matches(value.casefold(), folded, n=3)]
        if near:
            return f"; near: {', '.join(map(repr, near))}"
        if known and len(known) == len(self.distinct) <= _MOST_LISTED:
            return f"; there are: {', '.join(map(repr, known))}"
        return ""

    def _extent(self, *, as_numbers: bool = False) -> str:
        """
        Args:
            as_numbers: of texts, those that spell some.
        """
        if not len(self.distinct):
            return "; no item has any"
        if as_numbers and self.kind == "text":
            low, high = (spelled(end.item()) for end in (np.nanmin(self._numbers), np.nanmax(self._numbers)))
        else:
            low, high = (self._quoted(spelled(end.as_py())) for end in pc.min_max(self.distinct).values())
        return f"; they run from {low} to {high}"


def _normalised(column: pa.Array) -> tuple[Kind, pa.Array]:
    """What kind of values these are, and the values as bool, a number type, a time or string; null where missing."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return "flag", column
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return "number", column
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        return "number", pc.if_else(pc.is_nan(column), None, column)
    if pa.types.is_timestamp(kind):
        return "time", column
    if pa.types.is_date(kind):
        return "time", column.cast(pa.date32())
    if not pa.types.is_string(kind):
        column = _spelled(column)
    return "text", pc.if_else(pc.equal(column, ""), None, column)


def _last_digits(decimals: pa.Array) -> Any:
    """Decimals as multiples of their last digit: 1999 for 19.99; int64 where all are short enough, else Python's."""
    kind = decimals.type
    make = pa.decimal128 if kind.bit_width == 128 else pa.decimal256
    whole = decimals.view(make(kind.precision, 0))
    try:
        return whole.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return np.array([int(value) for value in whole.to_pylist()], dtype=object)


def _spelled(column: pa.Array) -> pa.Array:
    return pa.array([None if value is None else spelled(value) for value in column.to_pylist()], pa.string())


def _flags(values: Sequence[str]) -> list[str]:
    """Those that are true or false, in small letters."""
    return [value.lower() for value in values if value.lower() in ("true", "false")]


def _bools(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False).astype(bool)
