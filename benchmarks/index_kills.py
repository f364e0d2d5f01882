"""SIGKILL at random moments of index build, add, update, delete and compact.

What must hold afterwards is said in `tests/index/kills.py`. Stops at the first state that is neither old nor new.
"""

import argparse
import tempfile
import time
from pathlib import Path

from timing import show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="processes to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of commands and moments (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=150, help="rows of a build (default: %(default)s)")
    options = parser.parse_args()

    from tests.index.kills import COMMANDS, Child, Trials

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Child() as child:
        trials = Trials(Path(folder) / "trials", child, seed=options.seed, rows=options.rows)
        trials.run(options.kills)
    rows = [(name, *(str(trials.tally[f"{name} {state}"]) for state in ("old", "new"))) for name in COMMANDS]
    show(("killed in", "then the old index", "then the new index"), rows)
    print(f"{trials.tally.total()} kills in {time.perf_counter() - start:.0f} s; nothing lost, nothing double.")


if __name__ == "__main__":
    main()
