"""Training runs that are killed and resumed, by the command line's own `main`.

Run by test_resume.py with a JSON object: name -> the parts of a run, one after the other. A part is a number of
`processes`, the command line's `options`, and, but for the last, how it ends: `until`, the log of so many steps, or
`writing` or `written`, the checkpoint of a step. `damage` cuts a file of the newest checkpoint before the part starts.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fanoise.process import prepare_process, settle_accelerator

prepare_process()
settle_accelerator()

import forked  # noqa: E402
import torch  # noqa: E402

import trainer.train  # noqa: E402, F401  (imported once, for all processes)
from trainer import checkpoint  # noqa: E402
from trainer.__main__ import main as train  # noqa: E402


def run(part: dict[str, Any]) -> int:
    torch.set_num_threads(1)
    forked.partition_above(0)
    if "writing" in part:
        die_writing(part["writing"])
    if "written" in part:
        die_written(part["written"])
    return train(part["options"])


def die_writing(step: int) -> None:
    """After the first of the three files of a checkpoint."""
    write = checkpoint.save_file

    def save_file(content: dict[str, torch.Tensor], file: Path) -> None:
        write(content, file)
        if f"step_{step}." in str(file.parent):
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = save_file


def die_written(step: int) -> None:
    """Once a checkpoint has its name, before older ones are removed."""
    stage = checkpoint.staged_directory

    @contextmanager
    def staged_directory(target: Path) -> Iterator[Path]:
        with stage(target) as staging:
            yield staging
        if target.name == f"step_{step}":
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.staged_directory = staged_directory


def kill_at(children: list[int], log: Path, lines: int) -> None:
    while not log.exists() or log.read_bytes().count(b"\n") < lines:
        if os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            sys.exit(f"{log}: ended before step {lines}")
        time.sleep(0.001)
    forked.kill(children)


def main() -> None:
    for name, parts in json.loads(sys.argv[1]).items():
        for part in parts:
            folder = Path(part["folder"])
            if "damage" in part:
                newest = max(folder.glob("checkpoints/step_*"), key=lambda path: int(path.name.removeprefix("step_")))
                file = next(newest.glob("weights-*"))
                file.write_bytes(file.read_bytes()[:-1])
            children = forked.start(partial(run, part), part["processes"])
            if "until" in part:
                kill_at(children, folder / "metrics.jsonl", part["until"])
            code, expected = (
                forked.wait(children),
                -signal.SIGKILL if {"until", "writing", "written"} & set(part) else 0,
            )
            if code != expected:
                sys.exit(f"{name}: {part} ended with {code}, expected {expected}")


if __name__ == "__main__":
    main()
