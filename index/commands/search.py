"""`index search`."""

import argparse
import json
from pathlib import Path

from fanoise.errors import InputError
from index.commands import Commands, Parser, add_command, add_device_option, add_where_option
from index.where import parse_where


def add_search(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "search",
        "Find the items nearest to a text, an image, or both.",
        "  python -m index search --index DIR --text 'red mug' --k 5\n"
        "  python -m index search --index DIR --image photo.jpg --text 'this, in green' --where category=mug --json\n"
        "  python -m index search --index DIR --text 'boots' --where 'price>=10' --where 'title*=winter'\n"
        "  python -m index search --index DIR --text 'red mug' --min-score 0.6\n"
        "  python -m index search --index DIR --text 'model XR-200' --hybrid --group-by brand\n"
        "  python -m index search --index milvus://localhost:19530/products --text 'red mug'",
    )
    parser.add_argument(
        "--index", required=True, metavar="DIR", help="index folder, or a collection: milvus://HOST:19530/NAME"
    )
    parser.add_argument("--text", help="query text")
    parser.add_argument("--image", type=Path, metavar="FILE", help="query image")
    parser.add_argument(
        "--k",
        type=int,
        metavar="N",
        help="number of hits (default: 10; with --min-score all that reach it, up to 10,000)",
    )
    add_where_option(parser, "only items that meet it")
    parser.add_argument(
        "--min-score", type=float, metavar="COSINE", help="only items with at least this similarity, from -1 to 1"
    )
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument(
        "--group-by", metavar="FIELD", help="only the best item for each value of this field (default: the index's own)"
    )
    groups.add_argument(
        "--no-group", dest="group_by", action="store_const", const="", help="every item, if the index groups its items"
    )
    parser.add_argument(
        "--hybrid", action="store_true", help="order by similarity and by the words in common together (needs bm25s)"
    )
    parser.add_argument("--embedder", metavar="RUN", help="embedder to use (default: the one the index names)")
    add_device_option(parser)
    parser.add_argument("--no-verify", action="store_true", help="compare file sizes but not checksums before reading")
    parser.add_argument("--json", action="store_true", help="print hits, latency, device and notes as JSON")
    parser.set_defaults(run=_run_search)


def _run_search(args: argparse.Namespace) -> int:
    where = parse_where(args.where)
    if not (args.text and args.text.strip()) and args.image is None:
        raise InputError("search needs --text, --image or both: got neither")
    if args.hybrid and not (args.text and args.text.strip()):
        raise InputError("--hybrid compares words, so it needs --text")
    from index.report import describe_answer
    from index.search import Searcher

    searcher = Searcher.open(args.index, embedder=args.embedder, device=args.device, verify=not args.no_verify)
    answer = searcher.search(
        text=args.text,
        image=args.image,
        k=args.k,
        where=where,
        group_by=args.group_by,
        min_score=args.min_score,
        hybrid=args.hybrid,
    )
    device = searcher.backend.device
    if args.json:
        print(json.dumps(answer.to_json() | {"device": device}, ensure_ascii=False))
    else:
        print(describe_answer(answer, device))
    return 0
