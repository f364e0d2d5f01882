"""Processes of a training, forked from one that has imported everything: that saves seconds for each of them."""

import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (imported for every ZeRO engine, and slow)

from trainer import engine
from trainer.config import RunConfig


def start(function: Callable[[], object], processes: int = 1, *, limit_s: int = 240) -> list[int]:
    """Call `function` in new processes with the variables a launcher would set; returns their ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gc.freeze()  # ZeRO 3 collects garbage often; all that was imported need not be searched
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            signal.alarm(limit_s)  # whoever hangs is ended
            names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
            _call_and_exit(function)
        children.append(child)
    return children


def wait(children: list[int]) -> int:
    """0 when all have ended well; else the first failure's code, negative for a signal, the others being killed."""
    running, failure = set(children), 0
    while running:
        child, status = os.wait()
        running.discard(child)
        code = os.waitstatus_to_exitcode(status)
        if code and not failure:
            failure = code
            kill(list(running))
    return failure


def kill(children: list[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)


def partition_above(size: int) -> None:
    """ZeRO 3 keeps parameters up to 100,000 elements whole on every process, thus all of a test's; now up to `size`."""
    settings = engine.deepspeed_config

    def changed(config: RunConfig) -> dict[str, Any]:
        found = settings(config)
        found["zero_optimization"]["stage3_param_persistence_threshold"] = size
        return found

    engine.deepspeed_config = changed


def _call_and_exit(function: Callable[[], object]) -> None:
    code: object = 1
    try:
        function()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)
