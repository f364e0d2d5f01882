"""Lines added to the logs of a run, and what is said where there is no room for them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from fanoise.errors import TrainingError, one_line

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def append(path: Path, lines: str) -> None:
    """Add lines to a log that may not be there yet.

    Raises: TrainingError with a remedy where it cannot be written.
    """
    with needing_room(path), FileIO(path, "a") as file:
        write(file, lines)


def write(file: FileIO, lines: str) -> None:
    """Write at once: a buffer would be written once more by closing, where there was no room.

    Raises: as `append`.
    """
    data = lines.encode()
    with needing_room(str(file.name)):
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def needing_room(what: Path | str) -> Iterator[None]:
    """Within it, a file that the system refuses becomes a TrainingError with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = "make room, and go on" if error.errno in _NO_ROOM else "see to that, and go on"
        raise TrainingError(f"{what} cannot be written ({one_line(error)}); {remedy} by --resume auto") from None
