"""Several items.parquet below each other as one, a piece of them in memory at a time."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.items import cast_exactly, concat_items, field_names
from index.parquet import PieceWriter, read_pieces
from index.spelling import read_texts


def join_items(
    target: Path,
    sources: Sequence[Path],
    kept: Sequence[np.ndarray | None] | None = None,
    *,
    field: tuple[str, Sequence[pa.Array]] | None = None,
    like_first: bool = False,
) -> None:
    """Write the items of all sources, in their order and numbered anew; types of fields as in `concat_items`.

    Args:
        kept: bool [N] of each source, the rows that are taken; None is all.
        field: a name and for each source the values of its rows, kept or not; in place of a field of that name.
        like_first: where a later source has text in a field, and the first one something else, that is what its texts
            become if they spell it.
    Raises: ValueError (also pyarrow's) or OSError for a damaged source.
    """
    masks = [None] * len(sources) if kept is None else kept
    first = pq.read_schema(sources[0])
    kinds = [_spelled_kinds(source, first) if like_first and number else {} for number, source in enumerate(sources)]
    empty = [
        _read_as(_with_field(pq.read_schema(source).empty_table(), field, 0, 0), kinds[number])
        for number, source in enumerate(sources)
    ]
    model = concat_items(empty)
    while True:
        try:
            with PieceWriter(target, model.schema) as writer:
                row = 0
                for number, mask in enumerate(masks):
                    for piece in _pieces(sources[number], mask, field, number):
                        piece = _read_as(piece, kinds[number])
                        rows = pa.array(range(row, row + len(piece)), pa.int64())
                        writer.write(_in_types_of(model, piece).set_column(0, "row", rows))
                        row += len(piece)
            return
        except _TypeTooNarrowError as error:
            model = _replace_field(model, error.name, pa.array([], pa.string()))


class _TypeTooNarrowError(Exception):
    """The type of a field, found from the sources' types, does not hold a value of one of them."""

    def __init__(self, name: str) -> None:
        self.name = name


def _spelled_kinds(source: Path, first: pa.Schema) -> dict[str, pa.DataType]:
    """Of the source's fields that are text, and something else in the first one: the type that all its texts spell."""
    schema = pq.read_schema(source)
    here, there = (
        {name: one.field("fields").type.field(name).type for name in field_names(one)} for one in (schema, first)
    )
    kinds = {name: there[name] for name, kind in here.items() if name in there and pa.types.is_string(kind)}
    kinds = {name: kind for name, kind in kinds.items() if not (pa.types.is_string(kind) or pa.types.is_null(kind))}
    before = None
    while kinds and kinds != before:  # again, for texts of the first pieces may not spell what a later one needs
        before = dict(kinds)
        for piece in read_pieces(source, ["fields"]):
            members = piece["fields"].combine_chunks()
            for name, kind in list(kinds.items()):
                found = read_texts(members.field(name), kind)
                if found is None:
                    del kinds[name]
                else:  # of fractions or more digits, so that it is that of the pieces after it, too
                    kinds[name] = found.type
    return kinds


def _read_as(table: pa.Table, kinds: Mapping[str, pa.DataType]) -> pa.Table:
    for name, kind in kinds.items():
        table = _replace_field(table, name, read_texts(table["fields"].combine_chunks().field(name), kind))
    return table


def _pieces(
    source: Path, mask: np.ndarray | None, field: tuple[str, Sequence[pa.Array]] | None, number: int
) -> Iterator[pa.Table]:
    start = 0
    for piece in read_pieces(source):
        stop = start + len(piece)
        whole = _with_field(piece, field, number, start)
        yield whole if mask is None else whole.filter(pa.array(mask[start:stop]))
        start = stop


def _with_field(piece: pa.Table, field: tuple[str, Sequence[pa.Array]] | None, number: int, start: int) -> pa.Table:
    return piece if field is None else _replace_field(piece, field[0], field[1][number].slice(start, len(piece)))


def _in_types_of(model: pa.Table, table: pa.Table) -> pa.Table:
    """The rows of `table` with the fields of `model`, which has none. Raises _TypeTooNarrowError naming the field."""
    joined = concat_items([model, table])
    for name in field_names(model.schema):
        kind, found = (one.schema.field("fields").type.field(name).type for one in (model, joined))
        if kind != found:  # a number too large for a fraction, say, became text
            member = table["fields"].combine_chunks().field(name)
            try:
                joined = _replace_field(joined, name, cast_exactly(member, kind))
            except pa.ArrowException:
                raise _TypeTooNarrowError(name) from None
    return joined


def _replace_field(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The table with these values in a field, which is put in the place of one of that name, else last."""
    struct = table["fields"].combine_chunks() if "fields" in table.column_names else None
    members = {} if struct is None else {other: struct.field(other) for other in field_names(table.schema)}
    members[name] = values
    fields = pa.StructArray.from_arrays(list(members.values()), names=list(members))
    if struct is None:
        return table.append_column("fields", fields)
    return table.set_column(table.column_names.index("fields"), "fields", fields)
