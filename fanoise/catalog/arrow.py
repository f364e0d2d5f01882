"""Rows of Arrow record batches, as Python values; a column of vectors as NumPy rows."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from fanoise.errors import CatalogError, one_line

BATCH_ROWS = 128  # cells may hold whole images
_SHORT_LIST = 64
"""Longer lists of floats are vectors, which nobody looks at and for which this would take four times as long."""
_UNREADABLE = (ValueError, OverflowError, KeyError)
"""Of text that is not UTF-8, a date after the year 9999, a zone that is not known here."""
_DAY_US = 86_400_000_000
_FIRST_US, _LAST_US = -719_161 * _DAY_US, 2_932_896 * _DAY_US
"""A day inside 0001-01-01 and 10000-01-01, in microseconds since 1970."""


def arrow_rows(batch: Any, file: str, first: int, vectors: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow record batch, few at a time.

    A float16 or float32 becomes the shortest fraction that rounds to it: 19.99, as it was written, not
    19.989999771118164. So do those in lists that are short, and in structs. Times of a column are cut to microseconds,
    which is what Python's have.

    Args:
        file, first: where the rows are from, and the number of the first one, for errors.
        vectors: a column whose lists of numbers come as NumPy rows: the same values in their own type, in a fraction of
            the time and memory.
    Raises: CatalogError for values that Python cannot hold.
    """
    for start in range(0, len(batch), BATCH_ROWS):
        part = batch.slice(start, BATCH_ROWS)
        try:
            rows = _rows(part, vectors)
        except _UNREADABLE as error:
            row, name = _first_unreadable(part)
            raise CatalogError(
                f"{file}: row {first + start + row}: the value of {name!r} cannot be read ({one_line(error)})"
            ) from None
        yield from rows


def _rows(batch: Any, vectors: str | None) -> list[dict[str, Any]]:
    import pyarrow as pa

    found: dict[str, list[Any]] = {}
    for place, name in enumerate(batch.schema.names):
        column = batch.column(place)
        short = column if name == vectors else _shortest(column)
        if name == vectors:
            found[name] = _number_rows(column)
        elif _has_far_times(short):
            found[name] = _far_times(short)
        if name in found:
            short = pa.nulls(len(batch))
        if short is not column:
            batch = batch.set_column(place, name, short)
    rows: list[dict[str, Any]] = batch.to_pylist()
    for name, values in found.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def _first_unreadable(batch: Any) -> tuple[int, str]:
    """Number, from 0, and column of a value that `_rows` failed at."""
    for row in range(len(batch)):
        for name in batch.schema.names:
            try:
                _rows(batch.slice(row, 1).select([name]), None)
            except _UNREADABLE:
                return row, name
    raise AssertionError("all of it can be read")


def _has_far_times(column: Any) -> bool:
    """Whether it holds times so near the first or last year of Python's that their zone may lead out of it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_timestamp(column.type) or column.type.tz is None:
        return False
    ends = pc.min_max(column.cast(pa.timestamp("us")).cast(pa.int64())).as_py()
    return ends["min"] is not None and not (_FIRST_US < ends["min"] and ends["max"] < _LAST_US)


def _far_times(column: Any) -> list[Any]:
    """Python's times, in UTC where it has no other: 9999-12-31 23:59 in UTC, for no end, is past that in Berlin."""
    import pyarrow as pa

    times = []
    for local, utc in zip(column, column.cast(pa.timestamp(column.type.unit, "UTC")), strict=True):
        try:
            times.append(local.as_py())
        except (ValueError, OverflowError):
            times.append(utc.as_py())
    return times


def _shortest(array: Any) -> Any:
    """The array with its small floats as float64, and its times in microseconds, or itself where it has none."""
    import pyarrow as pa

    kind = array.type
    if pa.types.is_float32(kind):
        return array.cast(pa.string()).cast(pa.float64())
    if pa.types.is_float16(kind):
        halves = array.fill_null(0).to_numpy(zero_copy_only=False)
        return pa.array(_decimals_of_halves()[halves.view(np.uint16)], mask=array.is_null().to_numpy(False))
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return array.cast(pa.timestamp("us", kind.tz), safe=False)
    if pa.types.is_struct(kind):
        members = [array.field(number) for number in range(kind.num_fields)]
        short = [_shortest(member) for member in members]
        if all(new is old for new, old in zip(short, members, strict=True)):
            return array
        return pa.StructArray.from_arrays(short, names=[field.name for field in kind], mask=array.is_null())
    if _is_list(kind) and _has_small_floats(kind.value_type):
        flat, ends = _flattened(array)
        if len(flat) <= _SHORT_LIST * len(array) and (values := _shortest(flat)) is not flat:
            return pa.LargeListArray.from_arrays(pa.array(ends), values, mask=array.is_null())
    return array


@functools.cache
def _decimals_of_halves() -> np.ndarray:
    """float64 [65536]: of each float16, by its bits, the shortest fraction that rounds to it. Arrow knows none."""
    return np.array([float(str(half)) for half in np.arange(2**16, dtype=np.uint16).view(np.float16)])


def _number_rows(column: Any) -> list[Any]:
    """A column's values; lists as NumPy rows where they hold numbers and no nulls."""
    import pyarrow as pa

    kind = column.type.value_type if _is_list(column.type) else None
    if kind is None or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return list(column.to_pylist())
    flat, ends = _flattened(column)
    if flat.null_count:
        return list(column.to_pylist())
    numbers = flat.to_numpy().copy()  # a view would keep all of the batch, images too, for as long as one row is there
    rows = [numbers[start:end] for start, end in itertools.pairwise(ends.tolist())]
    is_valid = column.is_valid().to_pylist() if column.null_count else itertools.repeat(True)
    return [row if valid else None for row, valid in zip(rows, is_valid, strict=False)]


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _has_small_floats(kind: Any) -> bool:
    import pyarrow as pa

    if _is_list(kind):
        return _has_small_floats(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_small_floats(field.type) for field in kind)
    return pa.types.is_float16(kind) or pa.types.is_float32(kind)


def _flattened(lists: Any) -> tuple[Any, np.ndarray]:
    """The values of all lists, but for what lies behind nulls, and where each list ends, after a 0."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    return lists.flatten(), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
