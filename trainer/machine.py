"""What one process of each machine does for all of them there, with one outcome for all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fanoise.distributed import rank, world_size
from fanoise.errors import TrainingError, one_line
from trainer.first_process import KINDS
from trainer.pair_table import Handle, PairTable


def once_per_machine(action: Callable[[], Any]) -> Any:
    """What `action` returns on the first process of this machine, while the others wait; plain values only.

    Who shares a machine is asked of the process group, not of the launcher's variables, which differ. A process that
    dies meanwhile ends the group's call on all others.
    Raises: on a process whose `action` fails what it raises; elsewhere an error of that kind and message, a
        TrainingError for what is none of ours.
    """
    if world_size() == 1:
        return action()
    first = (machines := _gathered(_machine())).index(machines[rank()])
    answer: dict[str, Any] = {}
    failure: Exception | None = None
    if first == rank():
        try:
            answer = {"found": action()}
        except Exception as error:
            failure, answer = error, {"kind": type(error).__name__, "error": one_line(error)}
    answers = _gathered(answer)
    if failure is not None:
        raise failure
    for each in answers:
        if "error" in each:
            raise KINDS.get(each["kind"], TrainingError)(each["error"])
    return answers[first]["found"]


def shared_tables(read: Callable[[], list[PairTable]]) -> list[PairTable]:
    """The tables that `read` returns, read by one process of each machine and opened by the others there.

    Raises: as `once_per_machine`.
    """
    tables: list[PairTable] = []

    def handles() -> list[Handle]:
        tables.extend(read())
        return [table.handle for table in tables]

    found = once_per_machine(handles)
    if world_size() == 1 or tables:
        opened: list[PairTable] | None = tables
    else:
        opened = _opened(found)
    if world_size() > 1:
        dist.barrier()  # the writer has its tables until all are open
    return read() if opened is None else opened


def _opened(handles: list[Handle]) -> list[PairTable] | None:
    """None where the writer's files cannot be reached, though it is on this machine: no /proc, another user."""
    try:
        return [PairTable.open(Handle(*handle)) for handle in handles]
    except OSError:
        return None


def _machine() -> str:
    """Names this machine, or the part of it in which processes see each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  # no path, but a name
    except OSError:
        return f"process {rank()}"


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * world_size()
    try:
        dist.all_gather_object(found, value)
    except RuntimeError:  # gloo's and NCCL's own words name sockets
        raise TrainingError("another process was lost while the pair files were read; it may say why itself") from None
    return found
