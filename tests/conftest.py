"""Shared fixtures: tiny models of the real class, saved and loaded like any checkpoint. No network, no real weights."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all that is tested here is tested on the CPU, DeepSpeed too
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 170, 30), "yellow": (230, 220, 30)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: "trainer" not in item.path.parts)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """A process group started in a test names its port in the environment; no later process must inherit that."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Qwen2-VL checkpoint, 32 dimensions."""
    from demo.base import BaseSize, save_random_base

    folder = tmp_path_factory.mktemp("models") / "tiny"
    size = BaseSize(
        hidden_size=32,
        layers=2,
        heads=2,
        vision_size=32,
        vision_layers=2,
        vision_heads=2,
        vocabulary=300,
        max_pixels=56 * 84,
    )
    save_random_base(folder, [f"a {name} square" for name in COLOURS] * 5, size=size, seed=0)
    return folder


@pytest.fixture(scope="session")
def toy_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pairs of text and a flat coloured image, as JSONL beside its images."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = random.Random(0)
    rows = []
    for number in range(48):
        name = rng.choice(list(COLOURS))
        noise = np.random.default_rng(number).integers(0, 40, (56, 56, 3))
        Image.fromarray((np.array(COLOURS[name]) * 0.8 + noise).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"query_text": f"a {name} square number {number}", "positive_image": f"{number}.png"})
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def tiny_run(tiny_base: Path, toy_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder: three LoRA steps with noise from `tiny_base`, by the real trainer in a process of its own.

    Its adapters have dropout, so that serving in training mode by mistake would show.
    """
    import subprocess
    import sys

    run = tmp_path_factory.mktemp("runs") / "tiny_run"
    options = {
        "model.base": tiny_base,
        "data.pairs": f"[{toy_pairs}]",
        "data.workers": 0,
        "output_dir": run,
        "max_steps": 3,
        "batch_size": 8,
        "chunk_size": 8,
        "optimizer.warmup_steps": 0,
        "optimizer.lr": 0.01,
        "lora.dropout": 0.2,
    }
    command = [sys.executable, "-m", "trainer", *(f"--{key}={value}" for key, value in options.items())]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    return run
