"""Rows of the demo's MMEB by kind of question, worded as the published benchmark words them.

Each function yields one row a subject (`isolate` one a product of a collage) and asks the album only for the images of
rows that are taken.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from demo import products
from demo.catalogs import Picture
from demo.documents import Page
from demo.mmeb_scenes import Collage
from demo.products import Product

IMAGE = "<|image_1|>\n"
"""Published texts name the place of their image so, whatever the backbone."""
TARGET = f"{IMAGE}Represent the given image.\n"
CROP = f"{IMAGE}Represent the given cropped image of the object\n"


@dataclass(frozen=True)
class Side:
    """A query or a target as a row states it; an empty string is a missing text or image."""

    text: str = ""
    image: str = ""


@dataclass(frozen=True)
class Row:
    """One question. The negative, if any, is the most tempting wrong answer."""

    query: Side
    positive: Side
    negative: Side = Side()


class Album:
    """Hands out the paths of images, and remembers what to draw there."""

    def __init__(self) -> None:
        self.pictures: dict[str, Picture] = {}
        self.collages: dict[str, Collage] = {}
        self._numbers: dict[Any, int] = {}

    def photo(self, subject: Product | Page, view: int) -> str:
        number = self._numbers.setdefault(subject, len(self._numbers))
        file = f"{'products' if isinstance(subject, Product) else 'pages'}/{number:05d}-{view}.jpg"
        self.pictures[file] = Picture(file, subject, view=view)
        return file

    def collage(self, group: Iterable[Product]) -> tuple[str, list[str]]:
        """The paths of a new scene and of its crops, in the order of the products."""
        collage = Collage(tuple(group), view=len(self.collages))
        scene = f"scenes/{collage.view:05d}.jpg"
        self.collages[scene] = collage
        return scene, crop_files(collage)


def crop_files(collage: Collage) -> list[str]:
    return [f"crops/{collage.view:05d}-{place}.jpg" for place in range(len(collage.products))]


Build = Callable[[Album, Sequence[Any], random.Random], Iterator[Row]]


def classify(instruction: str, label: Callable[[Any], str]) -> Build:
    """Image to label."""

    def build(album: Album, subjects: Sequence[Any], rng: random.Random) -> Iterator[Row]:
        for subject in subjects:
            yield Row(Side(f"{IMAGE}{instruction}\n", album.photo(subject, 0)), Side(label(subject)))

    return build


def question(questions: Mapping[str, str], tempting: Mapping[str, str]) -> Build:
    """Image and question to answer.

    Args:
        questions: by the field that is the answer.
        tempting: by the field asked for, the field that holds a tempting wrong answer.
    """

    def build(album: Album, subjects: Sequence[Any], rng: random.Random) -> Iterator[Row]:
        for subject in subjects:
            field = rng.choice(list(questions))
            text = f"Represent the given image with the following question: {questions[field]}".format(
                kind=subject.kind
            )
            negative = Side(getattr(subject, tempting[field])) if field in tempting else Side()
            yield Row(Side(f"{IMAGE}{text}\n", album.photo(subject, 0)), Side(getattr(subject, field)), negative)

    return build


def find_image(instruction: str, describe: Callable[[Any, int], str]) -> Build:
    """Text to image."""

    def build(album: Album, subjects: Sequence[Any], rng: random.Random) -> Iterator[Row]:
        for subject in subjects:
            text = describe(subject, rng.randrange(8))
            yield Row(Side(f"{instruction}{text}\n"), Side(TARGET, album.photo(subject, 0)))

    return build


def find_caption(album: Album, subjects: Sequence[Product], rng: random.Random) -> Iterator[Row]:
    """Image to text."""
    instruction = "Find an image caption describing the given everyday image."
    for subject in subjects:
        caption = products.describe(subject, phrasing=0)
        yield Row(Side(f"{IMAGE}{instruction}\n", album.photo(subject, 0)), Side(caption))


def find_card(album: Album, subjects: Sequence[Product], rng: random.Random) -> Iterator[Row]:
    """Text to image and text. As in the published WebQA the query's text has a placeholder, but no query an image."""
    for subject in subjects:
        text = f"Find a catalogue card that answers this description: {products.describe(subject, phrasing=0)}"
        card = f"Represent the given catalogue card with related text information: {subject.material}, {subject.size}."
        yield Row(Side(f"{IMAGE}{text}\n"), Side(f"{IMAGE}{card}\n", album.photo(subject, 0)))


def find_twin(album: Album, subjects: Sequence[Product], rng: random.Random) -> Iterator[Row]:
    """Image to image: the same product in another view."""
    instruction = "Find a day-to-day image that looks similar to the provided image."
    for subject in subjects:
        yield Row(Side(f"{IMAGE}{instruction}\n", album.photo(subject, 1)), Side(TARGET, album.photo(subject, 0)))


def find_changed(instruction: str, phrases: Sequence[str]) -> Build:
    """Image and text to image: the product in another colour, on the same side of the split."""

    def build(album: Album, subjects: Sequence[Product], rng: random.Random) -> Iterator[Row]:
        for source in subjects:
            target = _recoloured(source, rng)
            if target is None:
                continue
            change = rng.choice(phrases).format(colour=target.colour, kind=source.kind, before=source.colour)
            yield Row(
                Side(f"{IMAGE}{instruction}{change}\n", album.photo(source, 1)),
                Side(TARGET, album.photo(target, 0)),
                Side(TARGET, album.photo(source, 0)),
            )

    return build


def _recoloured(source: Product, rng: random.Random) -> Product | None:
    colours = [colour for colour in products.COLOURS if colour not in (source.colour, source.second_colour)]
    changed = (products.recolour(source, colour) for colour in rng.sample(colours, len(colours)))
    side = products.is_held_out(source)
    return next((product for product in changed if products.is_held_out(product) == side), None)


def isolate(instruction: str, label: Callable[[Product], str]) -> Build:
    """Scene and label to the crop that shows it; no two products of a scene share a label."""

    def build(album: Album, subjects: Sequence[Product], rng: random.Random) -> Iterator[Row]:
        remaining = iter(subjects)
        while group := list(islice(remaining, rng.randint(2, 4))):
            distinct = list({label(product): product for product in group}.values())
            if len(distinct) < 2:
                continue
            scene, crops = album.collage(distinct)
            for place, product in enumerate(distinct):
                text = f'{instruction}"{label(product)}"'
                yield Row(Side(f"{IMAGE}{text}\n", scene), Side(CROP, crops[place]), Side(CROP, crops[place - 1]))

    return build
