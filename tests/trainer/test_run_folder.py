"""What a run folder accepts: nothing, or the continuation of the run it holds."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fanoise.errors import ConfigError
from fanoise.noise import NoiseConfig
from trainer.config import DataConfig, LoraConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig
from trainer.run_folder import check_inputs, check_run_folder, is_finished, lock_run_folder, write_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path) -> RunConfig:
    """Of a run that was begun in its folder."""
    run = tmp_path / "run"
    config = RunConfig(
        model=ModelConfig(base="base"), data=DataConfig(pairs=["pairs.jsonl"]), output_dir=run, resume="auto"
    )
    run.mkdir()
    write_config(replace(config, resume="never"))
    return config


def test_same_settings_go_on(config):
    check_run_folder(config)


def test_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(config, tmp_path, monkeypatch):
    refused = []
    monkeypatch.setattr("trainer.run_folder.os.access", lambda path, mode: refused.append(path))
    with pytest.raises(ConfigError, match=r"output_dir .*/a/b cannot be written \(.* refuses\); choose another"):
        check_run_folder(replace(config, output_dir=tmp_path / "a" / "b"))
    assert refused == [tmp_path], "the nearest folder that there is"
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_run_folder(replace(config, output_dir=tmp_path / "file" / "b"))


@pytest.mark.parametrize(
    "change",
    [
        {"zero_stage": 3},
        {"chunk_size": 2},
        {"reuse_image_features": False},
        {"save_every": 7, "keep_checkpoints": 5},
        {"monitors": ["csv"], "log_spectrum_every": 3},
        {"model": ModelConfig(base="base", gradient_checkpointing=True)},
        {"data": DataConfig(pairs=["pairs.jsonl"], workers=0, max_rejects=0.5)},
    ],
)
def test_what_does_not_change_losses_may_differ(config, change):
    check_run_folder(replace(config, **change))


def test_settings_that_are_newer_than_the_run_have_their_defaults(config):
    file = config.output_dir / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["temperature"], stored["lora"]["dora"], stored["loss"]
    file.write_text(yaml.safe_dump(stored))
    check_run_folder(config)
    with pytest.raises(ConfigError, match=r"loss.hardness was 0.0, now 9; temperature was 0.02, now 0.05"):
        check_run_folder(replace(config, temperature=0.05, loss=LossConfig(hardness=9)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"batch_size": 64}, "batch_size was 256, now 64"),
        ({"seed": 1}, "seed was 42, now 1"),
        ({"precision": "fp32"}, "precision was 'auto', now 'fp32'"),
        ({"optimizer": OptimizerConfig(lr=0.1)}, "optimizer.lr was 2e-05, now 0.1"),
        ({"noise": NoiseConfig(strength=0.2)}, "noise.strength was 0.1, now 0.2"),
        ({"lora": LoraConfig(rank=4, alpha=4)}, "lora.rank was 8, now 4; lora.alpha was 16, now 4"),
        ({"model": ModelConfig(base="other")}, "model.base was 'base', now 'other'"),
        ({"data": DataConfig(pairs=["pairs.jsonl"], augment="crop")}, "data.augment was 'none', now 'crop'"),
    ],
)
def test_what_changes_losses_is_named(config, change, expected):
    with pytest.raises(ConfigError, match="holds a run with other settings") as caught:
        check_run_folder(replace(config, **change))
    assert expected in str(caught.value)


def test_a_run_does_not_go_on_with_other_content(config):
    run = config.output_dir
    check_inputs(run, {"base": "b1", "a.jsonl": "a1"})
    check_inputs(run, {"base": "b1", "a.jsonl": "a1"})
    for changed, names in (
        ({"base": "b1", "a.jsonl": "a2"}, "a.jsonl"),
        ({"base": "b1", "c.jsonl": "a1"}, "a.jsonl, c.jsonl"),
        ({"base": "b1"}, "a.jsonl"),
        ({"base": "b1", "a.jsonl": "a1", "b.jsonl": "b"}, "b.jsonl"),
        ({"a.jsonl": "a1", "base": "b1"}, "data.pairs (another order)"),
    ):
        expected = f"other content of {re.escape(names)}; restore it, or choose another --output_dir"
        with pytest.raises(ConfigError, match=expected):
            check_inputs(run, changed)
    with pytest.raises(ConfigError, match=r"other content of base, a\.jsonl; restore"):
        check_inputs(run, {"base": "b2", "a.jsonl": "a2"})
    (run / "inputs.json").write_text("{")
    with pytest.raises(ConfigError, match=r"inputs.json is damaged; delete it if data and base are as they were"):
        check_inputs(run, {"base": "b1"})


def test_run_is_not_overwritten(config):
    with pytest.raises(ConfigError, match="already holds a run; go on with it by --resume auto"):
        check_run_folder(replace(config, resume="never"))


def test_folder_of_something_else_is_refused(config, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        check_run_folder(replace(config, output_dir=tmp_path / "notes"))
    with pytest.raises(ConfigError, match="is not a folder"):
        check_run_folder(replace(config, output_dir=tmp_path / "notes/a.txt"))
    check_run_folder(replace(config, output_dir=tmp_path / "new"))


def test_lock_is_held_until_its_process_ends(tmp_path):
    run = tmp_path / "run"
    script = "import pathlib, sys, time; from trainer.run_folder import lock_run_folder as lock; "
    script += "lock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(200)"
    holder = subprocess.Popen([sys.executable, "-c", script, run], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="in use by another training"):
            lock_run_folder(run)
        holder.kill()
    assert lock_run_folder(run) > 0
    assert not is_finished(run)
