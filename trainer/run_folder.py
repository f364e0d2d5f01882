"""The run folder: what is in it, in which state it is, and how its final files get there."""

import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from fanoise.embedder import SPEC_FILE, Embedder
from fanoise.errors import ConfigError
from fanoise.storage import share, staged_directory, write_atomic
from trainer.config import DataConfig, ModelConfig, RunConfig

CONFIG_FILE = "config.yaml"
INPUTS_FILE = "inputs.json"
METRICS_FILE = "metrics.jsonl"
REJECTS_FILE = "rejects.jsonl"
_LOCK = ".lock"
# What may differ between the first part of a run and its continuation: rounding apart, no loss changes. With dropout,
# chunk_size and the number of processes decide which masks are drawn: the losses then differ, as under another seed.
_FREE_TO_CHANGE = {
    "output_dir",
    "resume",
    "dry_run",
    "zero_stage",
    "chunk_size",
    "reuse_image_features",
    "model.gradient_checkpointing",
    "data.workers",
    "data.max_rejects",
    "save_every",
    "keep_checkpoints",
    "monitors",
    "log_spectrum_every",
    "push_to_hub",
}


def is_finished(run: Path) -> bool:
    """`embedder.json` is written last: where it is, everything is."""
    return (run / SPEC_FILE).exists()


def check_run_folder(config: RunConfig) -> None:
    """Refuse, before anything is loaded or written, an output_dir that holds something else than this run.

    Raises: ConfigError saying what it holds.
    """
    run, file = config.output_dir, config.output_dir / CONFIG_FILE
    if file.exists():
        if config.resume == "never":
            raise ConfigError(
                f"output_dir {run} already holds a run; go on with it by --resume auto, or choose another --output_dir"
            )
        default = RunConfig(model=ModelConfig(base=""), data=DataConfig(pairs=[""]), output_dir=Path())
        different = _differences(yaml.safe_load(file.read_text()) or {}, _plain(config), _plain(default))
        if different:
            raise ConfigError(
                f"output_dir {run} holds a run with other settings ({'; '.join(different[:4])}); "
                "use those, or choose another --output_dir"
            )
    elif run.exists() and not run.is_dir():
        raise ConfigError(f"output_dir {run} is not a folder; choose another --output_dir")
    elif run.exists() and any(path.name != _LOCK for path in run.iterdir()):
        raise ConfigError(f"output_dir {run} is not empty and holds no run; choose another --output_dir")
    nearest = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir {run} cannot be written ({nearest} refuses); choose another --output_dir")


def lock_run_folder(run: Path) -> int:
    """Make the folder and hold it until the descriptor is closed or this process ends, however it ends.

    Raises: ConfigError when another process trains there.
    """
    run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in a killed run's data workers
    except OSError:
        os.close(descriptor)
        raise ConfigError(f"output_dir {run} is in use by another training; wait for it, or stop it first") from None
    return descriptor


def check_inputs(run: Path, inputs: dict[str, str | None]) -> None:
    """Note what a run is made of, or refuse to go on with something else: its losses would be those of no run.

    Args:
        inputs: names, of files for example, and digests of what is in them.
    Raises: ConfigError naming what has changed.
    """
    file = run / INPUTS_FILE
    if not file.exists():
        write_atomic(file, json.dumps(inputs, indent=2) + "\n")
        return
    try:
        before = dict(json.loads(file.read_text()))
    except ValueError:
        raise ConfigError(f"{file} is damaged; delete it if data and base are as they were") from None
    if list(before.items()) == list(inputs.items()):
        return
    # the order counts, too: by their numbers files are drawn from
    changed = [name for name in before | inputs if before.get(name, "") != inputs.get(name, "")] or [
        "data.pairs (another order)"
    ]
    raise ConfigError(
        f"output_dir {run} holds a run that was begun with other content of {', '.join(changed[:4])}; restore it, "
        "or choose another --output_dir"
    )


def write_config(config: RunConfig) -> None:
    write_atomic(config.output_dir / CONFIG_FILE, yaml.safe_dump(_plain(config), sort_keys=False))


def publish(embedder: Embedder, run: Path, *, state_dict: dict[str, Any] | None, card: str) -> None:
    """Write weights, processor, model card and, last, `embedder.json`."""
    with staged_directory(run / "final") as staging:
        embedder.save_pretrained(staging, state_dict=state_dict)
        (staging / "README.md").write_text(card)
    for path in sorted((run / "final").iterdir(), key=lambda path: path.name == SPEC_FILE):
        share(path)  # safetensors makes private files
        path.replace(run / path.name)
    shutil.rmtree(run / "final")


def _plain(config: RunConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config), default=str))


def _differences(before: dict[str, Any], now: dict[str, Any], default: dict[str, Any], prefix: str = "") -> list[str]:
    """A setting that did not exist when the run was begun acted as it does by default."""
    found = []
    for key in {**before, **now}:
        name, old, new = prefix + key, before.get(key, default.get(key)), now.get(key)
        if name in _FREE_TO_CHANGE:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, default.get(key) or {}, f"{name}.")
        elif old != new:
            found.append(f"{name} was {old!r}, now {new!r}")
    return found
