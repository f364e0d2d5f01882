"""Errors a user can act on. Each message is one line: what is wrong, where, and what to do.

FANoiseError
├── InputError (also a ValueError)   what the user gave is wrong: an option, a file, a value
│   ├── ConfigError                  a training or build setting
│   ├── CatalogError                 a catalogue, pair file or query file
│   └── ImageError                   one image that cannot be read
├── ArtifactError                    a run, index or result that is missing, damaged, or of another model
└── TrainingError                    training cannot go on (loss is not finite, out of disk)
"""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class FANoiseError(Exception):
    """Root of every error this project raises on purpose."""


class InputError(FANoiseError, ValueError):
    """What the user gave is wrong."""


class ConfigError(InputError):
    """A setting is unknown, out of range, or contradicts another."""


class CatalogError(InputError):
    """A catalogue, pair file or query file cannot be used."""


class ImageError(InputError):
    """One image cannot be read; `reason` says why in a few words, without the path."""

    def __init__(self, reason: str, source: object = None) -> None:
        self.reason = reason
        super().__init__(f"image {str(source)!r}: {reason}" if source is not None else reason)


class ArtifactError(FANoiseError):
    """A run, index or result folder is missing a file, damaged, or belongs to another model."""


class TrainingError(FANoiseError):
    """Training stopped because going on would be wrong."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without number and file of a system error; its class where it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def printable(text: str) -> str:
    """What was read from files must not move the cursor or break a line of the terminal."""
    return "".join(c if c.isprintable() else "·" for c in text)


@contextmanager
def cli_errors(*, go_on: str = "") -> Iterator[None]:
    """Turn a `FANoiseError`, or a file the system refuses, into one line on stderr and status 2; Ctrl-C into 130.

    A `TrainingError` is status 1: the input was good, and the run went wrong. Where the reader of stdout has seen
    enough, as `head` does, nothing is said.
    Args:
        go_on: what to do after Ctrl-C, where work that was done is kept.
    """
    try:
        yield
        sys.stdout.flush()  # the interpreter would do it later, and show a traceback for a pipe that is gone
    except FANoiseError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, TrainingError) else 2) from None
    except OSError as error:  # a full disk, a folder without write permission
        if error.filename is None and error.errno is None:
            raise
        if isinstance(error, BrokenPipeError) and not _stdout_is_read():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {printable(f'{where}{error.strerror or error}')}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"interrupted; {go_on}" if go_on else "interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _stdout_is_read() -> bool:
    """False for a pipe whose reader has gone; True where there is nobody to ask."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))
