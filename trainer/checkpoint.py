"""Checkpoints that are whole or absent, and the exact way back.

Only parameters, optimiser and schedule are state. Data order, augmentation, dropout and noise are functions of
(seed, step), so a resumed run repeats the losses of an uninterrupted one.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fanoise.distributed import rank
from fanoise.errors import ArtifactError, TrainingError
from fanoise.storage import sync_files, write_atomic

_FOLDER = "checkpoints"
_NAME = re.compile(r"step_(\d+)")


def save_checkpoint(engine: Any, run: Path, step: int, *, keep: int) -> None:
    """Write `checkpoints/step_N` under a temporary name, rename it, then drop the oldest beyond `keep`."""
    folder = run / _FOLDER
    partial = f".partial-step_{step}"
    if rank() == 0:
        shutil.rmtree(folder / partial, ignore_errors=True)
    dist.barrier()
    try:
        engine.save_checkpoint(
            str(folder), tag=partial, client_state={"step": step}, save_latest=False, exclude_frozen_parameters=True
        )
        dist.barrier()
        if rank() == 0:
            sync_files(folder / partial)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        shutil.rmtree(folder / partial, ignore_errors=True)
        raise TrainingError(
            f"{folder}: the checkpoint of step {step} could not be written ({error}); older ones are intact"
        ) from error
    if rank() == 0:
        final = folder / f"step_{step}"
        shutil.rmtree(final, ignore_errors=True)
        (folder / partial).rename(final)
        for old in _steps(run)[:-keep]:
            shutil.rmtree(folder / f"step_{old}", ignore_errors=True)
    dist.barrier()


def load_newest_checkpoint(engine: Any, run: Path) -> int:
    """Restore the newest checkpoint; returns its step, 0 when there is none."""
    steps = _steps(run)
    if not steps:
        return 0
    name = f"step_{steps[-1]}"
    try:
        path, state = engine.load_checkpoint(str(run / _FOLDER), tag=name, load_module_strict=False)
    except Exception as error:  # DeepSpeed raises anything from AssertionError to UnpicklingError
        raise ArtifactError(
            f"{run / _FOLDER / name}: the checkpoint cannot be loaded ({(str(error) or repr(error)).splitlines()[0]}); "
            "resume with the ZeRO stage and number of processes it was written with, or delete that folder"
        ) from error
    if path is None:
        raise ArtifactError(
            f"{run / _FOLDER / name}: the checkpoint cannot be loaded; delete that folder and resume again"
        )
    return int(state["step"])


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
            break  # the line that was being written when the run was killed
    write_atomic(file, "".join(kept))


def _steps(run: Path) -> list[int]:
    matches = (_NAME.fullmatch(path.name) for path in (run / _FOLDER).glob("step_*"))
    return sorted(int(match[1]) for match in matches if match)
