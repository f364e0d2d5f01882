"""What a run can be told, each by its effect: losses, peers of the noise, adapters, logs, and how a run ends badly."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fanoise.embedder import Embedder, weights_digest
from tests.trainer.test_train import ROOT, losses, options
from trainer.config import DataConfig, ModelConfig, RunConfig
from trainer.engine import deepspeed_config
from trainer.pairs import read_pairs

RUNS: dict[str, dict[str, object]] = {
    "plain": {},
    "again": {},
    "no noise": {"noise.strength": 0},
    "checkpointing": {"model.gradient_checkpointing": "true"},
    "dora": {"lora.dora": "true"},
    "hardness": {"loss.hardness": 9},
    "filter": {"loss.false_negative_margin": 0.0},
    "dropout pairs": {"loss.dropout_pairs": 1.0, "lora.dropout": 0.2},
    "dropout only": {"lora.dropout": 0.2},
    "dropout pairs without dropout": {"loss.dropout_pairs": 1.0},
    "neftune": {"noise.position": "input", "noise.strength": 5},
    "raw": {"noise.features": "raw"},
    "schedule": {"noise.warmup_steps": 2, "noise.decay_steps": 2},
    "prompt": {"model.pooling": "prompt"},
    "whole": {"lora.enabled": "false"},
    "whole, checkpointing": {"lora.enabled": "false", "model.gradient_checkpointing": "true"},
    "eager": {"model.attention": "eager"},
    "overflow": {"noise.strength": 1e38, "noise.renormalize": "false", "noise.warmup_steps": 2, "max_steps": 3},
    "overflow later": {"optimizer.lr": 1e30, "max_steps": 6, "optimizer.warmup_steps": 0, "zero_stage": 0},
    "monitors": {"monitors": "[csv,tensorboard]"},
}


@pytest.fixture(scope="module")
def runs(tiny_base: Path, toy_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Path]]:
    """Exit status and folder of each run, all in one process."""
    root = tmp_path_factory.mktemp("features")
    common = {"lora.dropout": 0, "max_steps": 4, "log_spectrum_every": 2, "optimizer.warmup_steps": 1}
    arguments = [
        options(tiny_base, toy_pairs, root / str(number), **{**common, **changes})
        for number, changes in enumerate(RUNS.values())
    ]
    command = [sys.executable, "-m", "tests.trainer.many_runs", json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    statuses = [int(line) for line in done.stdout.split()]
    assert len(statuses) == len(RUNS), done.stderr[-3000:]
    return {
        name: (status, root / str(number)) for number, (name, status) in enumerate(zip(RUNS, statuses, strict=True))
    }


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


FAILING = {"dropout pairs without dropout": 2, "overflow": 1, "overflow later": 1}


@pytest.mark.parametrize("name", RUNS)
def test_run_ends_as_it_should(runs, name):
    status, run = runs[name]
    assert status == FAILING.get(name, 0)
    assert (run / "embedder.json").exists() == (status == 0)
    if status == 0:
        assert all(math.isfinite(loss) for loss in losses(run))
        Embedder.from_pretrained(run)


def test_a_run_notes_what_it_is_made_of(runs, tiny_base, toy_pairs):
    digests = {str(toy_pairs): read_pairs(toy_pairs).digest()}
    for name, weights in (("plain", weights_digest(tiny_base)), ("whole", None)):
        assert json.loads((runs[name][1] / "inputs.json").read_text()) == {str(tiny_base): weights, **digests}


def test_same_settings_give_the_same_losses(runs):
    assert losses(runs["plain"][1]) == losses(runs["again"][1])


@pytest.mark.parametrize("name", ["no noise", "dora", "hardness", "filter", "neftune", "raw", "schedule", "prompt"])
def test_setting_changes_the_losses(runs, name):
    assert losses(runs[name][1]) != losses(runs["plain"][1])


def test_dropout_pairs_add_to_the_loss_of_dropout(runs):
    with_pairs, without = losses(runs["dropout pairs"][1]), losses(runs["dropout only"][1])
    assert with_pairs[0] > without[0] + 0.01


@pytest.mark.parametrize(("with_it", "without"), [("checkpointing", "plain"), ("whole, checkpointing", "whole")])
def test_gradient_checkpointing_changes_memory_and_nothing_else(runs, with_it, without):
    assert losses(runs[with_it][1]) == pytest.approx(losses(runs[without][1]), rel=1e-5)


def test_eager_attention_gives_the_losses_of_the_default(runs):
    assert losses(runs["eager"][1]) == pytest.approx(losses(runs["plain"][1]), rel=1e-3)


def test_dora_saves_magnitudes_and_lora_does_not(runs):
    for name, expected in (("dora", True), ("plain", False)):
        names = load_file(runs[name][1] / "adapter_model.safetensors")
        assert any("magnitude" in key for key in names) == expected


def test_schedule_is_logged_step_by_step(runs):
    assert [row["noise_strength"] for row in rows(runs["schedule"][1])] == pytest.approx([0.05, 0.1, 0.05, 0.0])


def test_every_step_and_now_and_then_the_spectrum_is_logged(runs):
    found = rows(runs["plain"][1])
    every = {"loss", "lr", "grad_norm", "seconds", "items_per_s", "tokens_per_s", "memory_gib", "alignment"}
    every |= {"uniformity", "positive_similarity", "negative_similarity", "noise_in_logits", "noise_energy"}
    spectrum = {"effective_rank", "lost_share", "noise_to_signal_strong", "noise_to_signal_weak"}
    assert all(every <= set(row) for row in found)
    assert [spectrum <= set(row) for row in found] == [True, True, False, True]
    first = found[0]
    assert 1 <= first["effective_rank"] <= 8, "eight rows"
    assert first["noise_to_signal_weak"] > first["noise_to_signal_strong"] > 0
    assert first["alignment"] == pytest.approx(2 - 2 * first["positive_similarity"], abs=1e-3)
    assert first["tokens_per_s"] * first["seconds"] == pytest.approx(
        round(first["tokens_per_s"] * first["seconds"]), abs=1
    )
    assert not {"noise_in_logits", "noise_energy"} & set(rows(runs["neftune"][1])[0])
    bare = rows(runs["no noise"][1])[0]
    assert bare["noise_energy"] == 0.0
    assert bare["effective_rank"] == pytest.approx(first["effective_rank"], rel=1e-3)


def test_monitors_get_every_number_of_every_step(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = runs["monitors"][1]
    expected = [(row["step"], row["loss"]) for row in rows(run)]
    with (run / "csv" / "train_loss.csv").open(newline="") as lines:
        header, *found = csv.reader(lines)
    assert header == ["step", "loss"]
    assert [(int(step), float(loss)) for step, loss in found] == expected
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(step, pytest.approx(loss)) for step, loss in expected]
    assert all(tag.startswith("train/") for tag in events.Tags()["scalars"]), "DeepSpeed's own numbers are left out"


def test_weights_and_biases_is_asked_for_by_the_name_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    config = RunConfig(
        model=ModelConfig(base="b"), data=DataConfig(pairs=["p"]), output_dir=tmp_path / "mine", monitors=["wandb"]
    )
    assert deepspeed_config(config)["wandb"] == {"enabled": True, "project": "mine"}


@pytest.mark.parametrize("name", ["overflow", "overflow later"])
def test_a_broken_loss_stops_before_the_weights_and_keeps_the_evidence(runs, name):
    """The state of the step before, and the ids of the pairs."""
    run = runs[name][1]
    failure = json.loads((run / "failure.json").read_text())
    step = failure["step"]
    assert None in (failure["loss"], failure["grad_norm"])
    assert len(failure["pairs"]) == 8 and failure["pairs"][0].startswith("pairs")
    assert [row["step"] for row in rows(run)] == list(range(1, step + 1))
    saved = run / "checkpoints" / f"step_{step - 1}"
    assert json.loads((saved / "state.json").read_text())["step"] == step - 1
    for file in saved.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            assert all(bool(torch.isfinite(tensors.get_tensor(key)).all()) for key in tensors.keys())


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tiny_base):
    """Also where the loss is finite; and the engine can go on with a sound one."""
    cases = ["0-fp32", "1-fp32", "1-bf16", "2-fp32", "2-bf16", "3-fp32", "3-bf16"]
    command = [sys.executable, "-m", "tests.trainer.broken_gradient_cases", str(tiny_base), *cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = {"loss": 0.0, "noticed": True, "kept": True, "sound": True, "moved": True}
    assert found == [{"case": case, **expected} for case in cases], done.stderr[-2000:]


def test_push_to_hub_uploads_the_run_and_not_its_state(runs, monkeypatch):
    import huggingface_hub

    from trainer.hub import push

    seen = {}

    class Hub:
        def create_repo(self, repository, **kwargs):
            seen.update(kwargs, repository=repository)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repository}")

        def upload_folder(self, **kwargs):
            seen.update(kwargs)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    run = runs["plain"][1]
    assert push(run, "me/mine").endswith("me/mine")
    assert seen["private"] is True and seen["folder_path"] == run and seen["repo_id"] == "me/mine"
    assert "checkpoints/*" in seen["ignore_patterns"]


def test_failed_push_says_how_to_do_it_by_hand(runs, monkeypatch):
    import huggingface_hub

    from fanoise.errors import TrainingError
    from trainer.hub import push

    def offline(self, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", offline)
    with pytest.raises(TrainingError, match=r"no route to host; the run in .* is finished, push it by"):
        push(runs["plain"][1], "me/mine")
