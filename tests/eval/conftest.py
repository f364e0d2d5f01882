"""A toy catalogue of nine things and an embedder that counts words, so every ranking here can be worked out by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fanoise.catalog import Item
from fanoise.images import open_image
from index.build import build_index
from index.search import Index, Searcher
from tests.fake_embedder import FakeEmbedder

COLOURS = ("red", "green", "blue")
KINDS = ("mug", "shoe", "lamp")
WORDS = (*COLOURS, *KINDS, "the")


class WordEmbedder(FakeEmbedder):
    """One axis a word; an image is the word for its strongest channel. `weights` tells two embedders apart."""

    def __init__(self, weights: str = "words", *, collapsed: bool = False) -> None:
        super().__init__("toy/words", dim=len(WORDS), weights=weights, noise={"strength": 0.0})
        self.collapsed = collapsed
        self.batches: list[int] = []
        """Of queries."""

    def encode(self, items: Sequence[Item], *, role: str = "item", batch_size: int = 32) -> np.ndarray:
        if role == "query":
            self.batches.append(len(items))
        return super().encode(items, role=role)

    def vector_of(self, item: Item) -> np.ndarray:
        words = (item.text or "").split()
        if item.image is not None:
            words.append(COLOURS[int(np.asarray(open_image(item.image)).mean(axis=(0, 1)).argmax())])
        row = np.array([words.count(word) for word in WORDS], dtype=np.float32)
        if self.collapsed or not row.any():
            row = np.ones(self.dim, dtype=np.float32)
        return row / np.linalg.norm(row)


def build_searcher(folder: Path, embedder: WordEmbedder) -> Searcher:
    """All nine colour-kind pairs; ids such as "red-mug", fields colour and kind."""
    lines = [f"{colour}-{kind},{colour} {kind},{colour},{kind}" for kind in KINDS for colour in COLOURS]
    catalog = folder / "catalog.csv"
    catalog.write_text("id,text,colour,kind\n" + "\n".join(lines) + "\n")
    build_index(embedder, catalog, folder / "index", progress=False)  # type: ignore[arg-type]
    return Searcher(Index.open(folder / "index"), embedder)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return build_searcher(tmp_path_factory.mktemp("words"), WordEmbedder())


@pytest.fixture(scope="session")
def collapsed_searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return build_searcher(tmp_path_factory.mktemp("collapsed"), WordEmbedder(weights="collapsed", collapsed=True))


@pytest.fixture
def write_queries(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as a JSONL query file."""

    def write(*rows: dict[str, Any], name: str = "queries.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def green_image(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), (10, 200, 10)).save(tmp_path / "green.png")
    return tmp_path / "green.png"
