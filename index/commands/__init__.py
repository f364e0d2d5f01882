"""The commands of `python -m index`, a file for each kind. Everything heavy is imported inside their functions."""

import argparse
from pathlib import Path
from typing import NoReturn

EXIT_CODES = "exit status: 0 done; 1 it ran and the answer is no (verify found a fault); 2 bad input, said in one line"


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
    parser.add_argument("--index", required=True, type=Path, metavar="DIR", help="index folder")


def add_device_option(parser: Parser) -> None:
    parser.add_argument("--device", help="torch device, for example cpu or cuda:1 (default: a GPU if there is one)")


def add_catalog_options(parser: Parser, *, defaults: str) -> None:
    """--catalog and how it is read; `defaults` ends the help of --text and --image."""
    parser.add_argument("--catalog", required=True, type=Path, metavar="PATH", help="CSV, JSONL, Parquet, image folder")
    parser.add_argument(
        "--text", metavar="COLUMN", help=f"text column, or a template such as '{{title}}. {{description}}'{defaults}"
    )
    parser.add_argument("--image", metavar="COLUMN", help=f"image path column{defaults or ' (default: image)'}")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="items per batch (default: %(default)s)"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
