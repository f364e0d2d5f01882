"""`index add`, `update`, `delete` and `compact`: a new generation each, while searching goes on in the one before."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fanoise.errors import InputError
from index.commands import (
    Commands,
    Parser,
    add_catalog_options,
    add_command,
    add_device_option,
    add_encoding_options,
    add_index_option,
    add_reading_options,
    add_where_option,
    intake_options,
)
from index.where import parse_where

if TYPE_CHECKING:
    from index.update import Change

_AS_BUILT = " (default: as in the build)"
_MORE = """Searching goes on in the index as it was until all is done, and nothing is changed if it is killed before;
a second writer is told who is at work."""


def add_add(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "add",
        "Append the rows of a catalogue to an index; only they are encoded.",
        "  python -m index add --index DIR --catalog new.csv\n"
        "  python -m index add --index DIR --catalog all.csv --replace",
        more=_MORE,
    )
    _add_encoding_options(parser)
    parser.add_argument(
        "--replace", action="store_true", help="rows whose id is in the index replace it (default: they are refused)"
    )
    parser.set_defaults(run=_run_add)


def add_update(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "update",
        "Replace rows of an index by those of a catalogue with the same ids; only they are encoded.",
        "  python -m index update --index DIR --catalog changed.csv",
        more=_MORE,
    )
    _add_encoding_options(parser)
    parser.set_defaults(run=_run_add, replace=None)


def add_delete(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "delete",
        "Delete items by id or by filter.",
        "  python -m index delete --index DIR --id sku-17 --id sku-18\n"
        "  python -m index delete --index DIR --ids-file sold-out.txt --missing-ok\n"
        "  python -m index delete --index DIR --where category=lamps --where 'price<=5'",
        more="Their vectors stay in the files, unseen by every search, until `index compact`.\n" + _MORE,
    )
    add_index_option(parser)
    parser.add_argument("--id", action="append", default=[], metavar="ID", help="id of an item; repeatable")
    parser.add_argument("--ids-file", type=Path, metavar="FILE", help="UTF-8 file with an id in each line; - for stdin")
    add_where_option(parser, "delete the items that meet it")
    parser.add_argument("--missing-ok", action="store_true", help="ids that are not in the index are no mistake")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(run=_run_delete)


def add_compact(commands: "Commands[Parser]") -> None:
    parser = add_command(
        commands,
        "compact",
        "Write the index without its deleted rows, and train FAISS again.",
        "  python -m index compact --index DIR\n  python -m index compact --index DIR --factory IVF1024,Flat",
        more=_MORE,
    )
    add_index_option(parser)
    parser.add_argument("--factory", help="another FAISS factory string, or auto (default: that of the index)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.set_defaults(run=_run_compact)


def _add_encoding_options(parser: Parser) -> None:
    add_index_option(parser)
    add_catalog_options(parser, defaults=_AS_BUILT)
    add_reading_options(parser, defaults=_AS_BUILT)
    add_encoding_options(
        parser,
        "Killed at any moment, the same command goes on where it was. Rows whose text and image\n  the index knows are "
        "copied.",
        defaults=f", '' encodes the rows{_AS_BUILT}",
    )
    parser.add_argument(
        "--drop-columns",
        action="store_true",
        help="rows that are replaced may lose text, images and fields for which the catalogue has no column",
    )
    parser.add_argument("--embedder", metavar="RUN", help="embedder to use (default: the one the index names)")
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _run_add(args: argparse.Namespace) -> int:
    from index.manifest import Manifest

    start = time.perf_counter()
    ref = Manifest.read(args.index).embedder  # a missing index should show before a model is loaded
    from fanoise.embedder import Embedder
    from index.encoding.query import load_embedder
    from index.update import add_items

    if args.embedder is None:
        embedder = load_embedder(ref, args.index, device=args.device)
    else:
        embedder = Embedder.from_pretrained(args.embedder, device=args.device)
    change = add_items(
        embedder,
        args.catalog,
        args.index,
        existing="require" if args.replace is None else "replace" if args.replace else "refuse",
        drop_columns=args.drop_columns,
        **intake_options(args),
    )
    return _report(args, change, start)


def _run_delete(args: argparse.Namespace) -> int:
    from index.update import delete_items

    start = time.perf_counter()
    ids = [*args.id, *_read_ids(args.ids_file)]
    change = delete_items(args.index, ids=ids, where=parse_where(args.where), missing_ok=args.missing_ok)
    return _report(args, change, start)


def _run_compact(args: argparse.Namespace) -> int:
    from index.update import compact_index

    start = time.perf_counter()
    return _report(args, compact_index(args.index, factory=args.factory), start)


def _read_ids(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        text = (sys.stdin.read() if sys.stdin else "") if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"--ids-file {file}: no such file") from None
    except UnicodeDecodeError:
        raise InputError(f"--ids-file {file}: not UTF-8; save it as UTF-8") from None
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def _report(args: argparse.Namespace, change: "Change", start: float) -> int:
    from index.report import describe_change

    if args.json:
        names = ["added", "deleted", "rejected", "notes"]
        if args.command in ("add", "update"):
            names += ["encoded", "reused", "duplicates", "passed_over"]
        counts = {name: getattr(change, name) for name in names}
        print(json.dumps(counts | {"generation": change.manifest.generation, "live": change.manifest.live}))
    else:
        print(describe_change(args.index, args.command, change, time.perf_counter() - start))
    return 0
