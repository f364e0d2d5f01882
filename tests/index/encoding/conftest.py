import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.index.encoding.fakes import SplitEmbedder

ROOT = Path(__file__).parents[3]


@pytest.fixture
def split() -> SplitEmbedder:
    return SplitEmbedder()


@pytest.fixture
def spawn() -> Any:
    """Starts builds as processes of their own; those that still run at the end of the test are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(**options: Any) -> "subprocess.Popen[str]":
        texts = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.index.encoding.fakes", json.dumps(texts)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_build(spawn: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """What a build in a process of its own printed."""

    def run(**options: Any) -> dict[str, Any]:
        out, err = spawn(**options).communicate(timeout=300)
        assert out, err
        return json.loads(out)

    return run
