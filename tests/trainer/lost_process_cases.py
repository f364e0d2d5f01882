"""Training runs, by the command line's own `main`, of which a part is killed in the middle of the second step.

Run by test_lost_processes.py with a JSON object: `worker` and `process`, the options of a run of one process with a
data worker, which is killed, and of a run of two, the second of which is. What the first process says goes to
standard error; on standard output is its status, one line a run.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fanoise.process import prepare_process, settle_accelerator

prepare_process()
settle_accelerator()

import forked  # noqa: E402
import torch  # noqa: E402

import trainer.train  # noqa: E402
from fanoise.distributed import rank  # noqa: E402
from trainer.__main__ import main as train  # noqa: E402


def worker() -> None:
    """The signal that tells of it comes while nobody asks for a batch."""
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    time.sleep(60)


def process() -> None:
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def run(fault: Callable[[], None], options: list[str]) -> int:
    torch.set_num_threads(1)
    step_of = trainer.train.train_step

    def train_step(engine: Any, objective: Any, batch: Any, *rest: Any, **options: Any) -> dict[str, Any]:
        if batch.step == 2:
            fault()
        return step_of(engine, objective, batch, *rest, **options)

    trainer.train.train_step = train_step
    return train(options)


def main() -> None:
    for name, options in json.loads(sys.argv[1]).items():
        children = forked.start(
            partial(run, {"worker": worker, "process": process}[name], options), 1 + (name != "worker")
        )
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(statuses[0], flush=True)


if __name__ == "__main__":
    main()
