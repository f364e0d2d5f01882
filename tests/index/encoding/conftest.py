import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.index.encoding.fakes import ENCODING_MARK, SplitEmbedder

ROOT = Path(__file__).parents[3]


@pytest.fixture
def split() -> SplitEmbedder:
    return SplitEmbedder()


class Server:
    """The process that forks builds."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.index.encoding.fakes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Process:
    """A build, as `subprocess.Popen` would have it."""

    def __init__(self, server: Server, options: dict[str, Any], logs: Path) -> None:
        self._server, self._logs = server, logs
        self.returncode: int | None = None
        logs.mkdir()
        self.pid = server.ask(start=options, logs=str(logs))

    @property
    def is_encoding(self) -> bool:
        """Whether it has begun with a batch, and so has a claim on a shard."""
        return (self._logs / ENCODING_MARK).exists()

    def poll(self, *, block: bool = False) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask(wait=self.pid, block=block)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout_s: float = 120) -> tuple[str, str]:
        """What it printed, once it has ended."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None:
            assert time.monotonic() < deadline, f"no end after {timeout_s} s"
            time.sleep(0.01)
        return (self._logs / "out").read_text(), (self._logs / "err").read_text()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture
def spawn(server: Server, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts builds as processes of their own; those that still run at the end of the test are killed."""
    processes: list[Process] = []

    def start(**options: Any) -> Process:
        texts = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        processes.append(Process(server, texts, tmp_path / f"process-{len(processes)}"))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.poll(block=True)


@pytest.fixture
def run_build(spawn: Callable[..., Process]) -> Callable[..., dict[str, Any]]:
    """What a build in a process of its own printed."""

    def run(**options: Any) -> dict[str, Any]:
        process = spawn(**options)
        out, err = process.communicate()
        assert process.returncode == 0 and out, err
        return json.loads(out)

    return run
