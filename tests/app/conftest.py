"""Two indices of one small catalogue, made by an embedder that sees nothing but colours."""

import csv
import hashlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.service import Pair, Service
from fanoise.catalog import Item
from fanoise.images import open_image
from index.build import build_index
from index.search import Index, Searcher
from tests.fake_embedder import FakeEmbedder

COLOURS = {
    "red": (210, 50, 45),
    "orange": (235, 140, 40),
    "yellow": (235, 205, 60),
    "green": (60, 150, 80),
    "blue": (50, 90, 190),
    "purple": (120, 70, 170),
    "black": (30, 30, 35),
    "white": (240, 240, 238),
}


class ColourEmbedder(FakeEmbedder):
    """The mean colour of the picture, or of the colour words, as a unit vector.

    `twist` mixes the channels, so that two embedders order the same items differently.
    """

    def __init__(self, name: str, *, twist: float = 0.0, noise: dict[str, Any] | None = None) -> None:
        weights = hashlib.sha256(f"{name}{twist}".encode()).hexdigest()[:16]
        super().__init__(name, dim=4, weights=weights, noise=noise)
        self._mix = np.eye(4) + twist * np.roll(np.eye(4), 1, axis=0)

    def vector_of(self, item: Item) -> np.ndarray:
        vector = self._mix @ np.append(self._colour(item) / 255 - 0.5, 0.2)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    @staticmethod
    def _colour(item: Item) -> np.ndarray:
        seen = [COLOURS[word] for word in (item.text or "").lower().split() if word in COLOURS]
        if item.image is not None:
            seen.append(tuple(np.asarray(open_image(item.image).resize((1, 1)))[0, 0]))
        return np.mean(seen, axis=0) if seen else np.full(3, 128.0)


def write_catalog(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """`products.csv` with one plain picture a row; a row gives id, colour (r, g, b) and further columns."""
    (folder / "images").mkdir(parents=True)
    names = ["id", "image", *(name for name in rows[0] if name not in ("id", "colour"))]
    with (folder / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for number, row in enumerate(rows):
            Image.new("RGB", (48, 32), row["colour"]).save(folder / "images" / f"{number}.png")
            fields = {name: value for name, value in row.items() if name != "colour"}
            writer.writerow(fields | {"image": f"images/{number}.png"})
    return folder / "products.csv"


def open_pair(catalog: Path, folder: Path, twist: float = 0.6) -> Pair:
    searchers = []
    for name, amount, strength in (("baseline", 0.0, 0.0), ("fanoise", twist, 0.1)):
        embedder: Any = ColourEmbedder(name, twist=amount, noise={"strength": strength, "scaling": "sublinear"})
        build_index(embedder, catalog, folder / name, progress=False)
        searchers.append(Searcher(Index.open(folder / name), embedder))
    return Pair(*searchers)


ROWS = [
    {"id": f"{name}-{shade}", "colour": tuple(min(255, c + 9 * shade) for c in rgb), "title": f"{name} thing {shade}"}
    | {"price": 5 + shade, "category": "mug" if shade % 2 else "lamp"}
    for name, rgb in COLOURS.items()
    for shade in range(3)
]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("app")
    return open_pair(write_catalog(folder / "catalog", ROWS), folder)


@pytest.fixture(scope="session")
def service(pair: Pair) -> Service:
    return Service({"products": pair})


@pytest.fixture
def make_pair(tmp_path: Path) -> Callable[[Sequence[dict[str, Any]]], Pair]:
    """Index rows of your own."""
    return lambda rows: open_pair(write_catalog(tmp_path / "catalog", rows), tmp_path)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    return unused_port()
