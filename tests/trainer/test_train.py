"""The trainer as its users start it: a process, a config, a run folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fanoise.catalog import Item
from fanoise.embedder import Embedder
from trainer.__main__ import main
from trainer.run_folder import lock_run_folder

ROOT = Path(__file__).parents[2]


def options(base: Path, pairs: Path, run: Path, **changes) -> list[str]:
    values = {
        "model.base": base,
        "data.pairs": f"[{pairs}]",
        "data.workers": 0,
        "output_dir": run,
        "max_steps": 24,
        "batch_size": 8,
        "chunk_size": 4,
        "save_every": 5,
        "lora.dropout": 0.1,
        "optimizer.lr": 0.003,
        "optimizer.warmup_steps": 2,
        **changes,
    }
    return [f"--{key}={value}" for key, value in values.items()]


def start(arguments: list[str], *, processes: int = 1) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "trainer"]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += ["-m", "trainer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*launcher, *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def whole_run(tiny_base, toy_pairs, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(start(options(tiny_base, toy_pairs, run)))
    return run


def test_two_processes_repeat_the_losses_of_one(tiny_base, toy_pairs, tmp_path):
    """Dropout is off: each process draws its own masks."""
    runs = [tmp_path / "one", tmp_path / "two"]
    for number, run in enumerate(runs, start=1):
        changes = {"lora.dropout": 0, "max_steps": 6, "zero_stage": 2, "noise.strength": 0.3}
        finish(start(options(tiny_base, toy_pairs, run, **changes), processes=number))
    assert np.allclose(losses(runs[0]), losses(runs[1]), rtol=1e-5)


def test_training_lowers_the_loss_and_logs_what_happened(whole_run):
    found = losses(whole_run)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:3])
    row = json.loads((whole_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"lr", "grad_norm", "items_per_s", "noise_energy", "noise_in_logits", "positive_similarity"} <= set(row)
    assert row["noise_in_logits"] == pytest.approx(0.1 / 32**0.5 / 0.02)


def test_run_folder_is_complete_and_loads(whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert {"adapter_model.safetensors", "embedder.json", "config.yaml", "metrics.jsonl", "README.md"} <= names
    assert (whole_run / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644, "others may read it"
    assert {path.name for path in (whole_run / "checkpoints").iterdir()} == {"step_20", "step_24"}
    embedder = Embedder.from_pretrained(whole_run)
    assert embedder.noise["strength"] == 0.1
    vectors = embedder.encode([Item(text="a red square")], role="query")
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)
    assert yaml.safe_load((whole_run / "config.yaml").read_text())["max_steps"] == 24


def test_a_merged_run_gives_the_same_vectors_and_is_a_base(whole_run, tiny_base, toy_pairs, tmp_path, monkeypatch):
    """By the lines of the documentation."""
    text = (ROOT / "docs/training.md").read_text()
    (lines,) = (part.partition("```")[0] for part in text.split("```python")[1:] if "merge_and_unload" in part)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/first").symlink_to(whole_run)
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    items = [Item(text="a red square"), Item(image=toy_pairs.parent / "0.png")]
    found, expected = (Embedder.from_pretrained(run).encode(items) for run in ("runs/first_merged", whole_run))
    base = Embedder.from_pretrained(tiny_base).encode(items)
    assert np.abs(found - expected).max() < 1e-5 < 1e-3 < np.abs(found - base).max()
    assert main([*options(Path("runs/first_merged"), toy_pairs, tmp_path / "next", dry_run="true")]) == 0


def test_finished_run_is_left_alone_by_resume(whole_run, tiny_base, toy_pairs):
    before = (whole_run / "metrics.jsonl").stat().st_mtime_ns
    assert main([*options(tiny_base, toy_pairs, whole_run), "--resume=auto"]) == 0
    assert (whole_run / "metrics.jsonl").stat().st_mtime_ns == before


def refuse(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0, "one line"
    assert message.startswith("error: ")
    return message


@pytest.mark.parametrize("dry_run", [True, False])
def test_too_many_processes_are_refused_before_a_pair_is_read(tiny_base, tmp_path, monkeypatch, capsys, dry_run):
    monkeypatch.setenv("WORLD_SIZE", "9")
    monkeypatch.setattr("trainer.train.init_process_group", lambda: torch.device("cpu"))
    monkeypatch.setattr("trainer.train.world_size", lambda: 9)
    arguments = options(tiny_base, tmp_path / "none.jsonl", tmp_path / "run", dry_run=dry_run)
    assert "batch_size (8) must be at least the number of processes (9)" in refuse(arguments, capsys)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"noise.strength": -1}, "noise.strength must be a number >= 0"),
        ({"noise.strenght": 1}, "did you mean noise.strength?"),
        ({"noise.scaling": "cubic"}, "cubic"),
        ({"chunk_size": 64}, "chunk_size (64) must not be larger than batch_size (8)"),
        ({"batch_size": 64}, "batch_size (64) is more than the 48 pairs"),
        ({"zero_stage": 7}, "7"),
        ({"zero_stage": 0, "precision": "bf16"}, "take --zero_stage 1, which is also right for one process, or --pre"),
        ({"temperature": 0}, "temperature must be > 0"),
        ({"data.pairs": "[missing.jsonl]"}, "missing.jsonl: no such file"),
        ({"model.base": "missing/folder"}, "missing/folder: no such folder"),
        ({"lora.targets": "nothing_like_it"}, "matches no module"),
        ({"push_to_hub": "me/mine"}, "push_to_hub me/mine: nobody else can load adapters whose base is a folder"),
    ],
)
def test_bad_option_is_one_line_and_leaves_nothing(change, expected, tiny_base, toy_pairs, tmp_path, capsys):
    run = tmp_path / "run"
    assert expected in refuse(options(tiny_base, toy_pairs, run, **change), capsys)
    assert not run.exists()


def test_folder_of_another_run_is_refused_with_what_differs(whole_run, tiny_base, toy_pairs, capsys):
    arguments = options(tiny_base, toy_pairs, whole_run)
    assert "--resume auto" in refuse(arguments, capsys)
    (whole_run / "embedder.json").rename(whole_run / "hidden")
    try:
        message = refuse([*options(tiny_base, toy_pairs, whole_run, max_steps=30), "--resume=auto"], capsys)
    finally:
        (whole_run / "hidden").rename(whole_run / "embedder.json")
    assert "max_steps was 24, now 30" in message


def test_folder_in_which_another_process_trains_is_refused(tiny_base, toy_pairs, tmp_path, capsys):
    run = tmp_path / "run"
    script = "import pathlib, sys, time; from trainer.run_folder import lock_run_folder as lock; "
    script += "lock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(200)"
    holder = subprocess.Popen([sys.executable, "-c", script, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        assert "in use by another training" in refuse(options(tiny_base, toy_pairs, run), capsys)
        holder.kill()
    os.close(lock_run_folder(run))
