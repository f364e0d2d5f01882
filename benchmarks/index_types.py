"""FAISS types at equal recall: what `--factory auto` could take, tuned to one target on one set of vectors.

Queries are drawn beside the rows, as texts are beside images (see index_data.py): one set to tune with, another to
measure with.
"""

import argparse
import time

import timing
from index_data import Synthetic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="vectors (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=128, help="their dimension (default: %(default)s)")
    parser.add_argument("--recall", type=float, default=0.95, help="target recall@10 (default: %(default)s)")
    parser.add_argument("--factory", nargs="*", help="the types (default: those that auto weighs up)")
    options = parser.parse_args()

    import faiss
    import numpy as np

    from index.factory import train_index
    from index.held_out import HeldOut
    from index.store import VectorStore
    from index.tuning import tune

    data = Synthetic(options.count, options.dim)
    store = VectorStore(np.concatenate(list(data.blocks())))
    tuning, asked = (HeldOut.of_vectors(store, data.queries(256, stream=s), "made up") for s in (0, 1))
    lists, half = 2 ** round(np.log2(4 * options.count**0.5)), options.dim // 2
    factories = options.factory or [
        "Flat", "SQfp16", "SQ8", f"IVF{lists},Flat", f"IVF{lists},SQfp16", f"IVF{lists},SQ8", "HNSW32", "HNSW32,SQ8",
        f"IVF{lists},PQ{half}x4fs,RFlat", f"IVF{lists},PQ{half}x4fs,Refine(SQ8)", f"IVF{lists},RaBitQ,RFlat",
        f"IVF{lists},RaBitQfs,RFlat", f"IVF{lists},PQ{half // 2},RFlat", f"PQ{half}x4fs,RFlat",
    ]  # fmt: skip
    rows = []
    for factory in factories:
        start = time.perf_counter()
        index = train_index(factory, store)
        built = time.perf_counter() - start
        tuned = tune(index, tuning, target=options.recall)
        took = time.perf_counter() - start - built
        alone, batch = [], []
        for query in asked.vectors[:100]:
            start = time.perf_counter()
            index.search(query[None], 10)
            alone.append(time.perf_counter() - start)
        for _ in range(3):
            start = time.perf_counter()
            index.search(asked.vectors, 10)
            batch.append(time.perf_counter() - start)
        size = faiss.serialize_index(index).nbytes
        rows.append(
            (
                factory,
                f"{built:.1f}",
                f"{took:.1f}",
                f"{size / 1e6:.0f}",
                " ".join(f"{name}={value}" for name, value in tuned.parameters.items()) or "-",
                f"{tuned.recall:.3f}",
                f"{asked.recall(index):.3f}",
                f"{1000 * np.median(alone):.2f}",
                f"{len(asked) / np.median(batch):,.0f}",
            )
        )
        print(*rows[-1], flush=True)
    print()
    timing.show(
        ("type", "build s", "tune s", "MB", "parameters", "recall tuned", "recall", "ms alone", "a second"), rows
    )
    print(f"{options.count:,} × {options.dim}, {faiss.omp_get_max_threads()} threads, target {options.recall}")


if __name__ == "__main__":
    main()
