"""Runs killed at any moment and resumed: the loss curve and the weights are those of an uninterrupted one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {
    "data.workers": 0,
    "max_steps": 12,
    "batch_size": 8,
    "chunk_size": 4,
    "save_every": 3,
    "lora.dropout": 0.1,
    "optimizer.lr": 0.003,
    "optimizer.warmup_steps": 5,
    "optimizer.weight_decay": 0.01,
}
SETTINGS = ("processes", "until", "writing", "written", "damage")
"""Of a part of a run, beside the options; see resume_cases.py."""
BF16 = {"zero_stage": 2, "precision": "bf16"}
EXACT = {"lora.dropout": 0}  # the number of processes decides which masks are drawn


def runs(base: Path, pairs: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, *parts: dict[str, Any]) -> None:
        found[name] = []
        for number, part in enumerate(parts):
            settings = {key: value for key, value in part.items() if key in SETTINGS}
            options = {"model.base": base, "data.pairs": f"[{pairs}]", "output_dir": folder / name, **OPTIONS}
            options |= {key: value for key, value in part.items() if key not in SETTINGS}
            options["resume"] = "auto" if number else "never"
            arguments = [f"--{key}={value}" for key, value in options.items()]
            found[name].append({"processes": 1, "folder": str(folder / name), "options": arguments, **settings})

    add("whole", {})
    add("killed", {"until": 4}, {"writing": 6}, {"written": 9}, {"until": 11, "damage": True}, {})
    two = {"processes": 2, "max_steps": 8}
    add("whole, two processes in bf16", {**two, **BF16})
    add("killed, two processes in bf16", {**two, **BF16, "until": 4}, {**two, **BF16, "writing": 6}, {**two, **BF16})
    add("whole, without dropout", {**EXACT, "zero_stage": 1})
    add(
        "moved",
        {**EXACT, "zero_stage": 1, "until": 4},
        {**EXACT, "zero_stage": 3, "until": 7},
        {**EXACT, "zero_stage": 2, "until": 10, "processes": 2},
        {**EXACT, "zero_stage": 0},
    )
    return found


@pytest.fixture(scope="module")
def folder(tiny_base: Path, toy_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, ROOT / "tests/trainer/resume_cases.py", json.dumps(runs(tiny_base, toy_pairs, folder))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "errors.txt").write_text(done.stderr)
    return folder


def curve(run: Path) -> list[tuple[int, float, float, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["lr"], row["grad_norm"]) for row in rows]


@pytest.mark.parametrize(
    ("killed", "whole", "steps"),
    [("killed", "whole", 12), ("killed, two processes in bf16", "whole, two processes in bf16", 8)],
)
def test_run_killed_at_any_moment_is_the_uninterrupted_one_bit_for_bit(folder, killed, whole, steps):
    """While it trains, while a checkpoint is written, before older ones are removed, and from a damaged checkpoint."""
    found = curve(folder / killed)
    assert [step for step, *_ in found] == list(range(1, steps + 1))
    assert found == curve(folder / whole)
    assert len({loss for _, loss, *_ in found}) == steps
    adapters, expected = (load_file(folder / run / "adapter_model.safetensors") for run in (killed, whole))
    assert all(torch.equal(adapters[name], expected[name]) for name in expected)
    assert (folder / killed / "embedder.json").exists()


def test_damaged_checkpoint_was_noted_and_nothing_is_left_of_interrupted_ones(folder):
    assert "step_9 is damaged" in (folder / "errors.txt").read_text()
    assert {path.name for path in (folder / "killed/checkpoints").iterdir()} == {"step_9", "step_12"}


def test_run_that_moves_between_stages_and_numbers_of_processes_stays_the_same(folder):
    """To float32's rounding, which the temperature of 0.02 multiplies by 50."""
    found, expected = (np.array(curve(folder / run)) for run in ("moved", "whole, without dropout"))
    assert np.allclose(found, expected, rtol=3e-5)
    adapters, others = (
        load_file(folder / run / "adapter_model.safetensors") for run in ("moved", "whole, without dropout")
    )
    assert all(torch.allclose(adapters[name], others[name], rtol=0, atol=1e-5) for name in others)
