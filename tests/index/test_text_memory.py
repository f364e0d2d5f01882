"""No command holds all texts: what Python and Arrow take at most stays far below them."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import index.parquet
from index.backends.layout import Layout
from index.build import build_index
from index.export import export_index
from index.held_out import text_queries
from index.hybrid import documents
from index.search import Index
from index.update import add_items, compact_index, delete_items

ROWS, TEXT = 240, 50_000
TEXTS = ROWS * TEXT
"""Bytes of all texts; items.parquet has them twice, as text and as a field."""
QUERY = np.eye(1, 16, dtype=np.float32)
_POOLS: list[pa.MemoryPool] = []
"""Kept: a pool must outlive what was taken from it."""


def write_catalog(path: Path, rows: range) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for row in rows:
            text = np.random.default_rng(row).integers(97, 123, TEXT, dtype=np.uint8).tobytes().decode()
            file.write(json.dumps({"id": f"r{row}", "text": text, "colour": "red" if row % 3 else "blue"}) + "\n")
    return path


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that Python's objects, NumPy's arrays and Arrow's have taken during the call."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    _POOLS.append(pool)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def search(folder: Path) -> None:
    opened = Index.open(folder)
    [hits] = opened.find(QUERY, 3, {"colour": "blue"})
    assert len(hits) == 3 and all(len(hit.fields["text"]) == TEXT for hit in hits)


def peaks_of_commands(embedder: Any, root: Path, rows: int) -> dict[str, int]:
    folder, peaks = root / "index", {}
    catalog, more = write_catalog(root / "c.jsonl", range(rows)), write_catalog(root / "m.jsonl", range(900, 906))
    options = {"shard_rows": 4, "batch_size": 2, "workers": 0, "progress": False}
    peaks["build"] = peak_bytes(lambda: build_index(embedder, catalog, folder, **options))
    peaks["all columns"] = peak_bytes(lambda: Index.open(folder).item_table(["text", "fields"]))
    peaks["search"] = peak_bytes(lambda: search(folder))
    peaks["sample"] = peak_bytes(lambda: text_queries(embedder, None, Index.open(folder).generation_folder, most=4))
    peaks["add"] = peak_bytes(lambda: add_items(embedder, more, folder, batch_size=2, progress=False))
    peaks["delete"] = peak_bytes(lambda: delete_items(folder, ids=["r7"], where={"colour": "blue"}))
    peaks["compact"] = peak_bytes(lambda: compact_index(folder))
    peaks["export"] = peak_bytes(lambda: export_index(folder, root / "out"))
    opened = Index.open(folder)
    assert len(opened) == rows * 2 // 3 + 4 - 1
    peaks["hybrid"] = peak_bytes(lambda: [len(text) for text in documents(opened.item_pieces(["text", "fields"]))])
    columns = ["id", "text", "image", "thumbnail_sha256", "fields"]
    peaks["milvus"] = peak_bytes(lambda: Layout.of(opened.item_pieces(columns)))
    return peaks


def test_commands_hold_a_small_part_of_the_texts(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(index.parquet, "GROUP_BYTES", 1 << 18)
    peaks_of_commands(embedder, tmp_path / "few", 12)  # what is imported on first use is no part of it
    peaks = peaks_of_commands(embedder, tmp_path / "many", ROWS)
    assert peaks.pop("all columns") > 2 * TEXTS, "the measure sees what is held"
    shares = {name: round(peak / TEXTS, 2) for name, peak in peaks.items()}
    assert {name: share for name, share in shares.items() if share > 1 / 3} == {}
