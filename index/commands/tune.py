"""`index tune`, and the options that it shares with `build`."""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from index.commands import Commands, Parser, add_command, add_device_option, add_index_option

if TYPE_CHECKING:
    import numpy as np

    from index.manifest import Manifest


def add_tune(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "tune",
        "Find the cheapest search parameters that reach a recall, and keep them.",
        "  python -m index tune --index DIR --tune-queries queries.txt\n"
        "  python -m index tune --index DIR --recall 0.99",
        more="For an index that is not exact. Recall is the share of the ten nearest items that a search finds, over\n"
        "held-out queries: those of the file, else texts of the catalogue, else, where it has none, stored vectors.",
    )
    add_index_option(parser)
    add_tuning_options(parser, "(default: as before)")
    parser.add_argument("--embedder", metavar="RUN", help="embedder to use (default: the one the index names)")
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="print parameters, recall and curve as JSON")
    parser.set_defaults(run=_run_tune)


def add_tuning_options(parser: Parser, default: str) -> None:
    parser.add_argument(
        "--recall",
        type=float,
        metavar="R",
        help=f"share of the ten nearest items that a search is to find, such as 0.95 {default}",
    )
    parser.add_argument(
        "--tune-queries",
        type=Path,
        metavar="FILE",
        help="queries to tune with, one in each line (default: texts of the catalogue, else stored vectors)",
    )


def _run_tune(args: argparse.Namespace) -> int:
    from index.held_out import read_queries, text_queries
    from index.report import describe_tuning
    from index.retune import tune_index

    start = time.perf_counter()
    if args.tune_queries is not None:
        read_queries(args.tune_queries)  # a mistake in it should show before a model is loaded

    def queries(manifest: "Manifest", generation: Path) -> "tuple[np.ndarray, str] | None":
        from fanoise.embedder import Embedder
        from index.encoding.query import load_embedder

        if args.embedder is None:
            embedder = load_embedder(manifest.embedder, args.index, device=args.device)
        else:
            embedder = Embedder.from_pretrained(args.embedder, device=args.device)
        manifest.check_embedder(args.index, embedder)
        return text_queries(embedder, args.tune_queries, generation)

    tuned = tune_index(args.index, recall=args.recall, queries=queries)
    if args.json:
        print(json.dumps({name: getattr(tuned, name) for name in ("search", "tuning", "ann_overlap", "curve")}))
    else:
        print(f"Tuned in {time.perf_counter() - start:.1f} s: {args.index}, generation {tuned.generation}")
        print("\n".join(describe_tuning(tuned)))
    return 0
