"""MMEB-train as published (TIGER-Lab/MMEB-train, arXiv 2410.05160): one Parquet file a set, read as training pairs.

Columns are qry, qry_image_path, pos_text, pos_image_path and often neg_text, neg_image_path; '' is a missing text or
image. Instructions are part of the texts, so a model trained on them needs no prompt of its own.

A set lies at hf://datasets/TIGER-Lab/MMEB-train/SET/original-00000-of-00001.parquet. Its images are in the
repository's images_zip/, an archive or more a set: fetch those and unpack each into one folder,
`unzip -d FOLDER/images SET.zip`, after which the image paths start in FOLDER.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fanoise.catalog import read_rows
from fanoise.errors import CatalogError
from trainer.pair_table import Content, PairRow, PairTable

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


def read_mmeb_train(path: str | Path, *, images: str | Path) -> PairTable:
    """Read one set's file row by row; image paths are relative to `images`, and no image is opened.

    A placeholder without a path is an error, but for the queries of a set in which no query has an image: those of
    WebQA are published that way.

    Raises: CatalogError naming file, row and remedy.
    """
    path = Path(path)
    return PairTable.store(_rows(path), path=path, images=Path(images))


def _rows(path: Path) -> Iterator[PairRow]:
    lost: int | None = None
    query_images = False
    for number, row in read_rows(path):
        if missing := [name for name in _REQUIRED if name not in row]:
            raise CatalogError(f"{path}: no column {missing[0]!r}; MMEB-train has {', '.join(_REQUIRED)}")
        try:
            checked = _check(row)
        except CatalogError as error:
            raise CatalogError(f"{path}: row {number}: {error}") from None
        query_images |= checked.query[1] is not None
        if lost is None and _has_lost_image(row, "query"):
            lost = number
        yield checked
    if lost is not None and query_images:
        raise CatalogError(f"{path}: row {lost}: {_lost_image('query')}")


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


def _content(row: dict[str, Any], *columns: str) -> Content:
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
