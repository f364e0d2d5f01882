"""An index of many made-up vectors: what `--factory auto` takes, what it costs, and how it compares with FAISS alone.

Streamed: the vectors are drawn, written and indexed block by block. FAISS alone gets the same factory string, training
rows and search parameters. Recall is that of the ten nearest, against exact search, for queries that were not tuned
with and that lie beside the rows, as texts lie beside images (see index_data.py).
"""

import argparse
import gc
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
from index_data import Synthetic

_STARTED = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000_000, help="vectors (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=64, help="their dimension (default: %(default)s)")
    parser.add_argument("--recall", type=float, default=0.95, help="target recall@10 (default: %(default)s)")
    parser.add_argument("--factory", default="auto", help="auto, or a FAISS factory string (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="that are measured (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where the index is made, and removed (default: a temporary folder)"
    )
    parser.add_argument("--no-raw-build", action="store_true", help="do not build with FAISS alone, only search")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    import faiss

    from index.held_out import HeldOut
    from index.search import Index

    data = Synthetic(options.count, options.dim)
    manifest, building = build(folder / "index", data, options)
    report(
        f"auto's sentence: {manifest.factory_reason}" if options.factory == "auto" else f"factory {manifest.factory}"
    )
    report(f"tuned: {manifest.search}, {manifest.tuning}, of rows {manifest.ann_overlap:.3f}")
    for point in manifest.curve:
        report(f"  {point}")
    rows: list[tuple[str, ...]] = [("build s", f"{building:.0f}", "see below")]

    index = Index.open(folder / "index", verify=False)
    raw = faiss.read_index(str(index.generation_folder / "index.faiss"))
    space = faiss.ParameterSpace()
    for name, value in manifest.search.items():
        space.set_index_parameter(raw, name, value)
    asked = HeldOut.of_vectors(index.vectors, data.queries(options.queries), "made up")
    report("exact answers known")
    sizes = manifest.files
    rows += [
        ("recall@10", f"{asked.recall(_Ours(index)):.4f}", f"{asked.recall(raw):.4f}"),
        ("index.faiss GB", *2 * (f"{sizes['index.faiss'].size_bytes / 1e9:.2f}",)),
        ("vectors.npy GB", f"{sizes['vectors.npy'].size_bytes / 1e9:.2f}", "-"),
    ]
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: index.search(asked.vectors, 10),
        "raw": lambda: raw.search(asked.vectors, 10),
    }
    batch = timing.paired(calls, rounds=5)
    alone = timing.paired(
        {
            "ours": lambda: [index.search(query[None], 10) for query in asked.vectors[:200]],
            "raw": lambda: [raw.search(query[None], 10) for query in asked.vectors[:200]],
        },
        rounds=5,
    )
    names = ("ours", "raw")
    rows += [
        ("queries a second, together", *(f"{1e3 * len(asked) / batch.median_ms(name):,.0f}" for name in names)),
        ("ms a query, one by one", *(f"{alone.median_ms(name) / 200:.3f}" for name in names)),
    ]
    ratio, ratio_alone = batch.ratio("ours", "raw"), alone.ratio("ours", "raw")
    timing.show(("", "index/", "FAISS alone"), rows)
    print(f"time ours / raw: together {ratio}, one by one {ratio_alone}; {timing.how()}")
    print(f"{options.count:,} × {options.dim}, {manifest.factory}, {faiss.omp_get_max_threads()} threads", flush=True)
    if not options.no_raw_build:
        del index, raw, calls
        gc.collect()
        seconds = build_raw(folder / "index", manifest)
        print(
            f"FAISS alone built it in {seconds:.0f} s: ours took {building / seconds:.2f}×, tuning and choosing in it"
        )


def build(folder: Path, data: Synthetic, options: argparse.Namespace) -> tuple[Any, float]:
    """(manifest, seconds from vectors on disk to a tuned index)"""
    import pyarrow as pa

    from index.ann import write_ann
    from index.generations import writing
    from index.items import write_items
    from index.manifest import ITEMS, VECTORS, CatalogRef, EmbedderRef
    from index.store import VectorWriter

    with writing(folder, "build") as writer:
        with VectorWriter(writer.stage / VECTORS, data.dim) as vectors:
            for block in data.blocks():
                vectors.append(block)
        ids = pa.array([f"{row}" for row in range(data.count)])
        nothing = pa.nulls(data.count, pa.string())
        columns = {"row": pa.array(range(data.count)), "id": ids, "text": nothing, "image": nothing}
        columns |= {"thumbnail_sha256": nothing, "content_sha256": nothing}
        write_items(writer.stage / ITEMS, pa.table(columns))
        del ids, columns
        report("vectors and items written")
        start = time.perf_counter()
        ann = write_ann(
            writer.stage,
            options.factory,
            recall=options.recall,
            queries=lambda: (data.queries(256, stream=0), "made-up queries"),
        )
        seconds = time.perf_counter() - start
        report(f"index.faiss written, {seconds:.0f} s")
        manifest = writer.commit(
            fresh=True,
            embedder=EmbedderRef(name="none", path=None, hub_id=None, fingerprint={}),
            catalog=CatalogRef(name="made up", path=".", text=None),
            embedder_dim=data.dim,
            **ann,
        )
        return manifest, seconds


def build_raw(folder: Path, manifest: Any) -> float:
    """Seconds that FAISS alone takes: factory, train, add, write."""
    import faiss
    import numpy as np

    from index.factory import training_rows

    start = time.perf_counter()
    vectors = np.load(manifest.generation_in(folder) / "vectors.npy", mmap_mode="r")
    raw = faiss.index_factory(manifest.dim, manifest.factory, faiss.METRIC_INNER_PRODUCT)
    if not raw.is_trained:
        raw.train(np.ascontiguousarray(vectors[training_rows(raw, len(vectors), 0)]))
    for first in range(0, len(vectors), 65536):
        raw.add(np.ascontiguousarray(vectors[first : first + 65536]))
    faiss.write_index(raw, str(folder / "raw.faiss"))
    seconds = time.perf_counter() - start
    (folder / "raw.faiss").unlink()
    return seconds


class _Ours:
    """An index as FAISS's callers see one."""

    def __init__(self, index: Any) -> None:
        self.search = index.search


def report(what: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"[{time.perf_counter() - _STARTED:6.0f} s, peak {peak:.1f} GB] {what}", flush=True)


if __name__ == "__main__":
    main()
