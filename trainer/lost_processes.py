"""Processes that end without a word: a data worker, or another process of the run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from fanoise.errors import TrainingError, one_line


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Within it, what torch raises for a lost process becomes a TrainingError, in one line.

    torch learns of a data worker's end by a signal, and raises wherever the main thread is at that moment, not only
    where a batch is waited for.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):
            raise TrainingError(
                f"a data worker died ({one_line(error)}); it may have run out of memory, lower data.workers"
            ) from None
        if "gloo/" in str(error):  # with the place in gloo's source, and sockets
            raise TrainingError("another process was lost; it may say why itself") from None
        if isinstance(error, dist.DistError):
            raise TrainingError(f"another process was lost; it may say why itself ({one_line(error)})") from None
        raise
