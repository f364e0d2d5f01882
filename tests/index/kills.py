"""SIGKILL in the middle of build, add, update, delete and compact: is the folder then the old index or the new one?

A child process runs one command after another on one folder, with an embedder that costs nothing. It is killed at a
random moment: after a random time, or right before a random one of its calls that touch the folder (the time between
two such calls does not matter to what is on the disk, but some are so close together that a clock never hits them).
After each kill the folder must open, with all checksums compared, as exactly the state before or the state after: the
same ids in the same order with the same texts, vectors and pictures. Then the next command must go through: the same
again if the old state was found, else another one.
"""

import csv
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from PIL import Image

from fanoise.catalog import Item
from index.build import build_index
from index.manifest import ENCODING, MANIFEST, THUMBNAILS, Manifest
from index.search import Index
from index.update import add_items, compact_index, delete_items
from index.verify import verify_index
from tests.fake_embedder import FakeEmbedder

ROOT = Path(__file__).parents[2]
DIM = 24
PICTURES = 12
FACTORIES = ("Flat", "HNSW8", "IVF4,Flat")

State = tuple[tuple[str, str], ...] | None
"""(id, text) of every item, in order; None where there is no index."""


class InstantEmbedder(FakeEmbedder):
    """Unit vectors drawn from a digest of the text."""

    def __init__(self) -> None:
        super().__init__("instant", dim=DIM, weights="instant")

    def vector_of(self, item: Item) -> np.ndarray:
        return vector_of(item.text or "")


def vector_of(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    row = np.random.default_rng(seed).normal(size=DIM)
    return (row / np.linalg.norm(row)).astype(np.float32)


# the child


def serve() -> None:
    """Run the commands that come as JSON lines, each in a fork of this process, which has imported everything."""
    pa.array(np.zeros(1))  # imports pandas, where it is installed
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os._exit(_run(task, writer))
        os.close(writer)
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            calls = pipe.read()
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "calls": int(calls or 0)}), flush=True)


def _run(task: dict[str, Any], pipe: int) -> int:
    signal.alarm(120)  # whoever hangs is ended
    calls = 0
    folder = str(Path(task["folder"]).resolve())
    is_counting = not task["in_commit"]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls, is_counting
        if event == "os.rename" and folder in str(arguments[1]) and "generation-" in str(arguments[1]):
            is_counting = True
        touches = any(isinstance(argument, (str, os.PathLike)) and folder in str(argument) for argument in arguments)
        if is_counting and (touches or event == "fcntl.lockf"):
            calls += 1
            if calls == task["die_at"]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        COMMANDS[task["command"]](Path(task["folder"]), task)
    except BaseException:
        traceback.print_exc()
        return 1
    os.write(pipe, str(calls).encode())
    return 0


def _build(folder: Path, task: dict[str, Any]) -> None:
    build_index(InstantEmbedder(), task["catalog"], folder, factory=task["factory"], progress=False)  # type: ignore[arg-type]


def _add(folder: Path, task: dict[str, Any]) -> None:
    options = {"existing": task["existing"], "shard_rows": 10, "progress": False}
    add_items(InstantEmbedder(), task["catalog"], folder, **options)  # type: ignore[arg-type]


COMMANDS = {
    "build": _build,
    "add": _add,
    "update": _add,
    "delete": lambda folder, task: delete_items(folder, ids=task["ids"]),
    "compact": lambda folder, task: compact_index(folder),
}


class Child:
    """The process that runs commands and is killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.index.kills"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.communicate(timeout=60)

    def run(
        self,
        folder: Path,
        task: dict[str, Any],
        *,
        after_s: float | None = None,
        die_at: int = 0,
        in_commit: bool = False,
    ) -> "Ended":
        """Run a task; kill it after some seconds, or before its call number `die_at`, unless it has ended.

        Args:
            in_commit: calls are counted from that on which makes the stage a generation.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        start = time.perf_counter()
        task = task | {"folder": str(folder), "die_at": die_at, "in_commit": in_commit}
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        pid = json.loads(self._process.stdout.readline())["pid"]
        if after_s is not None and not select.select([self._process.stdout], [], [], after_s)[0]:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
        answer = json.loads(self._process.stdout.readline())
        if answer["code"] not in (0, -signal.SIGKILL):
            raise AssertionError(f"{task['command']} ended with status {answer['code']}; see its message above")
        return Ended(answer["code"] == -signal.SIGKILL, answer["calls"], time.perf_counter() - start)


@dataclass(frozen=True)
class Ended:
    killed: bool
    calls: int
    """Calls that touched the folder; 0 for a process that was killed."""
    seconds: float


# the trials


@dataclass
class Trials:
    """Random commands on folders in `root`, killed at random; the state that each folder must be in is kept here."""

    root: Path
    child: Child
    seed: int = 0
    rows: int = 150
    tally: Counter[str] = field(default_factory=Counter)
    """Kills by command and by the state that was found: `delete old` was killed before its commit."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._folder = self.root / "index"
        self._state: State = None
        self._versions = 0
        self._typical: dict[str, Ended] = {}
        (self.root / "pictures").mkdir(parents=True)
        for i in range(PICTURES):
            pixels = np.random.default_rng(i).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.root / "pictures" / f"{i}.png")

    def run(self, kills: int) -> None:
        """Go on until so many processes were killed. Raises AssertionError for a state that must not be."""
        self._measure()
        while self.tally.total() < kills:
            self._trial()
        self._settle()

    def run_commits(self, command: str, calls: int) -> None:
        """Kill a command before each of the first `calls` calls of its commit."""
        self._measure()
        for number in range(1, calls + 1):
            self._kill(*self._task(command), die_at=number, in_commit=True)
        self._settle()

    def _measure(self) -> None:
        """How long each command takes and how often it touches the folder, when nobody disturbs it."""
        for command in COMMANDS:
            task, after = self._task(command)
            self._typical[command] = self.child.run(self._folder, task)
            self._state = after
            assert self._look() == after, f"{command} did not do what it should"

    def _trial(self) -> None:
        if self._random.random() < 0.1:  # a first build
            self._folder, self._state = self.root / f"index-{self._versions}", None
        few = self._state is None or len(self._state) < 20
        command = "build" if few else self._random.choice(list(COMMANDS))
        task, after = self._task(command)
        typical = self._typical[command]
        if self._random.random() < 0.5:
            self._kill(task, after, after_s=self._random.uniform(0, 1.1 * typical.seconds))
        else:
            self._kill(task, after, die_at=self._random.randint(1, typical.calls))

    def _kill(self, task: dict[str, Any], after: State, **moment: Any) -> None:
        command, before, number = task["command"], self._state, self._generation()
        ended = self.child.run(self._folder, task, **moment)
        found, is_new = self._look(), self._generation() == number + 1
        assert is_new or self._generation() == number, "a command that was killed made several generations"
        what = f"killed in {command}, {moment}, the index is neither old nor new: {_difference(found, after)}"
        assert found == (after if is_new else before), what
        assert ended.killed or is_new, f"{command} ended well and did nothing"
        self._state = found
        if ended.killed:
            self.tally[f"{command} {'new' if is_new else 'old'}"] += 1
        if is_new:
            self._go_on(*self._task("delete"))
        else:
            self._go_on(task, after)

    def _generation(self) -> int:
        """Number of the current generation, 0 for none."""
        return Manifest.read(self._folder).generation if (self._folder / MANIFEST).exists() else 0

    def _go_on(self, task: dict[str, Any], after: State) -> None:
        assert not self.child.run(self._folder, task).killed
        self._state, number = self._look(), self._generation()
        assert self._state == after, f"the next command, {task['command']}, did not go through"
        allowed = {".lock", MANIFEST, THUMBNAILS, f"generation-{number:06d}", f"generation-{number - 1:06d}"}
        if task["command"] != "build":
            allowed.add(ENCODING)  # a build removes what any command left, see index.encoding.plan
        left = {path.name for path in self._folder.iterdir()} - allowed
        assert not left, f"leftovers after {task['command']}: {sorted(left)}"

    def _settle(self) -> None:
        """Built again and compacted, a folder has no picture that none of its items shows."""
        for command in ("build", "compact", "compact"):
            self._go_on(*self._task(command))
        index = Index.open(self._folder)
        shown = {index.thumbnail(index.row_of[id]) for id in index.live_ids} - {None}
        assert set((self._folder / THUMBNAILS).rglob("*.*")) == shown, "pictures that nothing shows"

    def _look(self) -> State:
        """What is in the folder, after comparing everything that can be compared. Raises what opening it raises."""
        if not (self._folder / MANIFEST).exists():
            return None
        faults = verify_index(self._folder)
        assert not faults, faults
        index = Index.open(self._folder)
        rows = np.flatnonzero(index.live)
        hits = index.hits(np.zeros(len(rows)), rows)
        texts = [hit.fields["text"] for hit in hits]
        assert np.array_equal(index.vectors.rows(rows), np.stack([vector_of(text) for text in texts])), "wrong vectors"
        _, found = index.search(index.vectors.rows(rows[:9]), 1)
        assert found[:, 0].tolist() == rows[:9].tolist(), "FAISS finds other rows"
        return tuple((hit.id, text) for hit, text in zip(hits, texts, strict=True))

    def _task(self, command: str) -> tuple[dict[str, Any], State]:
        """A random task of a command, and the state it leads to."""
        self._versions += 1
        now = dict(self._state or ())
        known = list(now)
        new = [f"i{self._versions}-{i}" for i in range(self._random.randint(1, 40))]
        some = self._random.sample(known, k=min(len(known) // 3, self._random.randint(1, 30)))
        if command == "build":
            ids = [*known[self.rows // 2 :], *(f"b{self._versions}-{i}" for i in range(self.rows - len(known) // 2))]
            rows = {id: f"{id} of {self._versions}" for id in ids}
            task = {"catalog": self._write(rows), "factory": self._random.choice(FACTORIES)}
            return {"command": command} | task, tuple(rows.items())
        if command == "delete":
            return {"command": command, "ids": some}, tuple((id, now[id]) for id in known if id not in some)
        if command == "compact":
            return {"command": command}, self._state
        existing = "require" if command == "update" else self._random.choice(["refuse", "replace"])
        ids = {"require": some, "refuse": new, "replace": [*some, *new]}[existing]
        rows = {id: f"{id} of {self._versions}" for id in ids}
        kept = [(id, now[id]) for id in known if id not in rows]
        return {"command": command, "catalog": self._write(rows), "existing": existing}, (*kept, *rows.items())

    def _write(self, rows: dict[str, str]) -> str:
        path = self.root / f"catalog-{self._versions}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "image"])
            for i, (id, text) in enumerate(rows.items()):
                writer.writerow([id, text, f"pictures/{(i + self._versions) % PICTURES}.png" if i % 10 == 0 else ""])
        return str(path)


def _difference(found: State, expected: State) -> str:
    if found is None or expected is None:
        return "one of them is no index"
    lost, more = set(expected) - set(found), set(found) - set(expected)
    return f"{len(lost)} items lost, {len(more)} too many, {len(found)} instead of {len(expected)}"


if __name__ == "__main__":
    serve()
