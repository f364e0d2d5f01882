"""Paired timing of alternatives in one process, and the tables that show it."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# a script that is run by its path finds its neighbours, but not the rooms it measures
sys.path.insert(0, str(Path(__file__).parents[1]))


@dataclass(frozen=True)
class Paired:
    """Seconds of each alternative, one entry a round; what stands at the same place was measured side by side."""

    seconds: Mapping[str, Sequence[float]]

    def median_ms(self, name: str) -> float:
        return 1e3 * statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> "Ratio":
        """How many times as long as `to` it took, round by round."""
        rounds = sorted(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))
        if len(rounds) == 1:
            return Ratio(rounds[0], rounds[0], rounds[0])
        low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
        return Ratio(median, low, high)


@dataclass(frozen=True)
class Ratio:
    """Median over the rounds, with the quartiles that say how noisy it is."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 3 if self.median < 2 else 1
        return f"{self.median:.{digits}f}× ({self.low:.{digits}f}–{self.high:.{digits}f})"


def clock_of(threads: int) -> Callable[[], float]:
    """Processor time where one thread does the work, since other processes do not lengthen it; else the wall's."""
    return time.process_time if threads == 1 else time.perf_counter


def how(clock: Callable[[], float] = time.perf_counter) -> str:
    """What to print under a table."""
    kind = "processor time" if clock is time.process_time else "wall time"
    return f"medians over paired rounds, quartiles of the ratio in brackets, {kind}"


def paired(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Paired:
    """Call the alternatives in turn, in reverse order every other round, so that a busy moment or a drift hits all.

    Args:
        warmup: first rounds that are not counted.
        clock: in seconds.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        for name in names if number % 2 else reversed(names):
            start = clock()
            calls[name]()
            if number >= warmup:
                seconds[name].append(clock() - start)
    return Paired(seconds)


def show(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, first column to the left, the others to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        first, *others = (cell.ljust if column == 0 else cell.rjust for column, cell in enumerate(row))
        print("  ".join([first(widths[0]), *(pad(width) for pad, width in zip(others, widths[1:], strict=True))]))
