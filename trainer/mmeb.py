"""MMEB-train as published (TIGER-Lab/MMEB-train, arXiv 2410.05160): one Parquet file a set, read as training pairs.

Columns are qry, qry_image_path, pos_text, pos_image_path and often neg_text, neg_image_path; '' is a missing text or
image. Instructions are part of the texts, so a model trained on them needs no prompt of its own.

A set lies at hf://datasets/TIGER-Lab/MMEB-train/SET/original-00000-of-00001.parquet. Its images are in the
repository's images_zip/, an archive or more a set: fetch those and unpack each into one folder,
`unzip -d FOLDER/images SET.zip`, after which the image paths start in FOLDER.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise.catalog.tables import batch_rows, read_batches
from fanoise.errors import CatalogError
from trainer.pair_columns import (
    PairRow,
    Side,
    batch_of_columns,
    batch_of_rows,
    is_filled,
    plain_side,
    stripped,
    without_empty,
)
from trainer.pair_table import BATCH_ROWS, PairTable

IMAGE_PLACEHOLDER = "<|image_1|>"
"""Marks an image's place in a text, whatever the backbone; ours place the image themselves."""
_SIDES = {
    "query": ("qry", "qry_image_path"),
    "positive": ("pos_text", "pos_image_path"),
    "negative": ("neg_text", "neg_image_path"),
}
_REQUIRED = (*_SIDES["query"], *_SIDES["positive"])


def is_mmeb_train(path: str | Path) -> bool:
    """Whether this is a Parquet file with the columns of MMEB-train; False for what cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        return False
    return "qry" in names and "pos_text" in names


def eval_name(train_name: str) -> str:
    """The name in MMEB-eval of a set of MMEB-train: ImageNet_1K is ImageNet-1K there, all others keep theirs.

    The rule is that an underscore before a count becomes a hyphen.
    """
    return re.sub(r"_(?=\d)", "-", train_name)


def read_mmeb_train(
    path: str | Path, *, images: str | Path, on_rows: Callable[[int], object] = lambda count: None
) -> PairTable:
    """Read one set's file; image paths are relative to `images`, and no image is opened.

    A placeholder without a path is an error, but for the queries of a set in which no query has an image: those of
    WebQA are published that way.

    Args:
        on_rows: as for `PairTable.write`.
    Raises: CatalogError naming file, row and remedy.
    """
    path = Path(path)
    return PairTable.write(_batches(path), path=path, images=Path(images), on_rows=on_rows)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Column by column; row by row, several times as slow, where that does not tell what is right or wrong."""
    lost: int | None = None
    query_images = False
    for first, batch in read_batches(path, BATCH_ROWS):
        if missing := [name for name in _REQUIRED if name not in batch.schema.names]:
            raise CatalogError(f"{path}: no column {missing[0]!r}; MMEB-train has {', '.join(_REQUIRED)}")
        sides = _plain_sides(batch)
        found = None if sides is None else _converted(sides)
        if sides is None or found is None:
            rows = list(batch_rows(path, first, batch))
            found = batch_of_rows([_checked(path, number, row) for number, row in rows])
            lost_here = [number for number, row in rows if _has_lost_image(row, "query")]
        else:
            lost_here = [first + place for place in np.flatnonzero(_lost(sides["query"]))[:1].tolist()]
        query_images |= found.column("query_image").null_count < len(found)
        lost = lost_here[0] if lost is None and lost_here else lost
        yield found
    if lost is not None and query_images:
        raise CatalogError(f"{path}: row {lost}: {_lost_image('query')}")


def _plain_sides(batch: pa.RecordBatch) -> dict[str, Side] | None:
    """Texts as they are, and paths; None where a column is not one of strings."""
    sides = {}
    for name, columns in _SIDES.items():
        side = plain_side(batch, *columns)
        if side is None:
            return None
        sides[name] = Side(side.text, without_empty(side.image))
    return sides


def _converted(sides: dict[str, Side]) -> pa.RecordBatch | None:
    """The pairs; None if there is an unusable row among them, which `_check` can name."""
    if _lost(sides["positive"]).any() or _lost(sides["negative"]).any():
        return None
    query, positive, negative = (
        Side(stripped(pc.replace_substring(text, IMAGE_PLACEHOLDER, "")), image) for text, image in sides.values()
    )
    if not (is_filled(query) and is_filled(positive)):
        return None
    return batch_of_columns(query, positive, negative, np.arange(len(negative.text)))


def _lost(side: Side) -> np.ndarray:
    """[N] bool, where a placeholder has no path."""
    has = pc.fill_null(pc.match_substring(side.text, IMAGE_PLACEHOLDER), pa.scalar(False))
    return pc.and_(has, side.image.is_null()).to_numpy(zero_copy_only=False)


def _checked(path: Path, number: int, row: dict[str, Any]) -> PairRow:
    try:
        return _check(row)
    except CatalogError as error:
        raise CatalogError(f"{path}: row {number}: {error}") from None


def _check(row: dict[str, Any]) -> PairRow:
    query, positive, negative = (_content(row, *columns) for columns in _SIDES.values())
    for side, content in (("query", query), ("positive", positive)):
        if content == (None, None):
            text, image = _SIDES[side]
            raise CatalogError(f"fill {text}, {image} or both, or drop the row")
    for side in ("positive", "negative"):
        if _has_lost_image(row, side):
            raise CatalogError(_lost_image(side))
    return PairRow(query, positive, [] if negative == (None, None) else [negative])


def _content(row: dict[str, Any], *columns: str) -> tuple[str | None, str | None]:
    text, image = (row.get(column) for column in columns)
    for column, value in zip(columns, (text, image), strict=True):
        if not isinstance(value, str | None):
            raise CatalogError(
                f"{column} is a {type(value).__name__}, must be a string; write one string a row, '' if there is none"
            )
    return (text or "").replace(IMAGE_PLACEHOLDER, "").strip() or None, image


def _has_lost_image(row: dict[str, Any], side: str) -> bool:
    text, image = _SIDES[side]
    return row.get(image) is None and IMAGE_PLACEHOLDER in (row.get(text) or "")


def _lost_image(side: str) -> str:
    text, image = _SIDES[side]
    return f"{text} has {IMAGE_PLACEHOLDER} but {image} is empty; fill {image}, or take the placeholder out of {text}"
