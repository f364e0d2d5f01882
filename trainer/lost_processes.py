"""Processes that end without a word: a data worker, or another process of the run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from fanoise.errors import TrainingError, one_line

_GLOO = "/gloo/"


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Within it, what torch raises for a lost process becomes a TrainingError, in one line.

    torch learns of a data worker's end by a signal, and raises wherever the main thread is at that moment, not only
    where a batch is waited for.
    """
    try:
        yield
    except RuntimeError as error:
        if _is_of_worker(error) or isinstance(error, dist.DistError) or _GLOO in str(error):
            raise lost_process(error) from None
        raise


def lost_process(error: RuntimeError) -> TrainingError:
    """What to say of an error that means a lost process."""
    if _is_of_worker(error):
        return TrainingError(
            f"a data worker died ({one_line(error)}); it may have run out of memory, lower data.workers"
        )
    # gloo's own words name sockets, and the place in its source first
    why = "" if _GLOO in str(error) or not isinstance(error, dist.DistError) else f" ({one_line(error)})"
    return TrainingError(f"another process was lost; it may say why itself{why}")


def _is_of_worker(error: RuntimeError) -> bool:
    return str(error).startswith("DataLoader worker")
