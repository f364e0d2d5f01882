"""How the items of an index become the columns of a Milvus collection, and the way back.

    id          VARCHAR, the primary key      row        INT64, 0 … N-1, the order of the index
    vector      FLOAT_VECTOR or FLOAT16_VECTOR
    item_text   VARCHAR, item_image VARCHAR   what was encoded: the text, and where the image came from
    thumbnail   VARCHAR, its SHA-256
    f_NAME      a field: INT64, DOUBLE, BOOL or VARCHAR, as its values are
    c_NAME      its text folded for `contains`, where folding changes anything
    n_NAME      its number, where a text of the field spells one
    other       JSON: fields of other types (lists, times, decimals, objects), and those that 64 columns are too few for

Names of fields are arbitrary and names of columns are not, so the layout records which column is which field's.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise.errors import InputError
from fanoise.values import spelled
from index.backends.folding import MARK, fold, marked
from index.checked import Checked, record_of
from index.items import field_names, json_value
from index.spelling import as_number, as_time
from index.where import unknown_field

Kind = Literal["int", "float", "decimal", "bool", "time", "text", "list"]

MAX_COLUMNS = 64
"""The most fields that a Milvus server allows in a collection (`proxy.maxFieldNum`)."""
MAX_BYTES = 65_535
"""The longest VARCHAR, and the longest JSON value."""
OTHER = "other"
_OWN = ("id", "row", "vector", "item_text", "item_image", "thumbnail", OTHER)
_ITEM_COLUMNS = {"id": "id", "item_text": "text", "item_image": "image", "thumbnail": "thumbnail_sha256"}
_ARROW = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "text": pa.string()}


@dataclass(frozen=True)
class Field(Checked):
    """A field of the catalogue. Each place is a column, or a member of `other`; empty where there is none."""

    name: str
    kind: Kind
    value: str
    """Place of what a hit shows."""
    compared: str
    """Place of what `=` compares: `value` itself where that is a number, a flag or a text. Of a list, its members; of a
    time, microseconds since 1970; of a decimal, digits whose order as text is that of the numbers."""
    folded: str = ""
    """Place of the folded text, for `contains`."""
    number: str = ""
    """Place of the number, for bounds."""
    is_numeric: bool = False
    """Whether the members of a list are numbers."""
    is_exact: bool = False
    """Whether these are whole or decimals, of which each digit counts."""
    is_mixed: bool = False
    """Whether some texts spell numbers, and others do not."""
    zone: str = ""
    """Of times."""
    precision: int = 0
    """Digits of a decimal."""
    scale: int = 0
    """Of these, after the point."""

    @property
    def exists(self) -> str:
        """The expression that is true where there is a value; an empty text is none."""
        present = f"exists {self.compared}" if _key(self.compared) else f"{self.compared} is not null"
        return f'{present} and {self.compared} != ""' if self.kind == "text" else present

    @property
    def is_missing(self) -> str:
        """Where there is none: spelled out, since `not (…)` is not true either where a comparison meets null."""
        absent = f"not (exists {self.compared})" if _key(self.compared) else f"{self.compared} is null"
        return f'{absent} or {self.compared} == ""' if self.kind == "text" else absent


@dataclass
class _Texts:
    """What is to be known of a column's texts, whatever else it holds."""

    longest: int = 0
    """Bytes."""
    longest_folded: int = 0
    is_folded: bool = True
    """Whether folding changes nothing."""
    has_numbers: bool = False
    has_words: bool = False
    """Whether some spell no number."""

    def see(self, column: pa.Array, *, is_searched: bool = True) -> None:
        """Look at some more values. Only their length counts unless they are `searched`."""
        if not pa.types.is_string(column.type):
            return
        self.longest = max(self.longest, _longest(column))
        if not is_searched:
            return
        distinct = column.drop_null().unique()
        folded = pa.array([fold(text) for text in distinct.to_pylist()], pa.string())
        self.is_folded &= folded.equals(distinct)
        self.longest_folded = max(self.longest_folded, _longest(folded))
        spells = [as_number(text) for text in distinct.to_pylist() if text]
        self.has_numbers |= any(number is not None for number in spells)
        self.has_words |= None in spells


@dataclass(frozen=True)
class Layout(Checked):
    fields: tuple[Field, ...]
    lengths: dict[str, int]
    """Bytes of the longest value of each VARCHAR column, rounded up."""
    is_half: bool = False
    """Vectors at half precision."""

    @classmethod
    def of(cls, pieces: Iterable[pa.Table], *, is_half: bool = False, most_columns: int = MAX_COLUMNS) -> Self:
        """The layout for these items, one table of them after the other.

        Raises: InputError for an id that Milvus cannot hold.
        """
        texts: dict[tuple[bool, str], _Texts] = defaultdict(_Texts)
        """By whether it is a field, and name."""
        schema = pa.schema([])
        for piece in pieces:
            schema = piece.schema
            _check_ids(piece["id"])
            for name in _ITEM_COLUMNS.values():
                texts[False, name].see(piece[name].combine_chunks(), is_searched=False)
            for name in field_names(schema):
                texts[True, name].see(_member(piece, name))
        kinds = {member.name: member.type for member in schema.field("fields").type} if field_names(schema) else {}
        lengths = {column: _length(texts[False, name].longest) for column, name in _ITEM_COLUMNS.items()}
        room = most_columns - len(_OWN)
        fields: list[Field] = []
        for number, (name, kind) in enumerate(kinds.items()):
            seen = texts[True, name]
            field = _field(name, number, kind, seen, {field.value for field in fields})
            columns = {place for place in (field.value, field.folded, field.number) if place and not _key(place)}
            if len(columns) > room:
                field = _field(name, number, kind, seen, set(), in_other=True)
            else:
                room -= len(columns)
                if field.kind == "text" and not _key(field.value):
                    lengths[field.value] = _length(seen.longest)
                    if field.folded != field.value:
                        lengths[field.folded] = _length(seen.longest_folded)
            fields.append(field)
        return cls(tuple(fields), lengths, is_half)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Raises one of `UNFIT` for what `to_dict` does not make."""
        fields = tuple(record_of(Field, field) for field in content["fields"])
        return record_of(cls, {**content, "fields": fields})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def field(self, name: str, *, said_of: str = "") -> Field:
        """Raises InputError for an unknown one, listing the known."""
        for field in self.fields:
            if field.name == name:
                return field
        raise unknown_field(name, [field.name for field in self.fields], said_of=said_of)

    def outputs(self) -> list[str]:
        """The columns that a hit is made of."""
        return ["id", "row", "thumbnail", *sorted({column_of(field.value) for field in self.fields})]

    def values(self, entity: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an entity, in the order of the catalogue; None where there is no value."""
        return {field.name: value_of(entity, field.value) for field in self.fields}

    def arrow_type(self, field: Field) -> pa.DataType | None:
        """The type of the field's values; None for whatever they are."""
        return _ARROW.get(field.kind) if field.value == field.compared else None

    def rows(self, table: pa.Table, vectors: np.ndarray, first: int) -> Iterator[dict[str, Any]]:
        """Entities of some items, ready for pymilvus; `first` is the row of the first one."""
        stored = vectors.astype(np.float16) if self.is_half else np.ascontiguousarray(vectors, np.float32)
        members = [(field, _member(table, field.name).to_pylist()) for field in self.fields]
        own = {name: table[column].to_pylist() for name, column in _ITEM_COLUMNS.items()}
        for i in range(len(table)):
            row: dict[str, Any] = {name: shortened(column[i]) for name, column in own.items()}
            row |= {"row": first + i, "vector": stored[i], OTHER: {}}
            for field, column in members:
                _put(row, field, column[i])
            yield row


def column_of(place: str) -> str:
    return OTHER if _key(place) else place


def value_of(entity: Mapping[str, Any], place: str) -> Any:
    """What an entity has at a place; None for nothing."""
    key = _key(place)
    return (entity.get(OTHER) or {}).get(key) if key else entity.get(place)


def shortened(text: str | None) -> str | None:
    """The text, or as much of it as a VARCHAR holds."""
    if text is None or len(text) * 4 <= MAX_BYTES or len(text.encode()) <= MAX_BYTES:
        return text
    return text.encode()[:MAX_BYTES].decode(errors="ignore")


def ordered_digits(field: Field, number: Fraction, *, rounded: Callable[[Fraction], int] = round) -> str:
    """A number as digits of one length, above that of the least decimal: the text of the larger one is the greater.

    Args:
        rounded: to the last digit that the field's decimals have. What is beyond the largest one comes next to it.
    """
    most = 10**field.precision
    return f"{max(0, min(2 * most, rounded(number * 10**field.scale) + most)):0{field.precision + 1}}"


def spelled_member(field: Field, member: Any) -> str:
    """A member of a list; numbers that are equal are spelled alike."""
    if not field.is_numeric:
        return spelled(member)
    if not field.is_exact:
        return spelled(float(member))
    text = spelled(member or 0)  # the decimal -0 is 0
    return text.rstrip("0").rstrip(".") if "." in text else text


def count_shortened(table: pa.Table) -> int:
    """How many texts of these items are too long for a VARCHAR."""
    columns = [table["text"], *(_member(table, name) for name in field_names(table.schema))]
    texts = [column for column in columns if pa.types.is_string(column.type)]
    return sum(pc.sum(pc.greater(pc.binary_length(text), MAX_BYTES)).as_py() or 0 for text in texts)


def _put(row: dict[str, Any], field: Field, value: Any) -> None:
    """Write a value to the places of its field."""
    shown = json_value(value)  # dates become their text, NaN nothing
    places = {field.value: shortened(shown) if isinstance(shown, str) else shown}
    if field.kind == "list":
        members = [spelled_member(field, member) for member in value or () if member not in (None, "")]
        places[field.compared] = marked(members)
        if field.folded:
            places[field.folded] = MARK.join(map(fold, members)) or None
    elif field.kind == "text":
        text = None if value is None else shortened(spelled(value))
        places[field.compared] = text
        places[field.folded] = None if text is None else shortened(fold(text))
        if field.number:
            number = as_number(text) if text else None
            places[field.number] = None if number is None else float(number)
    elif field.kind == "time":
        text = None if value is None else spelled(value)
        places[field.compared] = None if text is None else as_time(text, field.zone)
        places[field.folded] = None if text is None else fold(text)
    elif field.kind == "decimal":
        places[field.compared] = None if value is None else ordered_digits(field, Fraction(value))
    elif field.compared != field.value:
        places[field.compared] = None if value is None else float(value)
    for place, content in places.items():
        key = _key(place)
        if not key:
            row[place] = content
        elif content is not None:  # a key that is missing is a value that is missing
            row[OTHER][key] = content


def _field(
    name: str, number: int, kind: pa.DataType, texts: _Texts, taken: set[str], *, in_other: bool = False
) -> Field:
    def other(letter: str) -> str:
        return f'{OTHER}["{letter}{number}"]'

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        is_numeric = _is_number(kind.value_type)
        is_exact = is_numeric and not pa.types.is_floating(kind.value_type)
        folded = "" if is_numeric or pa.types.is_boolean(kind.value_type) else other("c")
        return Field(name, "list", other("v"), other("t"), folded, is_numeric=is_numeric, is_exact=is_exact)
    own = other("v") if in_other else _column_name(name, number, taken)
    if pa.types.is_boolean(kind):
        return Field(name, "bool", own, own)
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return Field(name, "int", own, own, number=own)
    if pa.types.is_floating(kind):
        return Field(name, "float", own, own, number=own)
    if _is_number(kind):  # shown with all their digits
        precision, scale = (kind.precision, kind.scale) if pa.types.is_decimal(kind) else (20, 0)
        place = other("t")
        return Field(name, "decimal", other("v"), place, number=place, precision=precision, scale=scale)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        zone = (pa.types.is_timestamp(kind) and kind.tz) or ""
        return Field(name, "time", other("v"), other("t"), other("c"), other("t"), zone=zone)
    if not (pa.types.is_string(kind) or pa.types.is_null(kind)):
        return Field(name, "text", other("v"), other("t"), other("c"))
    folded = own if texts.is_folded else other("c") if in_other else f"c_{own[2:]}"
    place = "" if not texts.has_numbers else other("n") if in_other else f"n_{own[2:]}"
    return Field(name, "text", own, own, folded, place, is_mixed=texts.has_numbers and texts.has_words)


def _check_ids(ids: pa.ChunkedArray) -> None:
    lengths = pc.binary_length(ids)
    longest = pc.max(lengths).as_py() or 0
    if longest > MAX_BYTES:
        worst = ids[pc.index(lengths, longest).as_py()].as_py()
        raise InputError(f"id {worst[:40]!r}… has {longest:,} bytes; Milvus holds at most {MAX_BYTES:,}")


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _key(place: str) -> str:
    """The key in `other`; empty for a column."""
    return place[len(OTHER) + 2 : -2] if place.startswith(f'{OTHER}["') else ""


def _column_name(name: str, number: int, taken: set[str]) -> str:
    """`f_` keeps it apart from our own columns and from the words of the filter language."""
    own = f"f_{re.sub(r'[^A-Za-z0-9_]', '_', name)[:200]}"
    return f"{own}_{number}" if own in taken or re.search(r"_\d+$", own) else own


def _length(longest: int) -> int:
    return min(MAX_BYTES, max(64, 1 << longest.bit_length()))


def _longest(texts: pa.Array) -> int:
    return pc.max(pc.binary_length(texts)).as_py() or 0


def _member(table: pa.Table, name: str) -> pa.Array:
    return pa.concat_arrays([pc.struct_field(chunk, name) for chunk in table["fields"].chunks])
