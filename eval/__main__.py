"""Command line: `python -m eval retrieval` measures one index, `python -m eval compare` answers "is B better than A".

Nothing heavy is imported before the arguments are known to be good, so `--help` is instant.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Never

_DESCRIPTION = "Measure how well an index answers queries, and compare two such measurements query by query."

_RETRIEVAL = """\
Rank the items of an index for every query of a file and write P@1, R@1, R@5, R@10, RR (mean reciprocal rank) and
nDCG@10, per query and on average. Ties count against the model. The TREC run and the qrels are written beside RESULT.

A query file is JSONL, CSV or Parquet with the columns
  id         unique
  text       what is asked, or
  image      a photo (path relative to the file), or both
  positives  ids of the right items: a list, in CSV "id|id"
"""
_RETRIEVAL_EXAMPLES = """\
examples:
  python -m eval retrieval --index runs/demo/index/products-fanoise --out fanoise.json \\
      --queries runs/demo/data/products/queries/text.jsonl --where split=test

exit status: 0 measured, 2 bad input
"""
_COMPARE = """\
B minus A, paired by query: difference, 95 % bootstrap interval, two-sided paired randomisation test, and on how many
queries B wins, ties, loses. Both results must be of the same queries over the same items.
"""
_COMPARE_EXAMPLES = """\
examples:
  python -m eval compare baseline.json fanoise.json
  python -m eval compare baseline.json fanoise.json --metric nDCG@10 --json

exit status: 0 B is better in METRIC (p < 0.05), 1 it is not, or that cannot be told, 2 bad input
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        """One line, like every other error of ours."""
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0 done, 1 it ran and the answer is no, 2 bad input (as SystemExit)."""
    arguments = _parser().parse_args(argv)
    from fanoise.errors import cli_errors
    from fanoise.process import prepare_process

    prepare_process()
    with cli_errors():
        return _retrieval(arguments) if arguments.command == "retrieval" else _compare(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m eval", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    raw = argparse.RawDescriptionHelpFormatter

    retrieval = commands.add_parser(
        "retrieval",
        help="measure one index with a query file",
        description=_RETRIEVAL,
        epilog=_RETRIEVAL_EXAMPLES,
        formatter_class=raw,
    )
    retrieval.add_argument("--index", type=Path, required=True, metavar="DIR", help="folder of `python -m index build`")
    retrieval.add_argument("--queries", type=Path, required=True, metavar="FILE", help=".jsonl, .csv or .parquet")
    retrieval.add_argument("--out", type=Path, required=True, metavar="RESULT.json", help="result file to write")
    retrieval.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="rank only items that meet it: FIELD=VALUE, or with !=, '>=', '<=', '*=' (contains); repeatable, see "
        "`python -m index search --help`",
    )
    retrieval.add_argument("--k", type=int, default=100, metavar="N", help="items retrieved a query (default: 100)")
    retrieval.add_argument("--json", action="store_true", help="print means and counts as JSON")

    compare = commands.add_parser(
        "compare",
        help='answer "is B better than A"',
        description=_COMPARE,
        epilog=_COMPARE_EXAMPLES,
        formatter_class=raw,
    )
    compare.add_argument("a", type=Path, metavar="A.json", help="result of the baseline")
    compare.add_argument("b", type=Path, metavar="B.json", help="result of the candidate")
    compare.add_argument(
        "--metric", default="R@1", help="what the verdict and the exit status are about (default: R@1)"
    )
    compare.add_argument("--json", action="store_true", help="print the comparison as JSON")
    return parser


def _retrieval(arguments: argparse.Namespace) -> int:
    from eval.compare import align
    from eval.queries import read_queries
    from eval.result import check_result_path
    from index.where import parse_where

    where = parse_where(arguments.where)
    out = check_result_path(arguments.out)
    read_queries(arguments.queries)  # a mistake in it should show before a model is loaded

    from eval.retrieval import evaluate
    from index.search import Searcher

    result = evaluate(Searcher.open(arguments.index), arguments.queries, where=where, k=arguments.k)
    result.write(out)
    for query_id, reason in result.failed.items():
        print(f"warning: query {query_id!r} scores 0: {reason}", file=sys.stderr)
    if result.counts["unreachable"]:
        print(
            f"warning: queries that --where left no positive, scored 0: {result.counts['unreachable']}", file=sys.stderr
        )
    if arguments.json:
        print(json.dumps({"metrics": result.metrics, "counts": result.counts, "out": str(out)}))
        return 0
    print(align([("metric", "mean"), *((name, f"{100 * value:.1f}") for name, value in result.metrics.items())]))
    print(f"{result.counts['queries']} queries over {result.counts['items']} items, in points of 100; wrote {out}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from eval.compare import compare

    comparison = compare(arguments.a, arguments.b, metric=arguments.metric)
    if arguments.json:
        print(json.dumps(comparison.to_json(), ensure_ascii=False))
    else:
        print(f"A = {arguments.a}\nB = {arguments.b}\n\n{comparison.table()}\n")
        for warning in comparison.warnings:
            print(f"warning: {warning}")
        print(comparison.verdict)
    return 0 if comparison.is_better else 1


if __name__ == "__main__":
    sys.exit(main())
