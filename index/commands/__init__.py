"""The commands of `python -m index`, a file for each kind. Everything heavy is imported inside their functions."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

EXIT_CODES = "exit status: 0 done; 1 it ran and the answer is no (verify found a fault); 2 bad input, said in one line"


_CATALOGS = "CSV, TSV, JSONL, Parquet; folder of images and PDFs, or a PDF; tar shards; saved dataset; quoted pattern"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


Commands = argparse._SubParsersAction


def add_command(commands: "Commands[Parser]", name: str, summary: str, examples: str, *, more: str = "") -> Parser:
    """A command with a one-sentence `summary`, shown in the list of commands too, and examples of its use."""
    return commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary + (f"\n{more}" if more else ""),
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_index_option(parser: Parser) -> None:
    parser.add_argument("--index", required=True, type=_index_folder, metavar="DIR", help="index folder")


def _index_folder(text: str) -> Path:
    if text.startswith(("milvus:", "milvus+")):
        raise argparse.ArgumentTypeError(
            f"{text!r} is a Milvus collection, which only `search` reads; name the index folder that it was filled from"
        )
    return Path(text)


def add_where_option(parser: Parser, effect: str) -> None:
    """--where, read by `index.where.parse_where`; `effect` says in the help what a condition is for."""
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help=f"{effect}: FIELD=VALUE, FIELD!=VALUE, 'FIELD>=VALUE', 'FIELD<=VALUE' or 'FIELD*=PART' (contains); "
        "repeatable, all must hold, but = repeated on one field means any of the values. A number "
        "meets what is or spells one, a date or time such as 2026-01-31T12:00 what holds times; any other bound is "
        "compared as text",
    )


def add_device_option(parser: Parser) -> None:
    parser.add_argument("--device", help="torch device, for example cpu or cuda:1 (default: a GPU if there is one)")


def add_catalog_options(parser: Parser, *, defaults: str) -> None:
    """--catalog and how it is read; `defaults` ends the help of --text and --image."""
    parser.add_argument("--catalog", required=True, type=Path, metavar="PATH", help=_CATALOGS)
    parser.add_argument(
        "--text", metavar="COLUMN", help=f"text column, or a template such as '{{title}}. {{description}}'{defaults}"
    )
    parser.add_argument(
        "--image",
        action="append",
        metavar="COLUMN",
        help=f"column with images; repeatable: each image becomes an item{defaults or ' (default: image)'}",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="items per batch (default: %(default)s)"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def add_reading_options(parser: Parser, *, defaults: str) -> argparse._ArgumentGroup:
    """Where a catalogue's images may be; `defaults` ends the help of --images and --near-duplicates."""
    group = parser.add_argument_group("images of the catalogue")
    group.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help=f"where relative image paths start{defaults or ' (default: beside the catalogue)'}",
    )
    add_permission_options(group, "that folder")
    group.add_argument(
        "--near-duplicates",
        choices=("off", "report", "skip"),
        help="of images that are nearly the same: name the first in the field duplicate_of, or index only the first"
        + (defaults or " (default: off)"),
    )
    return group


def add_encoding_options(parser: Parser, description: str, *, defaults: str) -> argparse._ArgumentGroup:
    """How rows become vectors; `defaults` ends the help of --vectors."""
    group = parser.add_argument_group("encoding", description)
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that open images and make batches; 0 for none (default: by the cores, up to 4)",
    )
    group.add_argument(
        "--shard-rows", type=int, metavar="N", help="rows that are finished, and kept, together (default: 4096)"
    )
    group.add_argument(
        "--vectors",
        metavar="COLUMN",
        help=f"column with the rows' vectors, made by the embedder; none is encoded then{defaults}",
    )
    group.add_argument(
        "--max-rejects",
        type=float,
        metavar="SHARE",
        help="change nothing if more than this share of rows is rejected, such as 0.05 (default: none)",
    )
    return group


def add_permission_options(options: argparse._ActionsContainer, folder: str) -> None:
    options.add_argument("--allow-outside", action="store_true", help=f"let image paths lead out of {folder}")
    options.add_argument("--allow-urls", action="store_true", help="fetch images that are named by their URL")


def intake_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options above say, as fields of `index.encoding.intake.Intake`; without those that were not given."""
    names = ("text", "images", "allow_outside", "allow_urls", "near_duplicates", "batch_size")
    options = {name: getattr(args, name) for name in (*names, "workers", "shard_rows", "vectors", "max_rejects")}
    options["image"] = args.image[0] if args.image and len(args.image) == 1 else args.image
    options["progress"] = not args.no_progress
    return {name: value for name, value in options.items() if value is not None}
