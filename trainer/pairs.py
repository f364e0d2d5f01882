"""Pair files: which query belongs to which item, and what must not count as a negative."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise.catalog import ImageBytes, read_rows
from fanoise.catalog.cells import image_content, is_empty, url_scheme
from fanoise.catalog.rejects import Fault
from fanoise.catalog.tables import batch_rows, read_batches
from fanoise.errors import CatalogError
from trainer.pair_columns import (
    Content,
    PairRow,
    Side,
    batch_of_columns,
    batch_of_rows,
    is_filled,
    plain_side,
    plain_strings,
    stripped,
    without_blanks,
)
from trainer.pair_table import BATCH_ROWS, Pair, PairTable, pair_keys, parts

COLUMNS = (
    "query_text",
    "query_image",
    "positive_text",
    "positive_image",
    "negative_text",
    "negative_image",
    "group",
)
_NOTHING = (None, None)


def read_pairs(
    path: str | Path,
    *,
    images: str | Path | None = None,
    on_rows: Callable[[int], object] = lambda count: None,
) -> PairTable:
    """Read a CSV, JSONL or Parquet file with the columns of `COLUMNS`.

    In JSONL and Parquet a pair may have several mined negatives: `negative_text` and `negative_image` are then lists,
    one of them or both, in which the same place belongs to the same negative. An image is what an image cell of a
    catalogue may be, but for URLs.

    Args:
        images: where relative image paths start; by default beside the file.
        on_rows: as for `PairTable.write`.
    Raises: CatalogError naming file, row and remedy.
    """
    path = Path(path)
    images = path.parent if images is None else Path(images)
    return PairTable.write(_batches(path), path=path, images=images, on_rows=on_rows)


def valid_answers(pairs: Sequence[Pair]) -> np.ndarray:
    """[B, B] bool, True where item j is another right answer to query i: same group, same positive, or same query."""
    return equal_keys(np.array([pair_keys(pair) for pair in pairs], dtype=np.int64).reshape(-1, 3))


def equal_keys(keys: np.ndarray) -> np.ndarray:
    """`valid_answers` of the pairs with these [B, 3] keys (see `PairTable.keys`)."""
    query, positive, group = keys.T
    same = (query[:, None] == query) | (positive[:, None] == positive) | ((group[:, None] == group) & (group != 0))
    np.fill_diagonal(same, False)
    return same


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Of Parquet column by column, where columns are plain; all else row by row, several times as slow."""
    if path.suffix.lower() != ".parquet":
        for part in parts(_checked(path, number, row) for number, row in read_rows(path)):
            yield batch_of_rows(part)
        return
    for first, batch in read_batches(path, BATCH_ROWS):
        found = _converted(batch)
        if found is None:
            found = batch_of_rows([_checked(path, number, row) for number, row in batch_rows(path, first, batch)])
        yield found


def _converted(batch: pa.RecordBatch) -> pa.RecordBatch | None:
    """The pairs; None where a row is unusable, or more than texts and paths: `_check` looks at each by itself."""
    if not set(batch.schema.names) <= set(COLUMNS):
        return None
    query, positive = (plain_side(batch, f"{side}_text", f"{side}_image") for side in ("query", "positive"))
    group, negatives = plain_side(batch, "group", "group"), _plain_negatives(batch)
    if query is None or positive is None or group is None or negatives is None:
        return None
    query, positive, negative = (Side(*map(without_blanks, side)) for side in (query, positive, negatives[0]))
    paths = (query.image, positive.image, negative.image)
    if not (is_filled(query) and is_filled(positive)) or any(map(_may_be_no_path, paths)):
        return None
    return batch_of_columns(query, positive, negative, negatives[1], without_blanks(group.text))


def _plain_negatives(batch: pa.RecordBatch) -> tuple[Side, np.ndarray] | None:
    """The negatives of all rows one after the other, and the row of each."""
    found: list[tuple[pa.Array, np.ndarray] | None] = []
    for name in ("negative_text", "negative_image"):
        column = batch.column(name) if name in batch.schema.names else pa.nulls(len(batch))
        if column.null_count == len(column):
            found.append(None)
            continue
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            cells, parents = column.flatten(), pc.list_parent_indices(column).to_numpy()
        else:
            cells, parents = column.drop_null(), np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        cells = plain_strings(cells)
        if cells is None:
            return None
        found.append((cells, parents))
    texts, images = found
    parents = next((each[1] for each in found if each is not None), np.empty(0, dtype=np.int64))
    nothing = pa.nulls(len(parents), pa.string()), parents
    texts, images = texts or nothing, images or nothing
    if not np.array_equal(texts[1], images[1]):
        return None
    return Side(texts[0], images[0]), parents


def _may_be_no_path(images: pa.Array) -> bool:
    """Whether any of them might be another thing to `image_content`: base64, a URL, a text too long for a path."""
    odd = pc.match_substring_regex(stripped(images), r"^[^.]*$|^(?i:data):|://")
    return bool(pc.any(pc.or_(odd, pc.greater(pc.utf8_length(images), 1000))).as_py())


def _checked(path: Path, number: int, row: dict[str, Any]) -> PairRow:
    try:
        return _check(row)
    except CatalogError as error:
        raise CatalogError(f"{path}: row {number}: {error}") from None


def _check(row: dict[str, Any]) -> PairRow:
    if unknown := [name for name in row if name not in COLUMNS]:
        hint = "; this is MMEB-eval, train on MMEB-train" if "tgt_text" in row else ""
        raise CatalogError(f"unknown column {unknown[0]!r}; the columns are {', '.join(COLUMNS)}{hint}")
    query = _text(row, "query_text"), _image(row, "query_image")
    positive = _text(row, "positive_text"), _image(row, "positive_image")
    if query == _NOTHING or positive == _NOTHING:
        side = "query" if query == _NOTHING else "positive"
        raise CatalogError(f"fill {side}_text, {side}_image or both")
    return PairRow(query, positive, _negatives(row), _text(row, "group") or "")


def _negatives(row: dict[str, Any]) -> list[Content]:
    texts, images = row.get("negative_text"), row.get("negative_image")
    if texts is None and images is None:
        return []
    texts, images = (cells if isinstance(cells, list) or cells is None else [cells] for cells in (texts, images))
    if texts is not None and images is not None and len(texts) != len(images):
        raise CatalogError(
            f"negative_text has {len(texts)} entries and negative_image {len(images)}; "
            "give both as many, null where one is missing"
        )
    cells = zip(texts or [None] * len(images or []), images or [None] * len(texts or []), strict=True)
    each = [{"negative_text": text, "negative_image": image} for text, image in cells]
    contents = [(_text(one, "negative_text"), _image(one, "negative_image")) for one in each]
    return [content for content in contents if content != _NOTHING]


def _image(row: dict[str, Any], column: str) -> str | bytes | None:
    """A cell as a path, or as the bytes that are in it; None if there is nothing in it."""
    cell = row.get(column)
    if is_empty(cell):
        return None
    if isinstance(cell, int | float):
        return _text(row, column)
    if not isinstance(cell, str | bytes | Mapping):
        raise CatalogError(
            f"{column} is a {type(cell).__name__}, must be a path, bytes, or base64 text; write one image a row"
        )
    try:
        content = image_content(cell, column)
    except Fault as fault:
        raise CatalogError(f"{column}: {fault.reason}") from None
    if isinstance(content, ImageBytes):
        return content.data
    if url_scheme(str(content)):
        raise CatalogError(f"{column} is a URL, which is not fetched; fetch the images and name their paths")
    return _text({column: content}, column)


def _text(row: dict[str, Any], column: str) -> str | None:
    """A cell as a string; None if there is nothing in it."""
    value = row.get(column)
    if value is None:
        return None
    if not isinstance(value, str):
        if not isinstance(value, int | float):
            raise CatalogError(f"{column} is a {type(value).__name__}, must be a string; write one string a row")
        if math.isnan(value):  # pandas writes missing cells as NaN
            return None
        value = str(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
            raise CatalogError(f"{column} is not Unicode (half of a surrogate pair); write it again") from None
    return None if not value or value.isspace() else value
