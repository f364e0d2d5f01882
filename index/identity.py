"""Which rows are the same: by their ids, and in an index that groups rows to items by their item."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from fanoise.catalog import Item
from fanoise.errors import InputError
from index.encoding.rejects import Reject
from index.encoding.shard import ITEM, is_one_of_several
from index.items import Items, printable_text

Existing = Literal["refuse", "replace", "require"]
Names = tuple[str, str]
"""Id and group of a row; where it has no group, the id twice."""


def name_columns(items: Items, group_by: str | None) -> list[pa.Array]:
    """The ids, and the groups, if there are any, as text with nulls."""
    columns = [pa.array(items.ids, pa.string())]
    if group_by is not None and group_by in items.field_names:
        columns.append(pc.cast(items.column(group_by), pa.string()))
    return columns


def names_of_rows(items: Items, group_by: str | None) -> list[Names]:
    """Without a group, several images of an item are one all the same: they will make the index one that groups."""
    groups: list[str | None] = name_columns(items, group_by)[-1].to_pylist()
    if group_by is None and ITEM in items.field_names:
        values = items.column(ITEM).to_pylist()
        groups = [item if is_one_of_several(id, item) else None for id, item in zip(items.ids, values, strict=True)]
    return [(id, id if group is None else group) for id, group in zip(items.ids, groups, strict=True)]


def names_of_row(row: Item | Reject, group_by: str | None) -> Names | None:
    """The same for a row that is not encoded yet; None for a reject."""
    if isinstance(row, Reject):
        return None
    if group_by is None:
        group = row.fields.get(ITEM) if is_one_of_several(row.id, row.fields.get(ITEM)) else None
    else:
        group = row.fields.get(group_by)
    id = printable_text(row.id)
    return id, id if group is None else printable_text(str(group))


def odd_rows(existing: Existing, asked: Iterable[Names], known: set[str]) -> list[Names]:
    """The rows that cannot be taken.

    Args:
        known: the names of these rows that are in the index.
    """
    if existing == "refuse":  # other rows of a known item, too: an item changes as a whole
        return [names for names in asked if not known.isdisjoint(names)]
    return [names for names in asked if known.isdisjoint(names)] if existing == "require" else []


def refusal(existing: Existing, count: int, names: Names, known: set[str], catalog: Path) -> InputError:
    if existing == "refuse":
        what, remedy = "already", "replace those rows by `index update` or --replace, or give the new ones other ids"
    else:
        what, remedy = "not", "to add them as well, use `index add --replace`"
    id, group = names
    example = repr(id) if id == group or id in known else f"{id!r} of item {group!r}"
    return InputError(f"ids of {catalog} are {what} in the index ({count}, for example {example}); {remedy}")
