"""What one process of each machine does for all of them there, with one outcome for all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fanoise.distributed import rank, world_size
from fanoise.errors import TrainingError, one_line
from trainer.first_process import KINDS
from trainer.pair_table import Handle, PairTable

_PATIENCE = timedelta(days=7)
"""With a process that is lost the wait ends at once; this is for slow disks and downloads."""


def once_per_machine(action: Callable[[], Any]) -> Any:
    """What `action` returns on the first process of this machine, while the others wait; plain values only.

    Who shares a machine is asked of the process group, not of the launcher's variables, which differ. A process that
    dies meanwhile ends the group's call on all others.
    Raises: on a process whose `action` fails what it raises; elsewhere an error of that kind and message, a
        TrainingError for what is none of ours.
    """
    if world_size() == 1:
        return action()
    with _patient_group() as group:
        return _once_per_machine(action, group)


def shared_tables(read: Callable[[], list[PairTable]]) -> list[PairTable]:
    """The tables that `read` returns, read by one process of each machine and opened by the others there.

    Raises: as `once_per_machine`.
    """
    if world_size() == 1:
        return read()
    tables: list[PairTable] = []

    def handles() -> list[Handle]:
        tables.extend(read())
        return [table.handle for table in tables]

    with _patient_group() as group:
        found = _once_per_machine(handles, group)

        def open_or_read() -> None:
            if not tables:
                tables.extend(_opened(found) or read())

        _each(open_or_read, group)  # the writer has its tables until all are open
    return tables


@contextmanager
def _patient_group() -> Iterator[dist.ProcessGroup]:
    """All processes, waiting for as long as reading takes: the run's own group gives up after ten minutes."""
    try:
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except RuntimeError:
        raise _lost() from None
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def _once_per_machine(action: Callable[[], Any], group: dist.ProcessGroup) -> Any:
    first = (machines := _gathered(_machine(), group)).index(machines[rank()])
    return _each(action if first == rank() else lambda: None, group)[first]


def _each(action: Callable[[], Any], group: dist.ProcessGroup) -> list[Any]:
    """What `action` returns on each process, by rank. Raises: as `once_per_machine`, on all if on any."""
    failure: Exception | None = None
    try:
        answer = {"found": action()}
    except Exception as error:
        failure, answer = error, {"kind": type(error).__name__, "error": one_line(error)}
    answers = _gathered(answer, group)
    if failure is not None:
        raise failure
    for each in answers:
        if "error" in each:
            raise KINDS.get(each["kind"], TrainingError)(each["error"])
    return [each["found"] for each in answers]


def _opened(handles: list[Handle]) -> list[PairTable]:
    """Empty where the writer's files cannot be reached, though it is on this machine: no /proc, another user."""
    try:
        return [PairTable.open(Handle(*handle)) for handle in handles]
    except OSError:
        return []


def _machine() -> str:
    """Names this machine, or the part of it in which processes see each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  # no path, but a name
    except OSError:
        return f"process {rank()}"


def _gathered(value: Any, group: dist.ProcessGroup) -> list[Any]:
    found: list[Any] = [None] * world_size()
    try:
        dist.all_gather_object(found, value, group=group)
    except RuntimeError:  # gloo's own words name sockets
        raise _lost() from None
    return found


def _lost() -> TrainingError:
    return TrainingError("another process was lost while the pair files were read; it may say why itself")
