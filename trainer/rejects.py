"""When broken images are too many to go on."""

import json
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from fanoise.errors import TrainingError

_WINDOW = 100
_FEW = 20
"""Broken pairs that are too few to speak of a share."""


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

        Raises: TrainingError when more than the share is broken: once 20 pairs are, or the whole first batch is.
        """
        is_first = not self._batches
        self._batches.append((planned, broken))
        all_planned, all_broken = (sum(counts) for counts in zip(*self._batches, strict=True))
        if all_broken > self._most * all_planned and (all_broken >= _FEW or (is_first and broken == planned)):
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
