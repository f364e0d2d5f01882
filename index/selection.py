"""Which rows a filter selects, and how rows group: worked out once and kept, for the same few are asked for again."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from fanoise.errors import InputError
from index.filters import Field, FieldFilter
from index.items import Items
from index.where import Condition, conditions, unknown_field

_KEPT = 16

_Key = tuple[tuple[str, tuple[Condition, ...]], ...]


@dataclass(frozen=True)
class Selection:
    """The rows that a search may return."""

    mask: np.ndarray
    """bool [N]"""

    @cached_property
    def count(self) -> int:
        return int(np.count_nonzero(self.mask))

    @property
    def share(self) -> float:
        return self.count / len(self.mask)

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 [count], ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def bits(self) -> np.ndarray:
        """As FAISS's IDSelectorBitmap reads them."""
        return np.packbits(self.mask, bitorder="little")


class Selections:
    """Selections and groups of the rows of `items`, of which those in `live` (bool [N]) can be found."""

    def __init__(self, items: Items, live: np.ndarray) -> None:
        self._nothing_deleted = bool(live.all())
        self._filter = live_filter(items, live)
        # no bound methods: an index would then refer to itself, and stay in memory after it is replaced
        self._select = lru_cache(_KEPT)(partial(_select, self._filter, live))
        self._groups = lru_cache(_KEPT)(partial(_number_groups, items))
        self._counts = lru_cache(4 * _KEPT)(partial(_count_groups, self._groups, self._select))

    def of(self, where: Mapping[str, Any] | None) -> Selection | None:
        """None where every row can be found. Raises InputError, as `FieldFilter.mask`."""
        return self._select(_key(where)) if where or not self._nothing_deleted else None

    def notes(self, where: Mapping[str, Any]) -> list[str]:
        """As `FieldFilter.notes`."""
        return self._filter.notes(where)

    def groups(self, name: str) -> np.ndarray:
        """int64 [N]: equal for rows with the same value of a field; a row without a value is a group of its own.

        Raises: InputError for an unknown field, or one of lists.
        """
        return self._groups(name)

    def group_count(self, name: str, where: Mapping[str, Any] | None) -> int:
        """The number of groups among the selected rows."""
        return self._counts(name, _key(where))


def _key(where: Mapping[str, Any] | None) -> _Key:
    return tuple((name, tuple(several)) for name, several in conditions(where).items())


def live_filter(items: Items, live: np.ndarray) -> FieldFilter:
    """A filter of the rows in `live` (bool [N]); the others match nothing, and their values decide nothing."""
    return FieldFilter(items.field_names, partial(_live_column, items, live))


def _live_column(items: Items, live: np.ndarray, name: str) -> pa.Array:
    """By row, null for deleted ones."""
    column = items.column(name)
    return column if live.all() else column.take(pa.array(np.arange(len(column)), mask=~live))


def _select(filter: FieldFilter, live: np.ndarray, key: _Key) -> Selection:
    return Selection(live & filter.mask(dict(key)) if key else live)


def _number_groups(items: Items, name: str) -> np.ndarray:
    if name not in items.field_names:
        raise unknown_field(name, items.field_names, said_of="group_by: ")
    field = Field(name, items.column(name))
    if field.is_list:
        raise InputError(f"group_by: the field {name!r} holds lists; group by one with a single value")
    groups = field.codes.astype(np.int64)
    alone = np.flatnonzero(groups == len(field.distinct))
    groups[alone] = len(field.distinct) + np.arange(len(alone))
    return groups


def _count_groups(groups: Any, select: Any, name: str, key: _Key) -> int:
    return len(np.unique(groups(name)[select(key).mask]))
