"""`python -m index`: build, change, search, describe and check an index folder."""

import sys
from collections.abc import Sequence

from fanoise.errors import cli_errors
from fanoise.process import prepare_process
from index.commands import EXIT_CODES, Parser
from index.commands.build import add_build
from index.commands.change import add_add, add_compact, add_delete, add_update
from index.commands.inspect import add_export, add_info, add_verify
from index.commands.milvus import add_export_milvus
from index.commands.search import add_search
from index.commands.tune import add_tune

_COMMANDS = (
    add_build,
    add_search,
    add_info,
    add_add,
    add_update,
    add_delete,
    add_compact,
    add_tune,
    add_verify,
    add_export,
    add_export_milvus,
)
_RESUMED = ("build", "add", "update", "export-milvus")


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m index",
        description="Turn an image-text catalogue and an embedder into a folder that can be searched, and search it.",
        epilog=EXIT_CODES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    prepare_process()
    with cli_errors(go_on="the same command goes on where it was" if args.command in _RESUMED else ""):
        return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
