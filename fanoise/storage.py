"""Files that are either whole or absent: write to a temporary name, fsync, rename."""

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fanoise.errors import InputError

_STAGING = ".partial-"
_UMASK = os.umask(0o077)
os.umask(_UMASK)  # it can only be read by setting it, which is safe here, before there are threads
_SECONDS_UNTIL_OLD = 24 * 3600
"""Since the last write, after which a folder that another host was staging is a leftover; no clock is so wrong."""


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` in one step: a reader, or a crash, sees the old content or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{_STAGING}{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        share(temporary)  # mkstemp makes private files
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def share(path: Path) -> None:
    """Give a file that a library made private the rights of any new file: artefacts are meant to be shared."""
    path.chmod(0o666 & ~_UMASK)


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `target` on success and vanishes on error.

    An existing `target` is moved aside just before the rename and removed after it; the last rename is the commit.
    Leftovers of attempts that were killed are removed first, or put back where only the old state is whole; those of
    another host, whose processes cannot be seen from here, and those for other targets beside it, after a day.
    """
    target = Path(target).resolve()  # through links, so that what a link points to is replaced and the link stays
    if target.is_file():
        raise InputError(f"{target} is a file; choose another folder, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    previous = target.with_name(f"{_STAGING}{target.name}.old")
    _clean_up(target, previous)
    staging = target.with_name(f"{_STAGING}{target.name}.{os.getpid()}@{socket.gethostname()}")
    staging.mkdir()
    try:
        yield staging
        sync_files(staging)
        if target.exists():
            target.rename(previous)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise
    sync_directory(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _clean_up(target: Path, previous: Path) -> None:
    if previous.exists() and not target.exists():  # killed between the two renames
        previous.rename(target)
    shutil.rmtree(previous, ignore_errors=True)
    leftover = re.compile(re.escape(_STAGING) + r"(.+)\.(\d+)@(.*)", re.DOTALL)
    for path in target.parent.iterdir():
        match = leftover.fullmatch(path.name)
        if match is None:
            continue
        process, is_here, is_ours = int(match[2]), match[3] == socket.gethostname(), match[1] == target.name
        # a container of the same name may be at work on other targets, under numbers that are not seen here
        is_alive = _is_running(process) if is_here and is_ours else _is_recent(path)
        if not is_alive:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process != os.getpid()


def _is_recent(folder: Path) -> bool:
    """Whether anything was written in a folder within the last day."""
    newest = 0.0
    for parent, _, names in os.walk(folder):
        for path in (Path(parent), *(Path(parent, name) for name in names)):
            with suppress(FileNotFoundError):  # renamed or removed meanwhile
                newest = max(newest, path.stat().st_mtime)
    return time.time() - newest < _SECONDS_UNTIL_OLD


def sync_files(folder: Path) -> None:
    """Wait until every file under `folder` is on the disk, and every name in it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_directory(path)
    sync_directory(folder)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_directory(path: Path) -> None:
    """Wait until the names in a folder, renamed ones among them, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
