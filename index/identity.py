"""Which rows are the same: by their ids, and in an index that groups rows to items by their item."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from fanoise.catalog import Item
from fanoise.catalog.columns import ITEM
from fanoise.errors import InputError
from fanoise.values import printable_text
from index.encoding.rejects import Reject
from index.encoding.shard import is_one_of_several
from index.items import Items

Existing = Literal["refuse", "replace", "require"]
Names = tuple[str, str]
"""Id and group of a row; where it has no group, the id twice."""


def name_columns(items: Items, group_by: str | None) -> list[pa.Array]:
    """The ids, and the groups, if there are any, as text with nulls."""
    columns = [items.id_column]
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


def odd_rows(existing: Existing, asked: Iterable[Names], known: set[str], groups: Mapping[str, str]) -> list[Names]:
    """The rows that cannot be taken.

    Args:
        known: the names of these rows that are in the index.
        groups: of their ids that are in the index and in a group, the group.
    """
    if existing == "refuse":  # other rows of a known item, too: an item changes as a whole
        return [names for names in asked if not known.isdisjoint(names)]
    return [
        names
        for names in asked
        if _leaves_its_group(names, groups) or (existing == "require" and known.isdisjoint(names))
    ]


def _leaves_its_group(names: Names, groups: Mapping[str, str]) -> bool:
    """Whether a row of no group would take the place of one that has a group, whose other rows would stay."""
    id, group = names
    return id == group and id in groups


def refusal(
    existing: Existing, odd: Collection[Names], names: Names, known: set[str], groups: Mapping[str, str], catalog: Path
) -> InputError:
    """What is to be said of the odd rows, with the one of these names for example."""
    id, group = names
    if existing != "refuse" and _leaves_its_group(names, groups):
        count = sum(_leaves_its_group(others, groups) for others in odd)
        return InputError(
            f"rows of {catalog} would leave the item that they are one of several of ({count}, for example {id!r} of "
            f"item {groups[id]!r}); an item is replaced as a whole, so give all its rows, with its name in the column "
            f"{ITEM!r}, or delete the row first"
        )
    if existing == "refuse":
        what, remedy = "already", "replace those rows by `index update` or --replace, or give the new ones other ids"
    else:
        what, remedy = "not", "to add them as well, use `index add --replace`"
    example = repr(id) if id == group or id in known else f"{id!r} of item {group!r}"
    return InputError(f"ids of {catalog} are {what} in the index ({len(odd)}, for example {example}); {remedy}")
