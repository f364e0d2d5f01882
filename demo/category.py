"""Files to train and judge an embedder on any catalogue whose photos have a category and a split.

Training pairs in both directions (several phrasings), the held-out photos as a catalogue, the categories as another,
and queries either way: "a photo of a dress" to photos, and a photo to its category.
"""

import csv
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from demo.catalogs import write_jsonl
from fanoise.catalog import Item, read_catalog
from fanoise.errors import CatalogError
from fanoise.storage import staged_directory

PHRASES = (
    "a photo of {a} {name}",
    "{name}",
    "a picture of {a} {name}",
    "{a} {name} for sale",
    "someone selling {a} {name}",
)


def make_category_task(
    catalog: str | Path, out: str | Path, *, category: str = "category", train: str = "train", test: str = "validation"
) -> Path:
    """Write `pairs.jsonl`, `photos.csv`, `categories.csv`, `text_to_photo.jsonl` and `photo_to_category.jsonl`.

    Args:
        category: the field with the category.
        train, test: the values of the field `split` to learn from and to judge on.
    The photos stay where they are: `photos.csv` leads out of its folder, and is read with `allow_outside`.
    Raises: CatalogError when a field, or a split, is missing, or an image is no file of its own.
    """
    by_split: dict[str, list[Item]] = defaultdict(list)
    for item in read_catalog(catalog):
        for name in (category, "split"):
            if item.fields.get(name) is None:
                raise CatalogError(f"{catalog}: item {item.id!r} has no {name}; every row needs one")
        if item.image is None:
            raise CatalogError(f"{catalog}: item {item.id!r} has no image; every row needs one")
        if not isinstance(item.image, Path):
            raise CatalogError(
                f"{catalog}: item {item.id!r} has its image in the table or in a document, not in a file of its own; "
                "save it as one"
            )
        by_split[str(item.fields["split"])].append(item)
    for split in (train, test):
        if split not in by_split:
            raise CatalogError(f"{catalog}: no rows with split={split}; there are {', '.join(sorted(by_split))}")
    names = sorted({str(item.fields[category]) for split in (train, test) for item in by_split[split]})
    photos: dict[str, list[str]] = defaultdict(list)
    for item in by_split[test]:
        photos[str(item.fields[category])].append(item.id)
    out = Path(out)
    with staged_directory(out) as staging:

        def image(item: Item) -> str:
            # ".." is followed on the disk, so both ends must be free of links
            return Path(os.path.relpath(Path(str(item.image)).resolve(), out.resolve())).as_posix()

        pairs: list[dict[str, Any]] = []
        for number, item in enumerate(by_split[train]):
            name = str(item.fields[category])
            phrase = _phrase(name, number % len(PHRASES))
            pairs.append({"query_text": phrase, "positive_image": image(item), "group": name})
            pairs.append({"query_image": image(item), "positive_text": phrase, "group": name})
        write_jsonl(staging / "pairs.jsonl", pairs)
        _write_csv(staging / "photos.csv", [[item.id, image(item), item.fields[category]] for item in by_split[test]])
        _write_csv(staging / "categories.csv", [[name, _phrase(name, 0), name] for name in names], content="text")
        write_jsonl(
            staging / "text_to_photo.jsonl",
            [
                {"id": f"{name} {number}", "text": _phrase(name, number), "positives": photos[name]}
                for name in names
                if photos[name]
                for number in range(len(PHRASES))
            ],
        )
        write_jsonl(
            staging / "photo_to_category.jsonl",
            [
                {"id": item.id, "image": image(item), "positives": [str(item.fields[category])]}
                for item in by_split[test]
            ],
        )
    return out


def _phrase(name: str, number: int) -> str:
    return PHRASES[number].format(name=name, a="an" if name[:1].lower() in "aeiou" else "a")


def _write_csv(file: Path, rows: list[list[Any]], *, content: str = "image") -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", content, "category"])
        writer.writerows(rows)
