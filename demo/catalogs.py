"""The demo's two catalogues on disk: images, catalogue table, training pairs, and query sets on unseen combinations.

Layout of a catalogue folder: `catalog.csv`, `images/`, `pairs/<task>.jsonl`, `queries/<set>.jsonl`,
`photos/` (other views, outside the catalogue).
The column `split` is `train`, `test` (held-out combinations) or `near_miss` (families that differ in one small thing).
"""

import csv
import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from demo import documents, products
from fanoise.storage import staged_directory

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CatalogSize:
    """How many things a catalogue has; the defaults are the demo's."""

    train: int
    test: int
    families: int
    """Near-miss families of three or four members each in the split `near_miss`, and half as many in `train`."""
    queries: int
    """Text queries on the test split."""


VERSION = 1
"""Raised when the same size and seed would give another catalogue."""

PRODUCTS = CatalogSize(train=1100, test=650, families=100, queries=500)
DOCUMENTS = CatalogSize(train=300, test=300, families=40, queries=300)


@dataclass(frozen=True)
class Picture:
    """One image to draw: where it goes, what it shows, from which view."""

    file: str
    subject: products.Product | documents.Page
    view: int


def make_products(folder: str | Path, *, size: CatalogSize = PRODUCTS, seed: int = 0, progress: bool = True) -> Path:
    """Write the product catalogue; deterministic by seed. The folder appears when it is complete."""
    rng = random.Random(f"products catalogue {seed}")
    test = _with_siblings(products.sample_products(size.test, seed=seed, held_out=True), size.test)
    train = _with_siblings(products.sample_products(size.train, seed=seed + 1, held_out=False), size.train)
    known = set(test)
    families = [
        products.near_misses(product)
        for product in products.sample_products(size.families * 2, seed=seed + 2, held_out=True)
        if product not in known
    ][: size.families]
    train_families = [
        products.near_misses(product)
        for product in products.sample_products(size.families // 2, seed=seed + 3, held_out=False)
    ]
    shelf = _Shelf(
        {"train": [*train, *_flat(train_families, train)], "test": test, "near_miss": _flat(families)},
        fields=lambda product: products.catalog_fields(product, rng),
        prefix="p",
    )
    queries = {
        "text": shelf.text_queries(
            test[: size.queries], lambda item: products.describe(item, phrasing=rng.randrange(8))
        ),
        "photo": shelf.photo_queries(test[: size.queries * 3 // 5]),
        "photo_text": shelf.photo_text_queries(test, rng),
        "near_miss": shelf.text_queries(
            _flat(families),
            lambda item: products.describe_detail(item, phrasing=rng.randrange(8)),
        ),
    }
    pairs = {
        "text": shelf.text_pairs(train, lambda item: products.describe(item, phrasing=rng.randrange(8)))
        + shelf.text_pairs(train, lambda item: products.describe_detail(item, phrasing=rng.randrange(8))),
        "photo": shelf.photo_pairs(train),
        "photo_text": shelf.photo_text_pairs(train, rng),
        "near_miss": shelf.near_miss_pairs(
            train_families, lambda item: products.describe_detail(item, phrasing=rng.randrange(8)), rng
        ),
    }
    return _write(folder, shelf, pairs, queries, progress=progress)


def make_documents(folder: str | Path, *, size: CatalogSize = DOCUMENTS, seed: int = 0, progress: bool = True) -> Path:
    """Write the document catalogue; deterministic by seed. The folder appears when it is complete."""
    rng = random.Random(f"documents catalogue {seed}")
    test = documents.sample_pages(size.test, seed=seed, held_out=True)
    known = {documents.describe(page, phrasing=0) for page in test}
    families = [
        documents.near_misses(page)
        for page in documents.sample_pages(size.families * 2, seed=seed + 2, held_out=True)
        if documents.describe(page, phrasing=0) not in known
    ][: size.families]
    train = documents.sample_pages(size.train, seed=seed + 1, held_out=False)
    train_families = [
        documents.near_misses(page)
        for page in documents.sample_pages(size.families // 2, seed=seed + 3, held_out=False)
    ]
    shelf = _Shelf(
        {"train": [*train, *_flat(train_families, train)], "test": test, "near_miss": _flat(families)},
        fields=lambda page: documents.catalog_fields(page, rng),
        prefix="d",
    )

    def describe(page: documents.Page) -> str:
        return documents.describe(page, phrasing=rng.randrange(documents.PHRASINGS))

    queries = {
        "text": shelf.text_queries(test[: size.queries], describe),
        "near_miss": shelf.text_queries(_flat(families), documents.describe_detail),
    }
    pairs = {
        "text": shelf.text_pairs(train, describe)
        + shelf.text_pairs(train, documents.describe_detail)
        + shelf.text_pairs(train, describe),
        "near_miss": shelf.near_miss_pairs(train_families, documents.describe_detail, rng),
    }
    return _write(folder, shelf, pairs, queries, progress=progress)


def draw(pictures: Sequence[Picture], folder: Path, *, label: str, progress: bool) -> None:
    """Draw pictures as JPEG files under `folder`, on all cores."""
    for parent in {(folder / picture.file).parent for picture in pictures}:
        parent.mkdir(parents=True, exist_ok=True)
    jobs = [(picture, folder) for picture in pictures]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        done = pool.map(_draw_one, jobs, chunksize=16)
        for _ in tqdm(done, total=len(jobs), desc=f"draw {label}", unit="image", disable=not progress):
            pass


def write_jsonl(file: Path, rows: Iterable[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


class _Shelf:
    """Subjects by split with their ids, and the pictures and rows made from them."""

    def __init__(self, splits: dict[str, list[Any]], *, fields: Callable[[Any], Row], prefix: str) -> None:
        self.rows: list[Row] = []
        self.pictures: list[Picture] = []
        self._ids: dict[Any, str] = {}
        self._photos: set[Any] = set()
        for split, subjects in splits.items():
            for subject in subjects:
                identifier = f"{prefix}{len(self.rows):05d}"
                file = f"images/{identifier}.jpg"
                self._ids[subject] = identifier
                self.rows.append({"id": identifier, "image": file, "split": split, **fields(subject)})
                self.pictures.append(Picture(file, subject, view=0))

    def image(self, subject: Any) -> str:
        return f"../images/{self._ids[subject]}.jpg"

    def photo(self, subject: Any) -> str:
        """Another view of the subject, outside the catalogue; relative to `queries/` and to `pairs/`."""
        file = f"photos/{self._ids[subject]}.jpg"
        if subject not in self._photos:
            self._photos.add(subject)
            self.pictures.append(Picture(file, subject, view=1))
        return f"../{file}"

    def text_queries(self, subjects: Sequence[Any], describe: Callable[[Any], str]) -> list[Row]:
        return [self._query(number, subject, text=describe(subject)) for number, subject in enumerate(subjects)]

    def photo_queries(self, subjects: Sequence[Any]) -> list[Row]:
        return [self._query(number, subject, image=self.photo(subject)) for number, subject in enumerate(subjects)]

    def photo_text_queries(self, subjects: Sequence[Any], rng: random.Random) -> list[Row]:
        return [
            self._query(number, target, image=self.photo(source), text=_change(target, rng))
            for number, (source, target) in enumerate(_siblings(subjects))
        ]

    def text_pairs(self, subjects: Sequence[Any], describe: Callable[[Any], str]) -> list[Row]:
        return [{"query_text": describe(subject), "positive_image": self.image(subject)} for subject in subjects]

    def near_miss_pairs(
        self, families: Sequence[Sequence[Any]], describe: Callable[[Any], str], rng: random.Random
    ) -> list[Row]:
        """Each member against another of its family as a mined negative."""
        return [
            {
                "query_text": describe(member),
                "positive_image": self.image(member),
                "negative_image": self.image(rng.choice([other for other in family if other != member])),
            }
            for family in families
            for member in family
        ]

    def photo_pairs(self, subjects: Sequence[Any]) -> list[Row]:
        return [{"query_image": self.photo(subject), "positive_image": self.image(subject)} for subject in subjects]

    def photo_text_pairs(self, subjects: Sequence[Any], rng: random.Random) -> list[Row]:
        both_ways = [pair for source, target in _siblings(subjects) for pair in ((source, target), (target, source))]
        return [
            {
                "query_image": self.photo(source),
                "query_text": _change(target, rng),
                "positive_image": self.image(target),
            }
            for source, target in both_ways
        ]

    def _query(self, number: int, target: Any, **content: str) -> Row:
        return {"id": f"q{number:04d}", **content, "positives": [self._ids[target]]}


def _flat(families: Sequence[Sequence[Any]], known: Sequence[Any] = ()) -> list[Any]:
    """The members of all families that are not known yet."""
    seen = set(known)
    return [member for family in families for member in family if member not in seen]


def _with_siblings(sampled: Sequence[products.Product], count: int) -> list[products.Product]:
    """`count` products, three in ten of which are recoloured copies of the others, on the same side of the split."""
    base = list(sampled[: count * 7 // 10])
    known = {_combination(product) for product in base}
    siblings: list[products.Product] = []
    for product in base:
        for colour in products.COLOURS:
            if len(siblings) == count - len(base):
                break
            if colour in (product.colour, product.second_colour):
                continue
            sibling = products.recolour(product, colour)
            if products.is_held_out(sibling) == products.is_held_out(product) and _combination(sibling) not in known:
                known.add(_combination(sibling))
                siblings.append(sibling)
                break
    return base + siblings


def _siblings(subjects: Sequence[products.Product]) -> list[tuple[products.Product, products.Product]]:
    """(source, the same in another colour), each source once."""
    by_rest: dict[tuple[str, ...], products.Product] = {}
    found = []
    for subject in subjects:
        rest = (subject.kind, subject.second_colour, subject.pattern, subject.material, subject.mark, subject.detail)
        if rest in by_rest:
            found.append((by_rest[rest], subject))
        else:
            by_rest[rest] = subject
    return found


def _change(target: products.Product, rng: random.Random) -> str:
    phrase = rng.choice(("this, in {}", "the same in {}", "this one but {}", "same {kind} in {}"))
    return phrase.format(target.colour, kind=target.kind)


def _combination(product: products.Product) -> tuple[str, str, str, str]:
    return product.kind, product.colour, product.second_colour, product.pattern


def _write(
    folder: str | Path,
    shelf: _Shelf,
    pairs: dict[str, list[Row]],
    queries: dict[str, list[Row]],
    *,
    progress: bool,
) -> Path:
    folder = Path(folder)
    with staged_directory(folder) as staging:
        draw(shelf.pictures, staging, label=folder.name, progress=progress)
        for name, rows in pairs.items():
            write_jsonl(staging / "pairs" / f"{name}.jsonl", rows)
        for name, rows in queries.items():
            write_jsonl(staging / "queries" / f"{name}.jsonl", rows)
        with (staging / "catalog.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(shelf.rows[0]))
            writer.writeheader()
            writer.writerows(shelf.rows)
    return folder


def _draw_one(job: tuple[Picture, Path]) -> None:
    picture, folder = job
    subject = picture.subject
    if isinstance(subject, products.Product):
        image = products.render(subject, view=picture.view)
    else:
        image = documents.render(subject, view=picture.view)
    image.save(folder / picture.file, quality=88)
