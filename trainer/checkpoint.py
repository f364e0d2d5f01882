"""Checkpoints that are whole or absent, hold no pickle, and fit any ZeRO stage and number of processes.

`checkpoints/step_N/` holds safetensors files of at most about a gigabyte, fp32, by parameter name: `weights-*` (the
trainable parameters), `exp_avg-*` and `exp_avg_sq-*` (AdamW's means); and `state.json`, with step counts, the position
of the schedule, and the digest of every file. Nothing else is state: data order, augmentation, dropout and noise are
functions of (seed, step), so a resumed run repeats the losses of an uninterrupted one. Process 0 writes and reads, one
tensor at a time; no process ever holds all of them.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fanoise.distributed import rank, world_size
from fanoise.errors import ArtifactError, TrainingError, one_line
from fanoise.storage import sha256_file, share, staged_directory, write_atomic
from trainer.full_state import (
    MOMENTS,
    WEIGHTS,
    full_shape,
    full_tensors,
    optimizer_steps,
    refresh_model,
    set_full_tensor,
    set_optimizer_steps,
    trainable_parameters,
)
from trainer.outcomes import on_first_process

_FOLDER = "checkpoints"
_NAME = re.compile(r"step_(\d+)")
_STATE_FILE = "state.json"
_FORMAT_VERSION = 1
_FILE_BYTES = 2**30


def save_checkpoint(engine: Any, run: Path, step: int, *, keep: int) -> None:
    """Write `checkpoints/step_N`, then drop the oldest beyond `keep`. Called by all processes.

    Raises: TrainingError on all of them when it cannot be written; the older ones then still stand.
    """
    folder = run / _FOLDER
    if step == 0:
        set_optimizer_steps(engine, 0)  # before its first step AdamW has nothing to write
    facts = {
        "step": step,
        "optimizer_steps": optimizer_steps(engine),
        "schedule": engine.lr_scheduler.state_dict(),
    }
    failure = _write(engine, folder / f"step_{step}", (WEIGHTS, *MOMENTS), facts)
    if failure:
        raise TrainingError(
            f"{folder}: the checkpoint of step {step} could not be written ({failure}); older ones are intact: "
            "make room and go on with --resume auto"
        )
    if rank() == 0:
        steps = _steps(run)
        # what is beyond this step was damaged, and passed over when the run was resumed
        for old in {*steps[: steps.index(step) + 1][:-keep], *(other for other in steps if other > step)}:
            shutil.rmtree(folder / f"step_{old}", ignore_errors=True)
        for leftover in folder.glob(".partial-step_*"):  # of a killed run that saved at other steps
            shutil.rmtree(leftover, ignore_errors=True)


def load_newest_checkpoint(engine: Any, run: Path) -> int:
    """Restore the newest intact checkpoint; returns its step, 0 when there is none. Called by all processes.

    A damaged one is passed over with a note on stderr: the run repeats the steps since the one before it, and their
    losses. The caller cuts the logs (`cut_log`) to the step returned.
    Raises: ArtifactError when all are damaged, or hold other parameters than the model's.
    """
    facts = on_first_process(lambda: _newest_intact(engine, run))
    if facts is None:
        return 0
    set_optimizer_steps(engine, facts["optimizer_steps"])
    _read(engine, run / _FOLDER / f"step_{facts['step']}", (WEIGHTS, *MOMENTS), facts["files"])
    engine.lr_scheduler.load_state_dict(facts["schedule"])
    for group, lr in zip(engine.optimizer.param_groups, engine.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = lr  # the schedule sets it only at its next step
    engine.global_steps = facts["step"]
    engine.global_samples = facts["step"] * world_size()  # by which DeepSpeed counts in its own monitor entries
    return facts["step"]


def save_weights(engine: Any, folder: Path, *, step: int) -> None:
    """Replace `folder` by the trainable weights of now (fp32), without AdamW's means. Called by all processes.

    Save before the checkpoint of the same step: what a kill interrupts here, the resumed run then repeats.
    Raises: TrainingError on all processes when it cannot be written; what was in `folder` then still stands.
    """
    failure = _write(engine, folder, (WEIGHTS,), {"step": step})
    if failure:
        raise TrainingError(
            f"{folder}: the weights could not be written ({failure}); the checkpoints are intact: make room and go on "
            "with --resume auto"
        )


def load_weights(engine: Any, folder: Path) -> int:
    """Put what `save_weights` wrote into the model and the optimiser's masters; returns the step it is of.

    Called by all processes.

    Raises: ArtifactError when it is missing, damaged, or of another model.
    """
    facts = on_first_process(lambda: _intact(engine, folder, (WEIGHTS,)))
    _read(engine, folder, (WEIGHTS,), facts["files"])
    return facts["step"]


def gathered_state_dict(engine: Any, lora: bool) -> dict[str, Tensor] | None:
    """What `save_pretrained` needs under ZeRO 3, where every process holds a part of each parameter.

    Args:
        lora: only the trainable parameters, not those of the base.
    Returns: the whole tensors on the CPU of process 0, in the model's dtype; none elsewhere, and in other stages, where
        the model itself is whole.
    """
    model = engine.module.model
    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return None
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not lora:
            with deepspeed.zero.GatheredParameters([parameter]):
                if rank() == 0:
                    state[name] = parameter.detach().to("cpu", copy=True)
    return state if rank() == 0 else None


def cut_log(file: Path, step: int) -> None:
    """Drop lines of a JSONL log after `step`: the resumed run writes them again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line + "\n")
        except ValueError:
            continue  # the line that was being written when the run was killed; other processes' may follow
    write_atomic(file, "".join(kept))


def _steps(run: Path) -> list[int]:
    matches = (_NAME.fullmatch(path.name) for path in (run / _FOLDER).glob("step_*"))
    return sorted(int(match[1]) for match in matches if match)


def _write(engine: Any, folder: Path, kinds: tuple[str, ...], facts: dict[str, Any]) -> str | None:
    """Returns what went wrong on process 0, on all processes."""
    tensors = ((kind, name, tensor) for kind in kinds for name, tensor in full_tensors(engine, kind))
    failure = None
    if rank() == 0:
        try:
            with staged_directory(folder) as staging:
                files = _write_files(staging, tensors)
                state = {"format_version": _FORMAT_VERSION, **facts, "files": files}
                write_atomic(staging / _STATE_FILE, json.dumps(state, indent=2) + "\n")
        except Exception as error:  # whatever it is, the other processes wait for its outcome
            failure = one_line(error)
    for _ in tensors:  # the other processes, and a first one that failed, still take part in the gathering
        pass
    return on_first_process(lambda: failure)


def _write_files(folder: Path, tensors: Iterable[tuple[str, str, Tensor]]) -> dict[str, str]:
    """Returns the digest of each file."""
    digests: dict[str, str] = {}
    for kind, content in _portions(tensors):
        file = folder / f"{kind}-{len(digests):05}.safetensors"
        save_file(content, file)
        share(file)  # it makes private files
        digests[file.name] = sha256_file(file)
    return digests


def _portions(tensors: Iterable[tuple[str, str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Tensors of one kind, by name, until they fill a file."""
    portion: dict[str, Tensor] = {}
    portion_kind, size = "", 0
    for kind, name, tensor in tensors:
        tensor = tensor.to("cpu", torch.float32, copy=True).contiguous()
        if portion and (kind != portion_kind or size + tensor.nbytes > _FILE_BYTES):
            yield portion_kind, portion
            portion, size = {}, 0
        portion[name], portion_kind, size = tensor, kind, size + tensor.nbytes
    if portion:
        yield portion_kind, portion


def _read(engine: Any, folder: Path, kinds: tuple[str, ...], files: Iterable[str]) -> None:
    for kind in kinds:
        source = _by_name(folder, kind, files) if rank() == 0 else {}
        for name, parameter in trainable_parameters(engine).items():
            shape = full_shape(parameter)
            value = source[name].get_tensor(name) if rank() == 0 else torch.empty(shape)
            value = value.to(_device(engine))
            if world_size() > 1:
                dist.broadcast(value, src=0)
            set_full_tensor(engine, parameter, kind, value)
    refresh_model(engine)


def _by_name(folder: Path, kind: str, files: Iterable[str]) -> dict[str, Any]:
    """For each tensor of a kind the open file it is in."""
    opened = [safe_open(folder / file, framework="pt") for file in files if file.rpartition("-")[0] == kind]
    return {name: file for file in opened for name in file.keys()}


def _newest_intact(engine: Any, run: Path) -> dict[str, Any] | None:
    folder, damaged = run / _FOLDER, []
    for step in reversed(_steps(run)):
        try:
            facts = _intact(engine, folder / f"step_{step}", (WEIGHTS, *MOMENTS))
        except _Damaged as error:
            damaged.append(str(error))
            continue
        if damaged:
            print(f"note: {'; '.join(damaged)}; going on from step_{step}, which is intact", file=sys.stderr)
        return facts
    if damaged:
        raise ArtifactError(
            f"{'; '.join(damaged)}; no checkpoint is intact: restore one, or delete {folder} to start again"
        )
    return None


class _Damaged(ArtifactError):
    pass


def _intact(engine: Any, folder: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    """What `state.json` says, once every file is found to be as it was written."""
    try:
        facts = json.loads((folder / _STATE_FILE).read_text())
        version, files = facts["format_version"], facts["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{folder} is damaged ({_STATE_FILE}: {one_line(error)})") from None
    if version != _FORMAT_VERSION:
        raise ArtifactError(
            f"{folder}: written by another version of fanoise (format_version {version}, expected {_FORMAT_VERSION}); "
            "resume with that version, or start in another output_dir"
        )
    for name, digest in files.items():
        try:
            found = sha256_file(folder / name)
        except OSError as error:
            raise _Damaged(f"{folder} is damaged ({name}: {one_line(error)})") from None
        if found != digest:
            raise _Damaged(f"{folder} is damaged ({name} has changed since it was written)")
    expected = {name: list(full_shape(value)) for name, value in trainable_parameters(engine).items()}
    for kind in kinds:
        stored = {
            name: file.get_slice(name).get_shape() for name, file in _by_name(folder, kind, facts["files"]).items()
        }
        different = sorted(name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name))
        if different:
            raise ArtifactError(
                f"{folder}: written for another model ({different[0]} is {stored.get(different[0], 'missing')}, "
                f"the model has {expected.get(different[0], 'none')}); resume with the settings it was written with"
            )
    return facts


def _device(engine: Any) -> torch.device:
    return next(engine.module.parameters()).device
