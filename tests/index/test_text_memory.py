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


def write_catalog(path: Path, rows: range) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for row in rows:
            text = np.random.default_rng(row).integers(97, 123, TEXT, dtype=np.uint8).tobytes().decode()
            file.write(json.dumps({"id": f"r{row}", "text": text, "colour": "red" if row % 3 else "blue"}) + "\n")
    return path


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that Python's objects, NumPy's arrays and Arrow's have taken during the call."""
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
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


def hold_columns(folder: Path) -> None:
    assert Index.open(folder).item_table(["text", "fields"]).nbytes > 2 * TEXTS


def test_commands_hold_a_small_part_of_the_texts(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(index.parquet, "GROUP_BYTES", 1 << 18)
    folder, peaks = tmp_path / "index", {}
    catalog, more = (
        write_catalog(tmp_path / "c.jsonl", range(ROWS)),
        write_catalog(tmp_path / "m.jsonl", range(900, 906)),
    )
    options = {"shard_rows": 4, "batch_size": 2, "workers": 0, "progress": False}
    peaks["build"] = peak_bytes(lambda: build_index(embedder, catalog, folder, **options))
    assert peak_bytes(lambda: hold_columns(folder)) > 2 * TEXTS, "the measure sees what is held"
    peaks["search"] = peak_bytes(lambda: search(folder))
    peaks["sample"] = peak_bytes(lambda: text_queries(embedder, None, Index.open(folder).generation_folder, most=4))
    peaks["add"] = peak_bytes(lambda: add_items(embedder, more, folder, batch_size=2, progress=False))
    peaks["delete"] = peak_bytes(lambda: delete_items(folder, ids=["r7"], where={"colour": "blue"}))
    peaks["compact"] = peak_bytes(lambda: compact_index(folder))
    peaks["export"] = peak_bytes(lambda: export_index(folder, tmp_path / "out"))
    opened = Index.open(folder)
    assert len(opened) == ROWS * 2 // 3 + 4 - 1
    peaks["hybrid"] = peak_bytes(lambda: [len(text) for text in documents(opened.item_pieces(["text", "fields"]))])
    columns = ["id", "text", "image", "thumbnail_sha256", "fields"]
    peaks["milvus"] = peak_bytes(lambda: Layout.of(opened.item_pieces(columns)))
    shares = {name: round(peak / TEXTS, 2) for name, peak in peaks.items()}
    assert {name: share for name, share in shares.items() if share > 1 / 3} == {}
