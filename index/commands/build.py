"""`index build`."""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.commands import (
    Commands,
    Parser,
    add_catalog_options,
    add_command,
    add_device_option,
    add_encoding_options,
    add_reading_options,
    intake_options,
)
from index.commands.tune import add_tuning_options

if TYPE_CHECKING:
    from index.build import Built


def add_build(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "build",
        "Encode a catalogue and write an index folder.",
        "  python -m index build --embedder runs/demo/fanoise --catalog products.csv --out runs/index/products\n"
        "  python -m index build --embedder RUN --catalog photos/ --out DIR --factory HNSW32 --precision fp16\n"
        "  python -m index build --embedder RUN --catalog items.jsonl --out DIR --text '{title}. {description}'\n"
        "  torchrun --nproc-per-node 8 -m index build --embedder RUN --catalog items.parquet --out DIR",
    )
    parser.add_argument("--embedder", required=True, metavar="RUN", help="run folder, local checkpoint, or hub id")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="index folder; an index there is replaced when all is done",
    )
    add_catalog_options(parser, defaults="")
    parser.add_argument("--factory", default="auto", help="auto, or any FAISS factory string (default: %(default)s)")
    add_tuning_options(parser, "(default: 0.95)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of the stored vectors, which exact search and compact read (default: %(default)s)",
    )
    parser.add_argument(
        "--dim",
        type=int,
        metavar="D",
        help="keep the first D dimensions of each vector, for an embedder trained for it (default: all)",
    )
    add_reading_options(parser, defaults="")
    _add_encoding_options(parser)
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="print the manifest and the counts instead of a summary")
    parser.set_defaults(run=_run_build)


def _add_encoding_options(parser: Parser) -> None:
    group = add_encoding_options(
        parser,
        "Killed at any moment, the same command goes on where it was. Rows that the index\n  in DIR holds already are "
        "copied from it, if text, image and embedder are the same.",
        defaults="",
    )
    again = group.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with what was broken off (the default)")
    again.add_argument("--fresh", action="store_true", help="encode every row again, whatever is known of it")
    group.add_argument(
        "--shard-of",
        metavar="I/N",
        help="this is one of N processes that build the same index; the last one finishes it (default: as the "
        "launcher says: torchrun, accelerate, mpirun, srun)",
    )


def _run_build(args: argparse.Namespace) -> int:
    from fanoise.embedder import Embedder
    from index.build import Build
    from index.encoding.launch import read_launch
    from index.tuning import RECALL

    start = time.perf_counter()
    launch = read_launch(args.shard_of)
    replaced = (args.out / "manifest.json").exists()
    options = intake_options(args)
    options["progress"] &= launch.rank == 0 or args.shard_of is not None
    built = Build(
        embedder=Embedder.from_pretrained(args.embedder, device=args.device or launch.device),
        catalog=args.catalog,
        out=args.out,
        factory=args.factory,
        recall=RECALL if args.recall is None else args.recall,
        tune_queries=args.tune_queries,
        precision=args.precision,
        dim=args.dim,
        fresh=args.fresh,
        shared=launch.size > 1,
        **options,
    ).run()
    if args.json:
        print(json.dumps(_to_json(built), indent=2))
        return 0
    print(_describe(args.out, built, time.perf_counter() - start))
    if replaced and built.manifest is not None:
        print("The index that was there has been replaced.")
    return 0


def _to_json(built: "Built") -> dict[str, Any]:
    counts = {name: getattr(built, name) for name in ("encoded", "reused", "removed", "duplicates", "passed_over")}
    return {"done": False} if built.manifest is None else built.manifest.to_dict() | counts


def _describe(folder: Path, built: "Built", seconds: float) -> str:
    from index.report import describe_build

    if built.manifest is None:
        return f"Other processes are still at work on {folder}; the last of them finishes the index."
    return describe_build(folder, built, seconds)
