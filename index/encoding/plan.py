"""What a build is going to do, as a digest: shards under the same digest belong to the same build."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fanoise.catalog import catalog_root
from fanoise.catalog.patterns import is_pattern, pattern_files
from fanoise.errors import ArtifactError, InputError
from fanoise.storage import staged_directory, write_atomic
from index.checked import UNFIT
from index.claims import Claims, locked_plans
from index.encoding.shard import ShardOptions, images_are_as_they_were
from index.manifest import ENCODING, ITEMS, REJECTS, VECTORS, Manifest
from index.store import VectorStore

_VERSION = 6
"""To be raised with any change in what a shard holds."""
_THREADS = 8
_PLAN = "plan.json"
_ASSEMBLED, _ADDED = "assembled", "added"
_SHARD = "shard-"
_AGAIN = "again-"
_REMOVED = ".partial-encoding"  # in the index folder, where any writer clears it away


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides which shards there are and what is in them."""

    catalog: list[Any]
    """Of `catalog_state`."""
    reading: Mapping[str, Any]
    """How the catalogue is read."""
    fingerprint: Mapping[str, str]
    """Of the embedder."""
    shard_rows: int
    options: ShardOptions

    @property
    def digest(self) -> str:
        content = [_VERSION, asdict(self)]
        return _digest(content)[:16]

    @property
    def kin(self) -> str:
        """Of plans for a catalogue of this name: vectors of one can stand for those of the other."""
        return _digest([self.catalog[0], dict(self.fingerprint), self.options.dim, self.options.precision])[:8]


def catalog_state(catalog: Path) -> list[Any]:
    """A catalogue's name, and a digest over names, sizes and times of all its files.

    Where it lies is not part of it, so that it can be moved, and be at different paths on different hosts; nor is what
    a table's paths lead to, which `PlanFolder.open` looks at.
    """
    root, total, count = catalog_root(catalog), 0, 0
    for file in _files(catalog):
        try:
            status = file.stat()
        except OSError:  # a broken link, or gone meanwhile
            continue
        facts = [str(file.relative_to(root)), status.st_size, status.st_mtime_ns]
        digest = hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).digest()
        total, count = (total + int.from_bytes(digest)) % 2**256, count + 1  # in whatever order they are listed
    return [catalog.name, count, f"{total:064x}"]


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _files(catalog: Path) -> Iterator[Path]:
    if catalog.is_dir():
        yield from (Path(parent, name) for parent, _, names in os.walk(catalog) for name in names)
    elif is_pattern(catalog):
        yield from pattern_files(catalog)
    else:
        yield catalog


class PlanFolder:
    """DIR/encoding/<kin>-<digest>: the finished shards of a build, an add or an update until they are all there.

    Shards are removed when what is of use in them is in the index: after a build those of all plans, after an add or
    update those of its kin, among them tries of a catalogue that was changed since. A build that starts afresh removes
    all before. Whatever else is done to the index meanwhile, the same command goes on with them.
    """

    def __init__(self, index: Path, plan: Plan, root: Path | None = None) -> None:
        """
        Args:
            root: folder of the catalogue; none leaves shards whose images were changed as they are.
        """
        self.index = index
        self.path = index / ENCODING / f"{plan.kin}-{plan.digest}"
        self.plan = plan
        self._root = root

    def open(self, *, fresh: bool) -> Claims:
        """Make the folder, or go on with the one that is there, unless an index was made of its shards.

        Args:
            fresh: remove finished shards first, unless other processes are at work on them.
        Raises: InputError where processes with another plan are at work on the same index.
        """
        while True:
            with locked_plans(self.path.parent):  # of two plans that begin at once, the second one sees the first
                self._remove_others(all_of_them=fresh)
                self.path.mkdir(exist_ok=True)
                with ExitStack() as stack:  # else others would wait for claims of a process that does not use them
                    claims = stack.enter_context(Claims(self.path))
                    if claims.alone():
                        if _remove_committed(self.index, _current(self.index)):
                            continue
                        self._reconsider(fresh=fresh)
                    claims.join()
                    if not (self.path / _PLAN).exists():
                        self._note_start()
                    stack.pop_all()
                    return claims

    def _note_start(self) -> None:
        started = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
        facts = json.dumps({**asdict(self.plan), "started": started}, indent=2, default=str)
        write_atomic(self.path / _PLAN, facts + "\n")

    def shard(self, number: int) -> Path:
        return self.path / f"{_SHARD}{number:05d}"

    def is_done(self, number: int) -> bool:
        return self.shard(number).is_dir()

    def done(self) -> list[int]:
        return sorted(int(path.name.removeprefix(_SHARD)) for path in self.path.glob(f"{_SHARD}*"))

    def committing(self, number: int) -> AbstractContextManager[Path]:
        """An empty folder that becomes the shard when the block ends well."""
        return staged_directory(self.shard(number))

    def put_aside(self, number: int) -> None:
        """Make a shard one that is to be done again; its rows stay known."""
        aside = self.path / f"{_AGAIN}{number:05d}"
        shutil.rmtree(aside, ignore_errors=True)
        self.shard(number).rename(aside)

    def earlier_shards(self) -> Iterator[Path]:
        """Finished shards of other plans, and of this one those to be done again; they may know rows of this one."""
        for path in sorted(self.path.parent.glob("*/*-*")):
            if path.name.startswith(_AGAIN) or (path.parent != self.path and path.name.startswith(_SHARD)):
                yield path

    def mark_assembled(self, items: Path, *, added: bool = False) -> None:
        """Remember that `items`, an items.parquet about to be committed, holds all shards: by a link to it.

        It tells `remove_finished`, should this process be killed before `remove_assembled`.
        Args:
            added: to the rows that were there; else the index is made of these shards alone.
        """
        mark = self.path / (_ADDED if added else _ASSEMBLED)
        mark.unlink(missing_ok=True)
        with suppress(OSError):  # a file system without hard links
            mark.hardlink_to(items)

    def remove_assembled(self, *, added: bool = False) -> None:
        """Once that is committed: remove the shards, and those of other plans that are of no use any more."""
        with locked_plans(self.path.parent):
            _remove_used(self.path, self.index, added=added)

    def remove_if_empty(self, claims: Claims) -> None:
        """Leave nothing behind where no row was encoded."""
        if claims.are_void():
            return
        with locked_plans(self.path.parent):
            if claims.are_void() or any(self.path.glob(f"{_AGAIN}*")) or not claims.alone():
                return  # void: what is there now is another process's
            if not any(len(VectorStore.open(self.shard(number) / VECTORS)) for number in self.done()):
                _remove(self.path, self.index)

    def _reconsider(self, *, fresh: bool) -> None:
        """Put shards with rejects aside, and those with images that were changed: their good rows stay known."""
        numbers = self.done()
        if fresh:
            for number in numbers:
                shutil.rmtree(self.shard(number))
            return
        with ThreadPoolExecutor(_THREADS) as threads:  # a look at a file on another host waits for an answer
            for number, is_good in zip(numbers, threads.map(self._is_good, numbers), strict=True):
                if not is_good:
                    self.put_aside(number)

    def _is_good(self, number: int) -> bool:
        shard = self.shard(number)
        if (shard / REJECTS).stat().st_size:  # what was wrong with them may be mended
            return False
        return self._root is None or images_are_as_they_were(shard, self._root)

    def _remove_others(self, *, all_of_them: bool) -> None:
        """Remove what other plans left, unless it is of use; make sure that nobody is at work on them."""
        for path in sorted(self.path.parent.glob("*/")):
            if path == self.path:
                continue
            try:
                with Claims(path) as claims:
                    if not claims.alone():
                        raise InputError(
                            f"{self.index} is being built from another catalogue, with other options or "
                            f"another embedder ({path / _PLAN} says which); wait for that to end, or stop it"
                        )
                    if all_of_them or not any(path.glob("*-*")):
                        shutil.rmtree(path, ignore_errors=True)
            except FileNotFoundError:
                continue


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """Finished shards of a build, an add or an update that has not come to its end."""

    folder: Path
    catalog: str
    """Its file's or folder's name."""
    since: str
    """ISO 8601."""
    size_bytes: int


def unfinished(index: Path) -> Iterator[Unfinished]:
    """What lies in the index folder of commands that were broken off, or are at work."""
    for path in sorted((index / ENCODING).glob("*/")):
        with suppress(OSError, *UNFIT):  # gone meanwhile, or a plan that was not written yet
            plan = json.loads((path / _PLAN).read_bytes())
            size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            since = str(plan["started"]["since"])
            yield Unfinished(folder=path, catalog=str(plan["catalog"][0]), since=since, size_bytes=size_bytes)


def remove_finished(index: Path, current: Path | None) -> None:
    """Remove the shards that are in `current`, a generation, even if the process that committed it was killed then."""
    if (index / ENCODING).exists():
        with locked_plans(index / ENCODING):
            _remove_committed(index, current)


def _remove_committed(index: Path, current: Path | None) -> bool:
    """True if there were shards that are in `current`, a generation. The plans are locked."""
    if current is None or not (current / ITEMS).exists():
        return False
    removed = False
    for mark in (_ASSEMBLED, _ADDED):
        for plan in _marked(index / ENCODING, mark, current):
            removed |= _remove_used(plan, index, added=mark == _ADDED)
    return removed


def _remove_used(plan: Path, index: Path, *, added: bool) -> bool:
    """Remove what is of no use once the shards of a plan are in the index; True if there was any. The plans are locked.

    Args:
        added: leave the plans that are no kin, and those that others are at work on.
    """
    if not plan.exists():  # gone with another one
        return False
    if not added:
        _remove(plan.parent, index)
        return True
    removed = False
    for path in plan.parent.glob(f"{plan.name.partition('-')[0]}-*/"):
        with Claims(path) as claims:
            if not claims.alone():
                continue
        _remove(path, index)
        removed = True
    return removed


def _marked(encoding: Path, mark: str, generation: Path) -> list[Path]:
    """The plans whose shards went into this generation."""
    return [path.parent for path in encoding.glob(f"*/{mark}") if path.samefile(generation / ITEMS)]


def _current(index: Path) -> Path | None:
    """The current generation, if there is one that can be told."""
    try:
        return Manifest.read(index).generation_in(index)
    except (InputError, ArtifactError):
        return None


def _remove(folder: Path, index: Path) -> None:
    """Remove a folder at once: a process that looks into it meanwhile must not take its shards for not yet done."""
    aside = index / f"{_REMOVED}-{folder.name}"
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
