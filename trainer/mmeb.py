"""MMEB-train as published (TIGER-Lab/MMEB-train, arXiv 2410.05160): one Parquet file a set, read as training pairs.

Columns are qry, qry_image_path, pos_text, pos_image_path and often neg_text, neg_image_path; '' is a missing text or
image. Instructions are part of the texts, so a model trained on them needs no prompt of its own.
"""

import re
from pathlib import Path
from typing import Any

from fanoise.catalog import Item, read_rows
from fanoise.errors import CatalogError
from trainer.pairs import Pair

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


def read_mmeb_train(path: str | Path, *, images: str | Path) -> list[Pair]:
    """Read one set's file; image paths are relative to `images`, and no image is opened.

    A placeholder without a path is an error, but for the queries of a set in which no query has an image: those of
    WebQA are published that way.

    Raises: CatalogError naming file, row and remedy.
    """
    path, images = Path(path), Path(images)
    pairs: list[Pair] = []
    lost: int | None = None
    for number, row in read_rows(path):
        if missing := [name for name in _REQUIRED if name not in row]:
            raise CatalogError(f"{path}: no column {missing[0]!r}; MMEB-train has {', '.join(_REQUIRED)}")
        query, positive, negative = (_item(path, number, row, side, images) for side in _SIDES)
        if query is None or positive is None:
            column = _SIDES["query" if query is None else "positive"]
            raise CatalogError(f"{path}: row {number}: fill {column[0]}, {column[1]} or both, or drop the row")
        if lost is None and _has_lost_image(row, "query"):
            lost = number
        for side in ("positive", "negative"):
            if _has_lost_image(row, side):
                raise _lost_image(path, number, side)
        pairs.append(Pair(query=query, positive=positive, negative=negative))
    if not pairs:
        raise CatalogError(f"{path}: no pairs in this file; it needs at least one row")
    if lost is not None and any(pair.query.image is not None for pair in pairs):
        raise _lost_image(path, lost, "query")
    return pairs


def _item(path: Path, number: int, row: dict[str, Any], side: str, images: Path) -> Item | None:
    for column in _SIDES[side]:
        if not isinstance(row.get(column), str | None):
            raise CatalogError(
                f"{path}: row {number}: {column} is a {type(row[column]).__name__}, must be a string; "
                "write one string a row, '' if there is none"
            )
    text, image = (row.get(column) for column in _SIDES[side])
    text = (text or "").replace(IMAGE_PLACEHOLDER, "").strip() or None
    if text is None and image is None:
        return None
    return Item(
        # every set's file has the same name; its folder tells them apart
        id=f"{path.parent.name}/{path.name}:{number}",
        text=text,
        image=None if image is None else images / image,
    )


def _has_lost_image(row: dict[str, Any], side: str) -> bool:
    text, image = (row.get(column) for column in _SIDES[side])
    return image is None and IMAGE_PLACEHOLDER in (text or "")


def _lost_image(path: Path, number: int, side: str) -> CatalogError:
    text, image = _SIDES[side]
    return CatalogError(
        f"{path}: row {number}: {text} has {IMAGE_PLACEHOLDER} but {image} is empty; "
        f"fill {image}, or take the placeholder out of {text}"
    )
