"""`index export-milvus`."""

import argparse
import json
from typing import Any

from fanoise.errors import InputError
from index.commands import Commands, Parser, add_command, add_index_option

_MORE = """\
No item is encoded again. What was killed goes on where it was; a collection of something else is not touched without
--replace. The user and password, or the token, of a server come from the environment: MILVUS_TOKEN=user:password."""


def add_export_milvus(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "export-milvus",
        "Fill a Milvus collection with the vectors, items and fields of an index.",
        "  python -m index export-milvus --index DIR --uri shop.db --collection products\n"
        "  python -m index export-milvus --index DIR --uri milvus://localhost:19530/products\n"
        "  python -m index export-milvus --index DIR --uri milvus://gpu-host/products --index-type GPU_CAGRA\n"
        "  python -m index search --index milvus://localhost:19530/products --text 'red mug'",
        more=_MORE,
    )
    add_index_option(parser)
    add = parser.add_argument
    add(
        "--uri",
        required=True,
        metavar="URI",
        help="http://HOST:19530, milvus://HOST:19530/COLLECTION, milvus+https://HOST/COLLECTION, or PATH.db for a file",
    )
    add("--collection", metavar="NAME", help="collection to fill, where the URI names none")
    add("--replace", action="store_true", help="drop a collection of this name first")
    add(
        "--precision",
        choices=["fp32", "fp16"],
        default="fp32",
        help="of the vectors in Milvus; fp16 needs a server (default: %(default)s)",
    )
    add(
        "--index-type",
        metavar="TYPE",
        help="Milvus index type, such as HNSW or GPU_CAGRA (default: AUTOINDEX; FLAT, which is exact, in a file)",
    )
    add("--index-params", type=_mapping, metavar="JSON", default={}, help="its parameters, such as '{\"M\": 32}'")
    add("--search-params", type=_mapping, metavar="JSON", default={}, help="stored for every search: '{\"ef\": 128}'")
    add("--shards", type=int, default=1, metavar="N", help="parts that a cluster writes to (default: %(default)s)")
    add("--replicas", type=int, default=1, metavar="N", help="copies in query nodes' memory (default: %(default)s)")
    add("--no-progress", action="store_true", help="no progress bar")
    add("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_run_export_milvus)


def _run_export_milvus(args: argparse.Namespace) -> int:
    from index.backends.address import parse_address
    from index.backends.export import export_milvus

    exported = export_milvus(
        args.index,
        parse_address(args.uri, collection=args.collection),
        replace_other=args.replace,
        precision=args.precision,
        index_type=args.index_type,
        index_params=args.index_params,
        search_params=args.search_params,
        shards=args.shards,
        replicas=args.replicas,
        progress=not args.no_progress,
    )
    if args.json:
        content = {"index": str(exported.address), "items": exported.count, "sent": exported.sent}
        print(json.dumps(content | {"shortened": exported.shortened, "seconds": round(exported.seconds, 3)}))
        return 0
    there = exported.count - exported.sent
    print(
        f"Exported {exported.sent:,} items in {exported.seconds:.1f} s"
        + (f" ({there:,} were there)" if there else "")
        + f": {exported.address} is complete with {exported.count:,}"
    )
    if exported.shortened:
        print(f"{exported.shortened:,} texts were longer than the 65,535 bytes that Milvus holds, and were shortened")
    print(f"Search it with `python -m index search --index {exported.address} --text …`")
    return 0


def _mapping(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{text!r} must be a JSON object, such as '{{\"M\": 32}}'")
    return content
