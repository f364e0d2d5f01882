"""When broken images are too many to go on."""

import json
import math
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from fanoise.errors import TrainingError

_WINDOW = 100
_DEVIATIONS = 3
"""Standard deviations above the share, below which luck may have put so many broken ones together."""
_NAMED = 5
"""How many are named on the terminal; the ledger has them all."""


class RejectShare:
    """The share of pairs that have a broken image, over the last hundred batches."""

    def __init__(self, most: float, *, before: Sequence[tuple[int, int]] = ()) -> None:
        """
        Args:
            before: pairs, and broken ones, of each batch before the first to be added, when a run is resumed.
        """
        self._most = most
        self._batches = deque(before, maxlen=_WINDOW)

    def add(self, *, planned: int, broken: int) -> None:
        """Count a batch; `planned` and `broken` are pairs over all processes.

        Raises: TrainingError when more than the share is broken, and more than luck explains.
        """
        self._batches.append((planned, broken))
        all_planned, all_broken = (sum(counts) for counts in zip(*self._batches, strict=True))
        expected = self._most * all_planned
        if all_broken > expected + _DEVIATIONS * math.sqrt(expected * (1 - self._most)):
            raise TrainingError(
                f"{all_broken} of the last {all_planned} pairs have a broken image, more than data.max_rejects "
                f"({self._most:g}) allows; rejects.jsonl in the run folder names them: repair them, check data.images, "
                "or raise data.max_rejects"
            )


def broken_pairs(ledger: Path, done: int) -> list[int]:
    """How many pairs of each of the last hundred steps up to `done` the ledger names."""
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    found = {(row["step"], row["pair"]) for row in map(json.loads, lines)}
    by_step = Counter(step for step, _ in found)
    return [by_step[step] for step in range(max(0, done - _WINDOW) + 1, done + 1)]


def skipped(ledger: Path) -> str:
    """What the ledger names over the whole run, however often it was resumed, in one line; empty if nothing."""
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    rows = [json.loads(line) for line in lines]
    pairs = dict.fromkeys(row["pair"] for row in rows if row["side"] != "negative")
    negatives = dict.fromkeys(row["pair"] for row in rows if row["side"] == "negative" and row["pair"] not in pairs)
    parts = [f"{len(pairs)} pair(s) with a broken image were skipped" if pairs else ""]
    parts.append(f"{len(negatives)} pair(s) went without a mined negative whose image is broken" if negatives else "")
    names = [*pairs, *negatives]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    said = ", ".join(part for part in parts if part)
    return f"{said}: {', '.join(names[:_NAMED])}{more}; see {ledger}" if said else ""
