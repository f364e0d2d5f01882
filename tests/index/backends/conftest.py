"""An index whose fields are of every kind, with values that no filter language likes."""

import datetime
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.build import build_index
from tests.index.kills import DIM, InstantEmbedder

NASTY = "b\"l'u\\e%_ü\n\t"
COLOURS = ["red", "Red ", NASTY, "", None, "100%", "100x", "a_c", "abc", "back\\slash", "GRÜN ß", "北京", '" or 1 == 1']
COUNT = 91


def make_row(i: int) -> dict[str, Any]:
    return {
        "id": f"g{i}" if i else NASTY,
        "text": f"Thing number {i}",
        "colour": COLOURS[i % len(COLOURS)],
        "price": [3, 20, -7, None, 2**60][i % 5],
        "weight": [0.1, 2.0, None, -1e-9][i % 4],
        "sale": [True, False, None][i % 3],
        "size": str([36, 40, 41.5][i % 3]),
        "tags": [["a", "b%"], ["B%"], [], None, ["a", 'q"']][i % 5],
        "years": [[1999, 2000], [2001], None][i % 3],
        "made": datetime.date(2020, 1, 1 + i % 28).isoformat() if i % 4 else None,
        "about": {"maker": f"m{i % 2}"},
        "item": f"p{i // 7}" if i % 9 else None,
        "like": "yes",
        "fit": ["9", "10", "wide"][i % 3],
        "naïve name": i % 2,
    }


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exact index of 91 items, grouped by `item` on request."""
    folder = tmp_path_factory.mktemp("varied")
    (folder / "goods.jsonl").write_text("\n".join(json.dumps(make_row(i)) for i in range(COUNT)))
    embedder = InstantEmbedder()
    build_index(embedder, folder / "goods.jsonl", folder / "index", factory="Flat", progress=False)  # type: ignore[arg-type]
    return folder / "index"


@pytest.fixture
def queries() -> np.ndarray:
    return unit_rows(5)


def unit_rows(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)
    yield


def same_value(left: Any, right: Any) -> bool:
    return left == right or (left is None and isinstance(right, float) and math.isnan(right))
