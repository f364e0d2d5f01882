"""Searching through the index against FAISS alone, and with filters against without, each pair in one process.

Vectors lie in clusters, as embeddings do, and so do the queries. `layer` is `Index.search` beside `search` of the FAISS
index within it, for all queries at once; another copy of it elsewhere in memory can be 1 to 2 % slower or faster.
`single` is one query after the other, with its hits and their fields as the app gets them, less FAISS's own time.
`filter` lets a random share of the items through by a condition on a number field; recall is the share of the exact ten
nearest that are found, of the matching items.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from timing import clock_of, how, paired, show

K = 10
SHARES = (0.5, 0.1, 0.01, 0.001)
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--spread", type=float, default=1.0, help="noise around a cluster's centre, for each dimension")
    parser.add_argument("--factories", nargs="+", default=["Flat", "HNSW32", "IVF1024,Flat"])
    parser.add_argument("--nprobe", type=int, default=16)
    parser.add_argument("--ef-search", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of FAISS and NumPy")
    options = parser.parse_args()

    from fanoise.process import prepare_process

    prepare_process()
    import faiss

    clock = clock_of(options.threads)
    layer, filters = [], []
    with TemporaryDirectory(prefix="fanoise-benchmark-") as name:
        for factory in options.factories:
            faiss.omp_set_num_threads(max(2, options.threads))
            index = build(Path(name) / factory, factory, options)
            faiss.omp_set_num_threads(options.threads)
            queries = clustered(options.queries, options, seed=SEED + 1)
            alone = index._nearest.ann
            tune(alone, options)
            both = paired(
                {"faiss": lambda: alone.search(queries, K), "index": lambda: index.search(queries, K)},  # noqa: B023
                rounds=options.rounds,
                clock=clock,
            )
            milliseconds = [f"{both.median_ms(name):.0f}" for name in ("faiss", "index")]
            layer.append((factory, *milliseconds, both.ratio("index", "faiss"), single(index, alone, queries)))
            filters += with_filters(factory, index, queries, options.rounds, clock)
    print(f"\n{options.rows:,} x {options.dim}, {options.queries:,} queries, k = {K}, threads: {options.threads}\n")
    show(("layer", "FAISS ms", "index ms", "index / FAISS", "single query adds"), layer)
    print(f"({how(clock)}; a single query: median of their differences)\n")
    show(("filter", "share", "without ms", "with ms", "with / without", "recall without", "recall with"), filters)


def build(folder: Path, factory: str, options: argparse.Namespace) -> Any:
    """An opened index of random items: a title, a price, and `place`, a random order from 0 to 1."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from index.build import build_index
    from index.search import Index

    file = folder.with_suffix(".parquet")
    vectors = clustered(options.rows, options, seed=SEED)
    rng = np.random.default_rng(SEED)
    columns = {
        "text": [f"item {row}" for row in range(options.rows)],
        "title": [f"title of item {row}" for row in range(options.rows)],
        "price": rng.integers(1, 500, options.rows),
        "place": rng.permutation(options.rows) / options.rows,
        "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), options.dim),
    }
    pq.write_table(pa.table(columns), file)
    build_index(Embedder(folder, options.dim), file, folder, factory=factory, vectors="vector")  # type: ignore[arg-type]
    return Index.open(folder, verify=False)


class Embedder:
    """What the index asks of the embedder that made the vectors."""

    def __init__(self, path: Path, dim: int) -> None:
        import torch

        self.path, self.name, self.dim = path, "random", dim
        self.module = torch.nn.Module()
        self.noise: dict[str, Any] = {}
        self.fingerprint: Mapping[str, str] = {"weights": "none", "dim": str(dim)}

    def encode(self, items: Sequence[Any], *, role: str) -> Any:
        """The build tunes with these; what is measured has parameters of its own."""
        import numpy as np

        rows = np.random.default_rng(len(items)).normal(size=(len(items), self.dim)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(count: int, options: argparse.Namespace, *, seed: int) -> Any:
    """float32 [count, dim], unit rows, about a hundred around a centre."""
    import numpy as np

    centres = np.random.default_rng(99).normal(size=(max(1, options.rows // 100), options.dim)).astype(np.float32)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, len(centres), count)]
    rows += options.spread * rng.normal(size=rows.shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def tune(ann: Any, options: argparse.Namespace) -> None:
    if hasattr(ann, "nprobe"):
        ann.nprobe = options.nprobe
    if hasattr(ann, "hnsw"):
        ann.hnsw.efSearch = options.ef_search


def single(index: Any, alone: Any, queries: Any) -> str:
    """Median of what hits cost more than FAISS, over single queries."""
    seconds: dict[str, list[float]] = {"faiss": [], "index": []}
    calls = {"faiss": lambda query: alone.search(query, K), "index": lambda query: index.find(query, K)}
    for start in range(min(200, len(queries))):
        query = queries[start : start + 1]
        for name in calls if start % 2 else reversed(calls):
            begin = time.perf_counter()
            calls[name](query)
            seconds[name].append(time.perf_counter() - begin)
    added = [a - b for a, b in zip(seconds["index"], seconds["faiss"], strict=True)]
    return f"{1e3 * statistics.median(added):.2f} ms"


def with_filters(factory: str, index: Any, queries: Any, rounds: int, clock: Any) -> list[tuple[object, ...]]:
    wheres: dict[float, dict[str, Any]] = {share: {"place": {"max": share}} for share in SHARES}
    calls = {"without": partial(index.search, queries, K)}
    calls |= {str(share): partial(index.search, queries, K, where) for share, where in wheres.items()}
    times = paired(calls, rounds=rounds, clock=clock)
    plain = recall(index, queries, None)
    return [
        (
            factory,
            f"{share:.1%}",
            f"{times.median_ms('without'):.0f}",
            f"{times.median_ms(str(share)):.0f}",
            times.ratio(str(share), "without"),
            f"{plain:.3f}",
            f"{recall(index, queries, where):.3f}",
        )
        for share, where in wheres.items()
    ]


def recall(index: Any, queries: Any, where: dict[str, Any] | None) -> float:
    import numpy as np

    from index.exact import search_exact

    rows = None if where is None else np.flatnonzero(index.matching(where))
    _, exact = search_exact(index.vectors, queries[:200], K, rows)
    _, found = index.search(queries[:200], K, where)
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]))


if __name__ == "__main__":
    main()
