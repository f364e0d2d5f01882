"""`python -m app`: open the search page.

argparse rather than a config tree: the options come in pairs that repeat, and `--help` has to answer at once.
"""

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from fanoise.process import prepare_process

_EPILOG = """\
examples:
  python -m app --baseline runs/demo/index/products-baseline --fanoise runs/demo/index/products-fanoise
  python -m app --baseline A1 --fanoise A2 --baseline B1 --fanoise B2 --name shop --name invoices

DIR is an index folder, or a Milvus collection such as milvus://localhost:19530/products.
Repeat --baseline and --fanoise for several catalogues; the first --baseline goes with the first --fanoise.
Programs can call the endpoints /search and /compare: docs/api.md.

FILE of --examples: for each catalogue a list of queries with text, image (a path relative to FILE) or both:
  {"products": [{"text": "a red mug"}, {"image": "shoe.jpg", "text": "in green", "label": "this shoe in green"}]}
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Search a catalogue in the browser, baseline beside FANoise.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--baseline", metavar="DIR", action="append", required=True, help="index made with the baseline")
    add("--fanoise", metavar="DIR", action="append", required=True, help="index made with the FANoise model")
    add("--name", action="append", default=[], help="what to call the catalogue (default: as its index does)")
    add("--examples", metavar="FILE", type=Path, help="JSON with example queries for each catalogue")
    add(
        "--originals",
        type=_boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help="a click on a result opens the catalogue's own picture, up to 1,600 pixels a side, if it is still where "
        "the index found it; false opens the thumbnail of 320. The default is false, because whoever reaches the page "
        "could then read every page and photo of the catalogue, not only recognise it",
    )
    add("--report", metavar="FILE", type=Path, help="A/B report; adds the tab “Is it better?”")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 opens the page to the network (default: %(default)s)",
    )
    add("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    add(
        "--share",
        type=_boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help="make a public address through Gradio's tunnel (default: false)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    prepare_process()

    from fanoise.errors import cli_errors

    with cli_errors():
        _check_port(options.host, options.port)

        from app.examples import read_examples
        from app.report import read_report
        from app.service import Service

        report = read_report(options.report) if options.report else None
        service = Service.open(options.baseline, options.fanoise, options.name)
        for name in service.same_embedder:
            _note(f"one embedder made both indices of {name!r}, so no training tells its two columns apart")
        examples = read_examples(options.examples, service.catalogs, note=_note) if options.examples else {}

        from app.ui.page import build_page, launch_options, serve

        page = build_page(service, examples=examples, report=report)
        serve(
            page,
            launch_options(service, examples=examples, originals=options.originals),
            host=options.host,
            port=options.port,
            share=options.share,
        )


def _note(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)


def _boolean(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {value!r}")
    return value.lower() == "true"


def _check_port(host: str, port: int) -> None:
    """Refuse a taken port before any model is loaded."""
    from fanoise.errors import InputError

    if not 1 <= port <= 65_535:
        raise InputError(f"--port is {port}; it must be from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is not a port in use
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {host} cannot be used ({error.strerror or error}); "
                f"stop what listens there or choose another with --port {port + 1 if port < 65_535 else 7860}"
            ) from None


if __name__ == "__main__":
    main()
