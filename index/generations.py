"""An index folder as a sequence of generations: one writer at a time, and readers that see the old or the new one.

A writer fills a stage beside the generations, renames it to the next number and then replaces `manifest.json`: that
last step is the commit. Killed before it, the folder is as it was, and the next writer clears the leftovers away;
killed after it, it is the new one. The generation before the current one stays until the next commit, for readers that
have just read its manifest; those that come too late read the manifest again.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fanoise.errors import ArtifactError, InputError
from fanoise.storage import sync_directory, sync_files
from index.claims import Claims, locked_plans
from index.faiss_file import read_header
from index.items import are_distinct
from index.manifest import (
    DELETED,
    ENCODING,
    FAISS_INDEX,
    GENERATION_FILES,
    ITEMS,
    MANIFEST,
    REJECTS,
    THUMBNAILS,
    VECTORS,
    FileRecord,
    Manifest,
    library_versions,
)
from index.parquet import read_parquet
from index.store import VectorStore, read_deleted, write_deleted
from index.thumbnails import remove_unused

T = TypeVar("T")

LOCK = ".lock"
_PARTIAL = ".partial-"
_STAGE = f"{_PARTIAL}generation"
_GENERATION = re.compile(r"generation-(\d{6,})")
_TRIES = 5
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Locks of this process. fcntl's belong to the process: two threads would both be given one.
_held: dict[Path, str] = {}
_held_guard = threading.Lock()


class Writer:
    """What one command changes. Everything is written into `stage`; `commit` makes it the current generation."""

    def __init__(self, folder: Path, stage: Path, manifest: Manifest | None, number: int) -> None:
        self.folder, self.stage = folder, stage
        self.manifest = manifest
        """Of the current generation; None where there is none, or none that this version reads."""
        self.current = None if manifest is None else manifest.generation_in(folder)
        self._number = number
        self._kept: dict[str, FileRecord] = {}

    def keep(self, *names: str) -> None:
        """Take unchanged files of the current generation over, as links: they cost no room."""
        assert self.manifest is not None and self.current is not None, "there is no current generation"
        for name in names:
            _link(self.current / name, self.stage / name)
            self._kept[name] = self.manifest.files[name]

    def commit(self, *, fresh: bool = False, **changes: Any) -> Manifest:
        """Make the stage the current generation; returns its manifest.

        The counts, dim, precision, checksums, time and versions are taken from the files and the machine.
        Args:
            fresh: start from the manifest's defaults instead of the current manifest.
            changes: fields of the manifest.
        Raises: ArtifactError, and nothing is changed, for files that are missing or disagree.
        """
        if not (self.stage / DELETED).exists():
            write_deleted(self.stage / DELETED, np.empty(0, np.int64))
        (self.stage / REJECTS).touch()
        values: dict[str, Any] = {
            **changes,
            **self._facts(),
            "generation": self._number,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": library_versions(),
            "files": {n: self._kept[n] if n in self._kept else FileRecord.of(self.stage / n) for n in GENERATION_FILES},
        }
        base = None if fresh else self.manifest
        manifest = Manifest(**values) if base is None else replace(base, **values)
        sync_files(self.stage)  # thumbnails are on the disk: those of shards since these are finished
        self.stage.rename(manifest.generation_in(self.folder))
        sync_directory(self.folder)  # the generation must be on the disk before the manifest that names it
        if self.manifest is None:
            sync_directory(self.folder.parent)  # which a build has made a folder in
        manifest.write(self.folder)
        _clean_up(self.folder)
        return manifest

    def _facts(self) -> dict[str, Any]:
        """What the manifest says about the files, after checking that they agree."""
        missing = [name for name in GENERATION_FILES if not (self.stage / name).is_file()]
        if missing:
            raise ArtifactError(f"{self.folder}: not changed, since the new generation lacks {', '.join(missing)}")
        vectors = VectorStore.open(self.stage / VECTORS)
        deleted = read_deleted(self.stage / DELETED, len(vectors))
        with pq.ParquetFile(self.stage / ITEMS) as items:
            rows = {VECTORS: len(vectors), ITEMS: items.metadata.num_rows}
        dim, rows[FAISS_INDEX] = read_header(self.stage / FAISS_INDEX)
        if len(set(rows.values())) > 1 or dim != vectors.dim:
            found = ", ".join(f"{name} {number} rows" for name, number in rows.items())
            raise ArtifactError(
                f"{self.folder}: not changed, since the files of the new generation disagree ({found}; "
                f"dim {vectors.dim} and {dim})"
            )
        if ITEMS not in self._kept:
            self._check_ids(deleted)
        with (self.stage / REJECTS).open("rb") as file:
            rejected = sum(1 for _ in file)
        return {
            "count": len(vectors),
            "deleted": len(deleted),
            "rejected": rejected,
            "dim": vectors.dim,
            "precision": vectors.precision,
        }

    def _check_ids(self, deleted: np.ndarray) -> None:
        ids = read_parquet(self.stage / ITEMS, ["id"])["id"]
        live = np.ones(len(ids), dtype=bool)
        live[deleted] = False
        if not are_distinct(ids.filter(pa.array(live))):
            raise ArtifactError(f"{self.folder}: not changed, since ids of the new generation occur twice")


@contextmanager
def writing(folder: Path, command: str, *, create: bool = True) -> Iterator[Writer]:
    """Hold the folder's lock and a fresh stage while an index is made or changed.

    What is not committed when the block ends, in whatever way, is cleared away.
    Args:
        command: what is being done, for the message to a second writer.
        create: also take a folder without an index, or with one that cannot be read, which a commit then replaces.
    Raises: InputError naming the holder of the lock, for a folder that holds something else, or (not `create`) no
        index, or that cannot be written to; ArtifactError (not `create`) for an index that cannot be read; OSError for
        a full disk.
    """
    folder = Path(folder).resolve()
    if create:
        check_folder(folder)
    else:
        Manifest.read(folder)
    made = not folder.exists()
    with room_needed(folder), _lock(folder, command):
        _clean_up(folder)
        try:
            manifest = Manifest.read(folder)
        except (InputError, ArtifactError):
            if not create:
                raise
            manifest = None
        numbers = [0, *_generations(folder)]
        stage = folder / _STAGE
        stage.mkdir()
        try:
            yield Writer(folder, stage, manifest, max(numbers) + 1)
        finally:
            _clean_up(folder)
            if made and not (folder / MANIFEST).exists():
                _remove_if_empty(folder)


@contextmanager
def room_needed(folder: Path) -> Iterator[None]:
    """Say of a full disk, wherever in the block it shows, what it means for the index in `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        what = f"{os.strerror(error.errno)}; nothing was changed; make room and run the same command again"
        raise OSError(error.errno, what, str(folder)) from error


def read_current(folder: Path, read: Callable[[Manifest], T]) -> T:
    """What `read` makes of the current generation; again from the start where a writer replaced it meanwhile."""
    for _ in range(_TRIES):
        manifest = Manifest.read(folder)
        try:
            return read(manifest)
        except (ArtifactError, OSError):
            if Manifest.read(folder) == manifest:
                raise
    raise ArtifactError(f"{folder} was changed {_TRIES} times while it was being opened; try again when it is quiet")


def check_folder(folder: Path) -> None:
    """Refuse, before hours of encoding, a folder that is neither missing, empty, nor an index. Raises InputError."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"--out {folder} is a file; name a folder")
    names = {entry.name for entry in folder.iterdir()}
    own = {LOCK, THUMBNAILS, ENCODING}
    foreign = [name for name in names if not (name in own or name.startswith(_PARTIAL) or _GENERATION.fullmatch(name))]
    if foreign and not (MANIFEST in names and (_generations(folder) or _is_manifest(folder / MANIFEST))):
        raise InputError(f"--out {folder} is not empty and not an index; name another folder or empty it")


def _is_manifest(file: Path) -> bool:
    """Whether this is an index's, of any version. Web pages and browser extensions have files of this name, too."""
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= {"format_version", "embedder"}


def _clean_up(folder: Path) -> None:
    """Remove what no reader can need: stages, generations that were never committed, and those before the last two."""
    for path in folder.glob(f"{_PARTIAL}*"):
        _remove(path)
    try:
        manifest = Manifest.read(folder)
        kept = {manifest.generation, manifest.generation - 1}
    except InputError:  # without a manifest nothing here is committed
        manifest, kept = None, set()
    except ArtifactError:  # damaged, or of another version: everything stays until a build replaces it
        return
    sweep = manifest is None
    for number, path in _generations(folder).items():
        if number not in kept:
            sweep = sweep or manifest is None or not _same_file(path / ITEMS, manifest.generation_in(folder) / ITEMS)
            _remove(path)
    if sweep:
        sweep_thumbnails(folder)


def sweep_thumbnails(folder: Path) -> None:
    """Remove thumbnails that no generation names, nor a finished part of a build that was broken off.

    While a process encodes, nothing goes: its rows are in no part yet.
    """
    if not (folder / THUMBNAILS).exists():
        return
    with suppress(OSError), locked_plans(folder / ENCODING):  # no build begins meanwhile
        if all(map(Claims.are_free, (folder / ENCODING).glob("*/"))):
            parts = (folder / ENCODING).glob(f"*/[!.]*/{ITEMS}")
            remove_unused(folder, [*(path / ITEMS for path in _generations(folder).values()), *parts])


def _remove(path: Path) -> None:
    """Remove a file or folder as far as it goes: what stays, perhaps because a reader has it open, goes next time."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _remove_if_empty(folder: Path) -> None:
    """Leave no folder behind where a first build came to nothing. We hold the lock, which goes last."""
    with suppress(OSError):  # a file that somebody put there meanwhile must not hide the error that ended the build
        if {path.name for path in folder.iterdir()} <= {LOCK}:
            (folder / LOCK).unlink()
            folder.rmdir()


def _generations(folder: Path) -> dict[int, Path]:
    matches = ((_GENERATION.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except FileNotFoundError:
        return False


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system (of a linked folder), or one without hard links
        if target.exists():
            raise
        shutil.copyfile(source, target)


@contextmanager
def _lock(folder: Path, command: str) -> Iterator[None]:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": command,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with _held_guard:
        if folder in _held:
            raise _busy(folder, _held[folder])
        _held[folder] = _describe(holder)
    try:
        descriptor = _acquire(folder)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
            yield
        finally:
            os.close(descriptor)
    finally:
        with _held_guard:
            del _held[folder]


def _acquire(folder: Path) -> int:
    """A descriptor that holds the lock until it is closed or this process ends, however it ends.

    The lock is fcntl's: flock's would live on in the worker processes of a writer that was killed. The price: closing
    any other descriptor of the file in this process would release it.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder was removed between the two calls
            continue
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise InputError(
                f"{error.filename} cannot be written ({error.strerror}); changing an index means writing into its "
                "folder: make it writable, or name another"
            ) from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == (folder / LOCK).stat().st_ino:
                return descriptor
            os.close(descriptor)  # the lock of a folder that is gone
        except FileNotFoundError:
            os.close(descriptor)
        except (BlockingIOError, PermissionError):  # POSIX leaves it open which of the two says "held"
            content = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise _busy(folder, _read_holder(content)) from None
        except OSError as error:
            os.close(descriptor)
            raise InputError(
                f"{folder}: its file system has no locks ({error.strerror}), so two writers could not be kept apart; "
                "change the index in a folder on another disk, and copy it here"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise


def _read_holder(content: bytes) -> str:
    try:
        return _describe(json.loads(content))
    except (ValueError, KeyError, TypeError):  # it has the lock, but has not written its name yet
        return "another process"


def _describe(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} ({holder['command']}, since {holder['since']})"


def _busy(folder: Path, holder: str) -> InputError:
    return InputError(f"{folder} is being changed by {holder}; wait for it to end, or stop it; searching goes on")
