"""An index served from GPUs against the same index on the CPU: queries a second, one by one and by many threads.

Needs faiss-gpu (requirements-gpu.txt) and a CUDA device; without them it says so and ends.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import timing
from index_data import Synthetic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="vectors (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="their dimension (default: %(default)s)")
    parser.add_argument("--factory", nargs="*", default=["Flat", "IVF4096,Flat"], help="types (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=32, help="that ask at once (default: %(default)s)")
    options = parser.parse_args()

    import numpy as np

    from index.devices import CpuIndex, gpu_count, serve
    from index.factory import train_index
    from index.held_out import HeldOut
    from index.store import VectorStore
    from index.tuning import tune

    if not gpu_count():
        print(
            "FAISS sees no GPU here (faiss-gpu, see requirements-gpu.txt, and a CUDA device are needed): nothing to do"
        )
        return
    data = Synthetic(options.count, options.dim)
    store = VectorStore(np.concatenate(list(data.blocks())))
    tuning, asked = (HeldOut.of_vectors(store, data.queries(1000, stream=s), "made up") for s in (0, 1))
    rows = []
    for factory in options.factory:
        index = train_index(factory, store)
        tune(index, tuning)
        for served in (CpuIndex(index), serve(index)):
            rows.append((factory, served.device, *_measure(served, asked, options.threads)))
            served.close()
    shown = (
        "type",
        "searched by",
        "recall@10",
        "a second, together",
        "ms one by one",
        f"{options.threads} threads, a second",
    )
    timing.show(shown, rows)


def _measure(served: Any, asked: Any, threads: int) -> tuple[str, ...]:
    alone = [query[None] for query in asked.vectors]

    def search(queries: Any) -> None:
        served.search(queries, 10)

    together = _rate(lambda: search(asked.vectors), len(asked))
    with ThreadPoolExecutor(threads) as pool:
        many = _rate(lambda: list(pool.map(search, alone)), len(asked))
    one = _rate(lambda: [search(query) for query in alone[:100]], 100)
    return f"{asked.recall(served):.3f}", f"{together:,.0f}", f"{1e3 / one:.2f}", f"{many:,.0f}"


def _rate(call: Callable[[], object], queries: int, *, rounds: int = 3) -> float:
    """Queries a second, the best of a few rounds after one to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return queries / min(seconds[1:])


if __name__ == "__main__":
    main()
