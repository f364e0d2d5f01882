"""What some of the processes do, with one outcome for all: else the others would wait for ever."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from fanoise.distributed import rank, world_size
from fanoise.errors import ArtifactError, CatalogError, ConfigError, InputError, TrainingError, one_line
from trainer.lost_processes import naming_lost_processes

_T = TypeVar("_T")
_KINDS = {kind.__name__: kind for kind in (ArtifactError, CatalogError, ConfigError, InputError, TrainingError)}
_PATIENCE = timedelta(hours=12)
"""For an action that has begun: the run's own group gives up after minutes, which slow disks and downloads can take.
With a process that ends meanwhile the wait ends at once; with a machine that vanishes, not before this."""


def on_first_process(action: Callable[[], Any]) -> Any:
    """What `action` returns on process 0, on all processes; plain values only.

    Raises: on process 0 what `action` raises; elsewhere an error of that kind and message, a TrainingError for what is
        none of ours. TrainingError where a process is lost meanwhile.
    """
    return _outcomes(action if rank() == 0 else _nothing)[0]


def once_per_machine(action: Callable[[], Any]) -> Any:
    """What `action` returns on the first process of this machine, while the others wait; plain values only.

    Who shares a machine is asked of the process group, not of the launcher's variables, which differ.
    Raises: as `on_first_process`, on the processes of all machines.
    """
    machines = _outcomes(_machine)
    first = machines.index(machines[rank()])
    return _outcomes(action if first == rank() else _nothing)[first]


def on_every_process(action: Callable[[], _T]) -> _T:
    """What `action` returns on this process, of whatever type, once it has succeeded on all.

    Raises: as `on_first_process`, where it fails on any.
    """
    own: list[_T] = []
    _outcomes(lambda: own.append(action()))
    return own[0]


def _outcomes(action: Callable[[], Any]) -> list[Any]:
    """What `action` returns on each process, by rank."""
    if world_size() == 1:
        return [action()]
    with _patient_group() as group:
        answer, failure = _attempt(action)
        answers: list[Any] = [None] * world_size()
        with naming_lost_processes():
            dist.all_gather_object(answers, answer, group=group)
    if failure is not None:
        raise failure
    for each in answers:
        if "error" in each:
            raise _KINDS.get(each["kind"], TrainingError)(each["error"])
    return [each["found"] for each in answers]


@contextmanager
def _patient_group() -> Iterator[dist.ProcessGroup]:
    with naming_lost_processes():
        dist.barrier()  # in the run's own time: making a group would wait with patience for who is lost already
    try:
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except RuntimeError as error:
        raise TrainingError(
            f"the processes cannot reach each other by gloo ({one_line(error)[:200]}); set GLOO_SOCKET_IFNAME to the "
            "network interface that they share"
        ) from None
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def _attempt(action: Callable[[], Any]) -> tuple[dict[str, Any], Exception | None]:
    try:
        return {"found": action()}, None
    except Exception as error:
        return {"kind": type(error).__name__, "error": one_line(error)}, error


def _nothing() -> None:
    pass


def _machine() -> str:
    """Names this machine, or the part of it in which processes see each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  # no path, but a name
    except OSError:
        return f"process {rank()}"
