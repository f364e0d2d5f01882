"""Pair files: which query belongs to which item, and what must not count as a negative."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fanoise.catalog import Item, read_rows
from fanoise.errors import CatalogError

COLUMNS = (
    "query_text",
    "query_image",
    "positive_text",
    "positive_image",
    "negative_text",
    "negative_image",
    "group",
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A query with its positive, optionally a mined negative."""

    query: Item
    positive: Item
    negative: Item | None = None
    group: str = ""
    """Pairs of one non-empty group answer each other's queries."""


def read_pairs(path: str | Path) -> list[Pair]:
    """Read a CSV, JSONL or Parquet file with the columns of `COLUMNS`; images relative to the file.

    Raises: CatalogError naming file, row and remedy.
    """
    path = Path(path)
    pairs = []
    for number, row in read_rows(path):
        if unknown := [name for name in row if name not in COLUMNS]:
            raise CatalogError(
                f"{path}: row {number}: unknown column {unknown[0]!r}; the columns are {', '.join(COLUMNS)}"
            )
        query, positive, negative = (_item(path, number, row, side) for side in ("query", "positive", "negative"))
        if query is None or positive is None:
            missing = "query" if query is None else "positive"
            raise CatalogError(f"{path}: row {number}: fill {missing}_text, {missing}_image or both")
        group = "" if row.get("group") is None else str(row["group"])
        pairs.append(Pair(query=query, positive=positive, negative=negative, group=group))
    if not pairs:
        raise CatalogError(f"{path}: no pairs in this file; it needs at least one row")
    return pairs


def valid_answers(pairs: Sequence[Pair]) -> np.ndarray:
    """[B, B] bool, True where item j is another right answer to query i: same group, same positive, or same query."""
    same = np.zeros((len(pairs), len(pairs)), dtype=bool)
    keys = (
        [pair.group or None for pair in pairs],
        [_content(pair.positive) for pair in pairs],
        [_content(pair.query) for pair in pairs],
    )
    for column in keys:
        numbers = {value: number for number, value in enumerate(dict.fromkeys(column))}
        codes = np.array([-1 - row if value is None else numbers[value] for row, value in enumerate(column)])
        same |= codes[:, None] == codes[None, :]
    np.fill_diagonal(same, False)
    return same


def _content(item: Item) -> tuple[str | None, str | None]:
    return item.text, None if item.image is None else str(item.image)


def _item(path: Path, number: int, row: dict[str, Any], side: str) -> Item | None:
    text, image = row.get(f"{side}_text"), row.get(f"{side}_image")
    if text is None and image is None:
        return None
    return Item(
        id=f"{path.name}:{number}",
        text=None if text is None else str(text),
        image=None if image is None else path.parent / str(image),
    )
