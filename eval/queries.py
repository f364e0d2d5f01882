"""Query files: what is asked, and which items of the catalogue are right answers.

One query a row, in JSONL, CSV or Parquet, with the columns
    id         unique in the file
    text       optional if there is an image
    image      optional if there is a text; a path, relative to the query file
    positives  the ids of the right items: a list in JSONL and Parquet, "id|id|id" in CSV (or a Parquet string column)

Any other column is an error: a misspelt `positive` or `img` would otherwise change the score without a word.
Image files are not opened here; one that cannot be read is counted when the query is encoded (`eval.ranking`).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanoise.catalog import read_rows
from fanoise.errors import CatalogError

COLUMNS = ("id", "text", "image", "positives")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question and its right answers; at least one of `text` and `image` is set, `positives` is never empty."""

    id: str
    text: str | None = None
    image: Path | None = None
    positives: tuple[str, ...]


def read_queries(path: Path | str) -> list[Query]:
    """The queries of a file, in its order.

    Raises: CatalogError (an InputError), naming file, row and value, if the file is missing, empty or malformed, an id
        comes twice, a column is unknown, or a query has no content or no positives.
    """
    path = Path(path)
    queries: list[Query] = []
    first_seen: dict[str, int] = {}
    for number, cells in read_rows(path):
        if path.suffix.lower() != ".jsonl" and isinstance(cells.get("positives"), str):
            cells["positives"] = cells["positives"].split("|")
        query = _query(path, number, cells)
        if query.id in first_seen:
            raise CatalogError(
                f"{path}: row {number}: id {query.id!r} was already used in row {first_seen[query.id]}; "
                "give every query an id of its own"
            )
        first_seen[query.id] = number
        queries.append(query)
    if not queries:
        raise CatalogError(f"{path}: no queries in it; write one row per query with {', '.join(COLUMNS)}")
    return queries


def check_positives(queries: Sequence[Query], item_ids: Collection[str], path: Path | str) -> None:
    """Refuse queries with a positive that the index does not hold: no ranking could ever find it.

    Args:
        item_ids: every id in the index, before any filter.
        path: the query file, for the message.
    Raises: CatalogError, listing the first few.
    """
    known = set(item_ids)
    unknown = [(query.id, item_id) for query in queries for item_id in query.positives if item_id not in known]
    if unknown:
        shown = ", ".join(f"{item_id!r} (query {query_id!r})" for query_id, item_id in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise CatalogError(
            f"{path}: positives that are not in the index, {len(unknown)} in all: {shown}{more}; "
            "correct the ids or use this catalogue's index (its rejects.jsonl lists items that could not be indexed)"
        )


def _query(path: Path, number: int, cells: Mapping[str, Any]) -> Query:
    where = f"{path}: row {number}"
    unknown = [name for name in cells if name not in COLUMNS]
    if unknown:
        raise CatalogError(f"{where}: unknown column {', '.join(unknown)}; the columns are {', '.join(COLUMNS)}")
    query_id = _text(where, "id", cells.get("id"))
    if query_id is None:
        raise CatalogError(f"{where}: the query has no id; give every query an id of its own")
    where = f"{where} (query {query_id!r})"
    text = _text(where, "text", cells.get("text"))
    image = _text(where, "image", cells.get("image"))
    if text is None and image is None:
        raise CatalogError(f"{where}: neither text nor image; give at least one of them")
    positives = _positives(where, cells.get("positives"))
    return Query(id=query_id, text=text, image=path.parent / image if image else None, positives=positives)


def _text(where: str, column: str, value: Any) -> str | None:
    """The cell's text, None if it is blank. A whole number is an id that lost its quotes, as in the catalogue."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise CatalogError(f"{where}: {column} must be a string, got {value!r}; put it in quotes")
    if value and not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise CatalogError(f"{where}: {column} {value!r} is not valid Unicode; remove the lone surrogate")
    return value if value and value.strip() else None


def _positives(where: str, value: Any) -> tuple[str, ...]:
    if value is not None and not isinstance(value, list):
        raise CatalogError(f"{where}: positives must be a list of item ids, got {value!r}; write [{json.dumps(value)}]")
    ids = [_text(where, "positives", item) for item in value or []]
    positives = tuple(dict.fromkeys(item_id for item_id in ids if item_id))
    if not positives:
        raise CatalogError(f"{where}: no positives; list at least one item id, or remove the query")
    return positives
