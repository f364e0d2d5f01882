"""An index whose fields are of every kind, with values that no filter language likes."""

import datetime
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
        "cost": ["10.00", "10", "1e1", "12.50", " 10 ", "n/a", "", None, "007", "7", "-0", "0.50", str(2**60)][i % 13],
        "active": ["True", "false", "TRUE", "no", None][i % 5],
        "food": ["café", "cafe\u0301", "STRASSE", "straße", "ＡＢ", "cafe"][i % 6],
        "dishes": [["café", "x"], ["cafe\u0301"], ["STRASSE"], None][i % 4],
    }


VAST = [None, *map(Decimal, ("9007199254740993", "9007199254740992.00001", f"-{10**50}.5", f"{10**50}", "0"))]
TYPED = {
    "mass": (pa.float32(), lambda i: [19.99, 0.1, None, 7.5][i % 4]),
    "widths": (pa.list_(pa.float32()), lambda i: [[0.1, 2.0], [19.99], [], None][i % 4]),
    "net": (
        pa.decimal128(8, 2),
        lambda i: [Decimal("19.99"), Decimal("0.35"), None, Decimal("-7.00"), Decimal("20")][i % 5],
    ),
    "vast": (pa.decimal256(60, 5), lambda i: VAST[i % 6]),
    "nets": (
        pa.list_(pa.decimal128(8, 2)),
        lambda i: [[Decimal("19.90"), Decimal("0.00")], [Decimal("-7")], [], None][i % 4],
    ),
    "day": (pa.date32(), lambda i: datetime.date(2026, 1, 1 + i % 28) if i % 5 else None),
    "at": (pa.timestamp("ms"), lambda i: datetime.datetime(2026, 1, 1 + i % 28, 12, i % 2) if i % 5 else None),
    "there": (pa.timestamp("us", "Europe/Berlin"), lambda i: datetime.datetime(1969, 12, 31 - i % 28, 23)),
}
"""Fields of which JSON has no type."""


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exact index of 91 items, grouped by `item` on request."""
    folder = tmp_path_factory.mktemp("varied")
    rows = pa.Table.from_pylist([make_row(i) for i in range(COUNT)])
    for name, (kind, value) in TYPED.items():
        rows = rows.append_column(name, pa.array(map(value, range(COUNT)), kind))
    pq.write_table(rows, folder / "goods.parquet")
    embedder = InstantEmbedder()
    build_index(embedder, folder / "goods.parquet", folder / "index", factory="Flat", progress=False)  # type: ignore[arg-type]
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
