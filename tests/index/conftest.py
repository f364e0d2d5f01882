"""An embedder that costs nothing, and a small catalogue of drawn images."""

import csv
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fanoise.catalog import Item
from fanoise.errors import ImageError
from fanoise.images import open_image
from index.build import build_index
from tests.fake_embedder import FakeEmbedder

COLOURS = ["red", "green", "blue", "white"]


class ToyEmbedder(FakeEmbedder):
    """A vector is a fixed random function of the text and of the mean colours."""

    def __init__(self, path: str | Path, *, weights: str = "ab12cd34ef56ab78", refuse: str = "") -> None:
        super().__init__(str(path), dim=16, weights=weights, noise={"strength": 0.1, "scaling": "sublinear"})
        self.refuse = refuse

    def vector_of(self, item: Item) -> np.ndarray:
        if self.refuse and item.text == self.refuse:
            raise ImageError("too thin for the vision tower", item.id)
        vector = np.zeros(self.dim)
        if item.image is not None:
            pixels = np.asarray(open_image(item.image).resize((2, 2)), dtype=float).ravel() / 255 - 0.5
            vector += np.random.default_rng(7).normal(size=(self.dim, 12)) @ pixels
        if item.text:
            seed = int.from_bytes(hashlib.sha256(item.text.encode()).digest()[:4], "big")
            vector += np.random.default_rng(seed).normal(size=self.dim)
        if item.text == "not a number":
            vector[:] = np.nan
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def draw(path: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, size=(3, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((360, 270), Image.Resampling.NEAREST).save(path, compress_level=1)


@pytest.fixture
def new_embedder(tmp_path: Path) -> Callable[..., ToyEmbedder]:
    def make(name: str = "run", **options: Any) -> ToyEmbedder:
        (tmp_path / name).mkdir(exist_ok=True)
        return ToyEmbedder(tmp_path / name, **options)

    return make


@pytest.fixture
def embedder(new_embedder: Callable[..., ToyEmbedder]) -> ToyEmbedder:
    return new_embedder()


@pytest.fixture
def new_catalog(tmp_path: Path) -> Callable[..., Path]:
    """Writes a CSV of `n` rows with text, image (for the first `images` rows), colour and price."""

    def make(n: int = 40, *, images: int = 6, name: str = "goods", extra: Sequence[dict[str, str]] = ()) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {
                "id": f"g{i}",
                "text": f"thing number {i}",
                "image": f"img/{i}.png" if i < images else "",
                "colour": COLOURS[i % 4],
                "price": str(i % 5),
            }
            for i in range(n)
        ]
        for i in range(images):
            draw(folder / "img" / f"{i}.png", i)
        with (folder / "catalog.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text", "image", "colour", "price"])
            writer.writeheader()
            writer.writerows([*rows, *extra])
        return folder / "catalog.csv"

    return make


@pytest.fixture
def built(embedder: ToyEmbedder, new_catalog: Callable[..., Path], tmp_path: Path) -> Path:
    """A small exact index of 40 items, 6 of them with images."""
    build_index(embedder, new_catalog(), tmp_path / "index", progress=False)  # type: ignore[arg-type]
    return tmp_path / "index"


@pytest.fixture
def write(tmp_path):
    """Writes a CSV of the columns of the first catalogue, beside it."""

    def make(name, rows):
        path = tmp_path / "goods" / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text", "image", "colour", "price"])
            writer.writeheader()
            writer.writerows(rows)
        return path

    return make
