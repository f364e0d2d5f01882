"""When broken images are too many to go on."""

from collections import deque

from fanoise.errors import TrainingError

_WINDOW = 100
_FEW = 20
"""Lost pairs that are too few to speak of a share."""


class RejectShare:
    """The share of pairs that were lost to a broken image, over the last hundred batches."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._batches: deque[tuple[int, int]] = deque(maxlen=_WINDOW)
        self.lost = 0
        """Pairs lost since the start of this process."""

    def add(self, *, planned: int, lost: int) -> None:
        """Count a batch; `planned` and `lost` are pairs over all processes.

        Raises: TrainingError when more than the share is lost: once 20 pairs are, or the whole first batch is.
        """
        is_first = not self._batches
        self._batches.append((planned, lost))
        self.lost += lost
        all_planned, all_lost = (sum(counts) for counts in zip(*self._batches, strict=True))
        if all_lost > self._most * all_planned and (all_lost >= _FEW or (is_first and lost == planned)):
            raise TrainingError(
                f"{all_lost} of the last {all_planned} pairs have a broken image, more than data.max_rejects "
                f"({self._most:g}) allows; rejects.jsonl in the run folder names them: repair them, check data.images, "
                "or raise data.max_rejects"
            )
