"""Several items.parquet below each other as one, a piece of them in memory at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.items import as_text, concat_items, field_names
from index.parquet import PieceWriter, read_pieces


def join_items(
    target: Path,
    sources: Sequence[Path],
    kept: Sequence[np.ndarray | None] | None = None,
    *,
    field: tuple[str, Sequence[pa.Array]] | None = None,
) -> None:
    """Write the items of all sources, in their order and numbered anew; types of fields as in `concat_items`.

    Args:
        kept: bool [N] of each source, the rows that are taken; None is all.
        field: a name and for each source the values of its rows, kept or not; in place of a field of that name.
    Raises: ValueError (also pyarrow's) or OSError for a damaged source.
    """
    masks = [None] * len(sources) if kept is None else kept
    empty = [_with_field(pq.read_schema(source).empty_table(), field, 0, 0) for source in sources]
    model = concat_items(empty)
    while True:
        try:
            with PieceWriter(target, model.schema) as writer:
                row = 0
                for number, mask in enumerate(masks):
                    for piece in _pieces(sources[number], mask, field, number):
                        rows = pa.array(range(row, row + len(piece)), pa.int64())
                        writer.write(_in_types_of(model, piece).set_column(0, "row", rows))
                        row += len(piece)
            return
        except _TypeTooNarrowError as error:
            model = _replace_field(model, error.name, pa.array([], error.kind))


class _TypeTooNarrowError(Exception):
    """The type of a field, found from the sources' types, does not hold a value of one of them; `kind` holds it."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self.name, self.kind = name, kind


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
    for name in field_names(table.schema):
        if pa.types.is_string(_kind(model, name)):  # what could be read as something else is not
            table = _replace_field(table, name, as_text(table["fields"].combine_chunks().field(name)))
    joined = concat_items([model, table])
    for name in field_names(model.schema):
        if _kind(joined, name) != _kind(model, name):  # a number too large for a fraction, say, became text
            raise _TypeTooNarrowError(name, _kind(joined, name))
    return joined


def _kind(table: pa.Table, name: str) -> pa.DataType:
    return table.schema.field("fields").type.field(name).type


def _replace_field(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The table with these values in a field, which is put in the place of one of that name, else last."""
    struct = table["fields"].combine_chunks() if "fields" in table.column_names else None
    members = {} if struct is None else {other: struct.field(other) for other in field_names(table.schema)}
    members[name] = values
    fields = pa.StructArray.from_arrays(list(members.values()), names=list(members))
    if struct is None:
        return table.append_column("fields", fields)
    return table.set_column(table.column_names.index("fields"), "fields", fields)
