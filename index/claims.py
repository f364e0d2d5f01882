"""Which process encodes which shard.

Claims are byte ranges of one lock file, locked by fcntl. The system gives them back when a process ends, however it
ends, so no claim of a dead process is left to find, and no other process can be mistaken for it. Several hosts may
share a folder where the file system carries locks between them. Where it does not, which nothing here can notice, each
takes itself to be alone: they encode the same shards, and both write the index.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

_LOCK, _CLAIMS = "lock", "claims"
_PRESENCE, _ASSEMBLY, _FIRST_SHARD = 0, 1, 2


@contextmanager
def locked_plans(folder: Path) -> Iterator[None]:
    """Make `folder`, which plans are in, and keep other processes out of such blocks; empty, it goes at the end.

    Who holds this may wait for claims, but who holds claims that others wait for may not wait for this. One block a
    process: the end of a second one would end the first.
    """
    path = folder / _LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # removed between the two calls
            continue
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
            if not _is_at(file, path):  # removed while we waited
                continue
            try:
                yield
            finally:
                if _is_at(file, path) and not any(entry.name != _LOCK for entry in folder.iterdir()):
                    path.unlink()
                    with suppress(OSError):  # another process is opening its lock
                        folder.rmdir()
            return
        finally:
            os.close(file)


class Claims:
    """Those of this process on the shards in `folder`. One object a process: closing a second one would lose them."""

    _held: ClassVar[set[Path]] = set()

    def __init__(self, folder: Path) -> None:
        self._path = folder / _CLAIMS
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        self._held.add(self._path.resolve())

    @classmethod
    def are_free(cls, folder: Path) -> bool:
        """Whether no process, this one included, works on this folder. To be asked while plans are locked."""
        if (folder / _CLAIMS).resolve() in cls._held:
            return False
        with cls(folder) as claims:
            return claims.alone()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._held.discard(self._path.resolve())
        os.close(self._file)

    def join(self) -> None:
        """Show others that this folder is being worked on, until the end of this process."""
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, _PRESENCE)

    def alone(self) -> bool:
        """True if no other process works on this folder; then none can join it, either, until `join`."""
        return self._lock(_PRESENCE)

    def are_void(self) -> bool:
        """True if the folder was removed, or made anew: others do not see these claims."""
        return not _is_at(self._file, self._path)

    def take(self, shard: int) -> bool:
        """True if the shard is this process's now."""
        return self._lock(_FIRST_SHARD + shard)

    def release(self, shard: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _FIRST_SHARD + shard)

    def take_assembly(self) -> bool:
        """True if this process is the one that joins the shards to an index."""
        return self._lock(_ASSEMBLY)

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # POSIX leaves it open which of the two says "held"
            return False
        return True


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
