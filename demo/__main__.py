"""`python -m demo`: the tour from nothing to the A/B page, and the commands that made what the demo ships."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fanoise.errors import cli_errors
from fanoise.process import prepare_process

_EPILOG = """\
examples:
  python -m demo tour                           what `make demo` runs
  python -m demo tour --serve false             stop before the page; the report is in runs/demo/report.json
  python -m demo tour --base Qwen/Qwen2-VL-2B-Instruct
  python -m demo seeds --count 5                repeat both arms over seeds, write demo/results.json (about 20 minutes)
  python -m demo base                           train demo/checkpoint again from nothing (about 45 minutes)

Calling a command again goes on where it stopped.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Try FANoise end to end on generated products and documents.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tour = commands.add_parser("tour", help="catalogues, two embedders, four indices, the A/B table, the page")
    tour.add_argument("--base", help="another checkpoint: hub id or local folder (default: the demo's own)")
    tour.add_argument("--serve", type=_boolean, default=True, metavar="true|false", help="open the page at the end")
    tour.add_argument("--port", type=int, default=7860, help="port of the page (default: %(default)s)")
    tour.add_argument("--host", default="127.0.0.1", help="address of the page (default: %(default)s)")
    seeds = commands.add_parser("seeds", help="both arms over several seeds, for the seed-to-seed spread")
    seeds.add_argument("--count", type=_at_least_two, default=5, help="number of seeds (default: %(default)s)")
    category = commands.add_parser("category", help="training pairs and queries for photos with a category and a split")
    category.add_argument("--catalog", required=True, help="catalogue with the fields category and split")
    category.add_argument("--out", required=True, help="folder to write, runs/category/task for the recipe as it is")
    commands.add_parser("base", help="train the shipped base checkpoint again")
    options = parser.parse_args(argv)
    prepare_process()
    with cli_errors():
        if options.command == "tour":
            return _tour(options)
        if options.command == "seeds":
            from demo.seeds import run_seeds

            run_seeds(options.count)
        elif options.command == "category":
            from demo.category import make_category_task

            print(make_category_task(options.catalog, options.out))
        else:
            from demo.base import train_base

            train_base()
    return 0


def _tour(options: argparse.Namespace) -> int:
    from demo.tour import Tour, table

    root = Path("runs/demo") if options.base is None else Path("runs") / f"demo-{Path(options.base).name}"
    tour = Tour(root, base=options.base)
    report = tour.run()
    strength = report["noise"]["strength"]
    print(f"\nBaseline against FANoise (strength {strength}), base {report['base']}, R@1 in points of 100:\n")
    print(table(report))
    print(f"\nreport: {root / 'report.json'}")
    if not options.serve:
        return 0
    tour.write_examples(root / "examples.json")
    arguments = ["--host", options.host, "--port", str(options.port), "--report", str(root / "report.json")]
    arguments += ["--examples", str(root / "examples.json"), "--originals", "true"]
    for catalog in ("products", "documents"):
        arguments += [
            "--baseline",
            str(tour.index(catalog, "baseline")),
            "--fanoise",
            str(tour.index(catalog, "fanoise")),
        ]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "app", *arguments])


def _at_least_two(value: str) -> int:
    if not value.isdecimal() or int(value) < 2:
        raise argparse.ArgumentTypeError(f"must be a number >= 2, to have a spread; got {value!r}")
    return int(value)


def _boolean(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {value!r}")
    return value.lower() in ("true", "1")


if __name__ == "__main__":
    sys.exit(main())
