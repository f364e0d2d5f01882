"""`python -m index`: build, search, describe and check an index folder.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fanoise.errors import InputError, cli_errors
from fanoise.process import prepare_process
from index.where import parse_where

_EXIT_CODES = "exit status: 0 done; 1 it ran and the answer is no (verify found a fault); 2 bad input, said in one line"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m index",
        description="Turn an image-text catalogue and an embedder into a folder that can be searched, and search it.",
        epilog=_EXIT_CODES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_build(commands)
    _add_search(commands)
    _add_info(commands)
    _add_verify(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    prepare_process()
    with cli_errors():
        return int(args.run(args))


def _command(commands: "argparse._SubParsersAction[_Parser]", name: str, summary: str, examples: str) -> _Parser:
    return commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=f"examples:\n{examples}\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_build(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(
        commands,
        "build",
        "Encode a catalogue and write an index folder.",
        "  python -m index build --embedder runs/demo/fanoise --catalog products.csv --out runs/index/products\n"
        "  python -m index build --embedder RUN --catalog photos/ --out DIR --factory HNSW32\n"
        "  python -m index build --embedder RUN --catalog items.jsonl --out DIR --text '{title}. {description}'",
    )
    parser.add_argument("--embedder", required=True, metavar="RUN", help="run folder, local checkpoint, or hub id")
    parser.add_argument("--catalog", required=True, type=Path, metavar="PATH", help="CSV, JSONL, Parquet, image folder")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="index folder; an index there is replaced"
    )
    parser.add_argument("--factory", default="auto", help="auto, or any FAISS factory string (default: %(default)s)")
    parser.add_argument("--text", metavar="COLUMN", help="text column, or a template such as '{title}. {description}'")
    parser.add_argument("--image", default="image", metavar="COLUMN", help="image path column (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="items per batch (default: %(default)s)"
    )
    parser.add_argument("--device", help="torch device, for example cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the manifest instead of a summary")
    parser.set_defaults(run=_run_build)


def _add_search(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(
        commands,
        "search",
        "Find the items nearest to a text, an image, or both.",
        "  python -m index search --index DIR --text 'red mug' --k 5\n"
        "  python -m index search --index DIR --image photo.jpg --text 'this, in green' --where category=mug --json",
    )
    parser.add_argument("--index", required=True, type=Path, metavar="DIR", help="index folder")
    parser.add_argument("--text", help="query text")
    parser.add_argument("--image", type=Path, metavar="FILE", help="query image")
    parser.add_argument("--k", type=int, default=10, metavar="N", help="number of hits (default: %(default)s)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE", help="only items with this value; repeatable"
    )
    parser.add_argument("--embedder", metavar="RUN", help="embedder to use (default: the one the index names)")
    parser.add_argument("--device", help="torch device, for example cpu (default: a GPU if there is one)")
    parser.add_argument("--no-verify", action="store_true", help="compare file sizes but not checksums before reading")
    parser.add_argument("--json", action="store_true", help="print hits and latency as JSON")
    parser.set_defaults(run=_run_search)


def _add_info(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(
        commands, "info", "Describe an index: embedder, noise, counts, sizes.", "  python -m index info --index DIR"
    )
    parser.add_argument("--index", required=True, type=Path, metavar="DIR", help="index folder")
    parser.add_argument("--json", action="store_true", help="print the manifest and the sizes as JSON")
    parser.set_defaults(run=_run_info)


def _add_verify(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = _command(
        commands,
        "verify",
        "Check every file of an index: checksums, counts, unit vectors, thumbnails.",
        "  python -m index verify --index DIR\n"
        "  python -m index verify --index DIR --embedder runs/demo/fanoise --json",
    )
    parser.add_argument("--index", required=True, type=Path, metavar="DIR", help="index folder")
    parser.add_argument("--embedder", metavar="RUN", help="also compare this embedder's fingerprint")
    parser.add_argument("--json", action="store_true", help="print the faults as JSON")
    parser.set_defaults(run=_run_verify)


def _run_build(args: argparse.Namespace) -> int:
    from fanoise.embedder import Embedder
    from index.build import build_index
    from index.report import describe_build

    start = time.perf_counter()
    replaced = (args.out / "manifest.json").exists()
    manifest = build_index(
        Embedder.from_pretrained(args.embedder, device=args.device),
        args.catalog,
        args.out,
        factory=args.factory,
        text=args.text,
        image=args.image,
        batch_size=args.batch_size,
        progress=not args.no_progress,
    )
    seconds = time.perf_counter() - start
    print(json.dumps(manifest.to_dict(), indent=2) if args.json else describe_build(args.out, manifest, seconds))
    if replaced and not args.json:
        print("The index that was there has been replaced.")
    return 0


def _run_search(args: argparse.Namespace) -> int:
    where = parse_where(args.where)
    if not (args.text and args.text.strip()) and args.image is None:
        raise InputError("search needs --text, --image or both: got neither")
    from index.report import describe_answer
    from index.search import Searcher

    searcher = Searcher.open(args.index, embedder=args.embedder, device=args.device, verify=not args.no_verify)
    answer = searcher.search(text=args.text, image=args.image, k=args.k, where=where)
    print(json.dumps(answer.to_json(), ensure_ascii=False) if args.json else describe_answer(answer))
    return 0


def _run_info(args: argparse.Namespace) -> int:
    from index.manifest import Manifest
    from index.report import describe_index, index_sizes

    manifest = Manifest.read(args.index)
    content = manifest.to_dict() | {"sizes": index_sizes(args.index, manifest)}
    print(json.dumps(content, indent=2) if args.json else describe_index(args.index, manifest))
    return 0


def _run_verify(args: argparse.Namespace) -> int:
    from index.verify import verify_index

    embedder = None
    if args.embedder is not None:
        from fanoise.embedder import Embedder

        embedder = Embedder.from_pretrained(args.embedder)
    faults = verify_index(args.index, embedder=embedder)
    if args.json:
        print(json.dumps({"sound": not faults, "faults": faults}, ensure_ascii=False))
    else:
        print("\n".join(faults) if faults else f"{args.index} is sound")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
