"""Pair files: which query belongs to which item, and what must not count as a negative."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fanoise.catalog import read_rows
from fanoise.errors import CatalogError
from trainer.pair_table import Content, Pair, PairRow, PairTable, pair_keys

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


def read_pairs(path: str | Path, *, images: str | Path | None = None) -> PairTable:
    """Read a CSV, JSONL or Parquet file with the columns of `COLUMNS`, row by row.

    In JSONL and Parquet a pair may have several mined negatives: `negative_text` and `negative_image` are then lists,
    one of them or both, in which the same place belongs to the same negative.

    Args:
        images: where relative image paths start; by default beside the file.
    Raises: CatalogError naming file, row and remedy.
    """
    path = Path(path)
    return PairTable.store(_rows(path), path=path, images=path.parent if images is None else Path(images))


def valid_answers(pairs: Sequence[Pair]) -> np.ndarray:
    """[B, B] bool, True where item j is another right answer to query i: same group, same positive, or same query."""
    return equal_keys(np.array([pair_keys(pair) for pair in pairs], dtype=np.int64).reshape(-1, 3))


def equal_keys(keys: np.ndarray) -> np.ndarray:
    """`valid_answers` of the pairs with these [B, 3] keys (see `PairTable.keys`)."""
    query, positive, group = keys.T
    same = (query[:, None] == query) | (positive[:, None] == positive) | ((group[:, None] == group) & (group != 0))
    np.fill_diagonal(same, False)
    return same


def _rows(path: Path) -> Iterator[PairRow]:
    for number, row in read_rows(path):
        try:
            checked = _check(row)
        except CatalogError as error:
            raise CatalogError(f"{path}: row {number}: {error}") from None
        yield checked


def _check(row: dict[str, Any]) -> PairRow:
    if unknown := [name for name in row if name not in COLUMNS]:
        hint = "; this is MMEB-eval, train on MMEB-train" if "tgt_text" in row else ""
        raise CatalogError(f"unknown column {unknown[0]!r}; the columns are {', '.join(COLUMNS)}{hint}")
    query = _text(row, "query_text"), _text(row, "query_image")
    positive = _text(row, "positive_text"), _text(row, "positive_image")
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
    contents = [(_text(one, "negative_text"), _text(one, "negative_image")) for one in each]
    return [content for content in contents if content != _NOTHING]


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
