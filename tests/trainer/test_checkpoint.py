"""Checkpoints: the same state under every ZeRO stage and number of processes, and whole or absent whatever happens."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import get_linear_schedule_with_warmup

from fanoise.errors import ArtifactError, TrainingError
from trainer import checkpoint
from trainer.checkpoint import cut_log, load_newest_checkpoint, load_weights, save_checkpoint, save_weights

ROOT = Path(__file__).parents[2]
CASES = [("fp32", 0), *((precision, stage) for precision in ("fp32", "bf16") for stage in (1, 2, 3))]
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints")
    script = ROOT / "tests/trainer/checkpoint_cases.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run([sys.executable, script, out], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def held(cases: Path, case: str) -> State:
    return load_file(cases / f"{case}.safetensors")


def part(state: State, kind: str) -> State:
    return {name: value for name, value in state.items() if name.startswith(kind)}


def are_identical(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("precision", "stage"), CASES)
def test_resumed_training_is_the_uninterrupted_one_bit_for_bit(cases, precision, stage, processes):
    case = f"{precision} ZeRO {stage} on {processes}"
    saved, expected = held(cases, f"{case}, saved"), held(cases, f"{case}, uninterrupted")
    assert are_identical(held(cases, f"{case}, resumed"), expected)
    assert expected["steps"].tolist() == [6, 6]
    assert len({name.split()[0] for name in expected}) == 6, "masters, means, model, steps, rate"
    assert not any(torch.equal(saved[name], expected[name]) for name in saved if "fixed" not in name)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("source", ["ZeRO 1 on 1", "ZeRO 3 on 2"])
@pytest.mark.parametrize(("precision", "stage"), CASES)
def test_another_stage_and_number_of_processes_loads_exactly_what_was_saved(cases, precision, stage, source, processes):
    case = f"{precision} {source} read by ZeRO {stage} on {processes}"
    assert are_identical(held(cases, f"{case}, loaded"), held(cases, f"{precision} {source}, saved"))
    if precision == "fp32":
        expected = held(cases, "fp32 ZeRO 1 on 1, uninterrupted")
        found = held(cases, f"{case}, resumed")
        assert all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-6) for name in expected)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("precision", "stage"), CASES)
def test_kept_weights_are_put_back_and_the_means_stay(cases, precision, stage, processes):
    case = f"{precision} ZeRO {stage} on {processes}"
    best, last, restored = (held(cases, f"{case}, {when}") for when in ("best", "last", "restored"))
    for kind in ("weights", "model"):
        assert are_identical(part(restored, kind), part(best, kind))
        assert not are_identical(part(last, kind), part(best, kind))
    for kind in ("exp_avg", "steps", "lr"):
        assert are_identical(part(restored, kind), part(last, kind))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_3_gathers_the_whole_model(cases, precision, processes):
    case = f"{precision} ZeRO 3 on {processes}"
    gathered = {f"model model.{name}": value for name, value in held(cases, f"{case}, gathered").items()}
    assert are_identical(gathered, part(held(cases, f"{case}, restored"), "model"))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("precision", "stage"), CASES[1:])
def test_step_without_a_finite_gradient_changes_nothing_and_the_state_before_it_is_kept(
    cases, precision, stage, processes
):
    case = f"{precision} ZeRO {stage} on {processes}"
    before, after, loaded = (held(cases, f"{case}, {when}") for when in ("before", "after", "at 0"))
    assert are_identical(after, before)
    assert are_identical(loaded, before)


def test_what_the_first_process_meets_ends_all_alike(cases):
    first, second = ((cases / f"messages of {rank}").read_text().splitlines() for rank in (0, 1))
    assert first == second
    assert "step 2 could not be written (No space left on device); older ones are intact" in first[0]
    assert "step_1 is damaged (state.json: No such file or directory); no checkpoint is intact" in first[1]
    assert first[2:] == ["No space left on device", "list index out of range"]


def make_engine(*, width: int = 4, seed: int = 0) -> SimpleNamespace:
    """What a checkpoint needs of an engine without ZeRO."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 20)
    return SimpleNamespace(module=module, optimizer=optimizer, lr_scheduler=schedule, global_steps=0)


def train(engine: SimpleNamespace, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last + 1):
        rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        loss = engine.module(rows).square().mean()
        engine.optimizer.zero_grad()
        loss.backward()
        engine.optimizer.step()
        engine.lr_scheduler.step()
        losses.append(loss.item())
    return losses


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


@pytest.fixture
def run(tmp_path) -> Path:
    """Checkpoints of steps 2 and 4."""
    engine = make_engine()
    for step in (2, 4):
        train(engine, step - 1, step)
        save_checkpoint(engine, tmp_path, step, keep=2)
    return tmp_path


def test_folder_holds_safetensors_by_parameter_name_and_their_digests(run):
    folder = run / "checkpoints/step_4"
    kinds = {"weights", "exp_avg", "exp_avg_sq"}
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert {path.name.split("-")[0] for path in folder.iterdir()} == {"state.json", *kinds}
    weights = load_file(next(folder.glob("weights-*")))
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "0.weight": (4, 3),
        "0.bias": (4,),
        "1.weight": (2, 4),
        "1.bias": (2,),
    }
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["optimizer_steps"], state["schedule"]["last_epoch"]) == (4, 4, 4)
    assert state["files"].keys() == {path.name for path in folder.glob("*.safetensors")}


def test_large_models_are_spread_over_files(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "_FILE_BYTES", 50)  # the tensors have 48, 16, 32 and 8 bytes
    engine = make_engine()
    train(engine, 1, 2)
    save_checkpoint(engine, tmp_path, 2, keep=1)
    files = [load_file(file) for file in sorted((tmp_path / "checkpoints/step_2").glob("weights-*"))]
    assert [sorted(file) for file in files] == [["0.weight"], ["0.bias", "1.weight"], ["1.bias"]]
    other = make_engine(seed=1)
    assert load_newest_checkpoint(other, tmp_path) == 2
    assert train(other, 3, 6) == train(engine, 3, 6)


def test_without_a_checkpoint_training_starts_at_zero(tmp_path):
    assert load_newest_checkpoint(make_engine(), tmp_path) == 0


def test_only_the_newest_are_kept(run):
    engine = make_engine()
    assert load_newest_checkpoint(engine, run) == 4
    (run / "checkpoints/.partial-step_7.123").mkdir()  # of a run that was killed, and saved at other steps
    (run / "checkpoints/best").mkdir()
    train(engine, 5, 6)
    save_checkpoint(engine, run, 6, keep=2)
    assert checkpoints(run) == {"step_4", "step_6", "best"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_leaves_the_older_ones(run, monkeypatch, error):
    engine, written = make_engine(), []
    load_newest_checkpoint(engine, run)
    expected = train(engine, 5, 8)
    save_file = checkpoint.save_file

    def fill_up(tensors, file):
        if written:
            raise error
        written.append(file)
        save_file(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", fill_up)
    with pytest.raises(TrainingError, match=r"step 8 could not be written .*No space left.* older ones are intact"):
        save_checkpoint(engine, run, 8, keep=2)
    assert len(written) == 1
    with pytest.raises(TrainingError, match="weights could not be written"):
        save_weights(engine, run / "checkpoints/best", step=1)
    assert checkpoints(run) == {"step_2", "step_4"}
    resumed = make_engine(seed=1)
    assert load_newest_checkpoint(resumed, run) == 4
    assert train(resumed, 5, 8) == expected


def cut_weights(folder: Path) -> str:
    file = next(folder.glob("weights-*"))
    file.write_bytes(file.read_bytes()[:-3])
    return f"{file.name} has changed since it was written"


def flip_a_bit(folder: Path) -> str:
    file = next(folder.glob("exp_avg_sq-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return f"{file.name} has changed since it was written"


def remove_means(folder: Path) -> str:
    file = next(folder.glob("exp_avg-*"))
    file.unlink()
    return f"{file.name}: No such file or directory"


def cut_state(folder: Path) -> str:
    file = folder / "state.json"
    file.write_text(file.read_text()[:40])
    return "state.json: "


def empty_state(folder: Path) -> str:
    (folder / "state.json").write_text("[]")
    return "state.json: "


def remove_all(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return "state.json: No such file or directory"


@pytest.mark.parametrize("damage", [cut_weights, flip_a_bit, remove_means, cut_state, empty_state, remove_all])
def test_damaged_checkpoint_is_passed_over_with_a_note(run, capsys, damage):
    engine, expected = make_engine(), make_engine()
    train(expected, 1, 2)
    reason = damage(run / "checkpoints/step_4")
    assert load_newest_checkpoint(engine, run) == 2
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert f"{run / 'checkpoints/step_4'} is damaged ({reason}" in note
    assert note.endswith("going on from step_2, which is intact\n")
    assert train(engine, 3, 3) == train(expected, 3, 3)
    save_checkpoint(engine, run, 3, keep=1)
    assert checkpoints(run) == {"step_3"}, "a damaged one must not outlive it"


def test_when_all_are_damaged_training_does_not_start_again_by_itself(run):
    for step in (2, 4):
        cut_weights(run / f"checkpoints/step_{step}")
    with pytest.raises(
        ArtifactError, match=r"step_4 is damaged .*step_2 is damaged .*no checkpoint is intact"
    ) as caught:
        load_newest_checkpoint(make_engine(), run)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_model_is_refused(run):
    with pytest.raises(ArtifactError, match=r"another model \(0.bias is \[4\], the model has \[5\]\)"):
        load_newest_checkpoint(make_engine(width=5), run)
    smaller = make_engine()
    smaller.module[1].bias.requires_grad_(False)
    with pytest.raises(ArtifactError, match=r"1.bias is \[2\], the model has none"):
        load_newest_checkpoint(smaller, run)


def test_checkpoint_of_another_version_is_refused(run):
    file = run / "checkpoints/step_4/state.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(ArtifactError, match="format_version 9, expected 1"):
        load_newest_checkpoint(make_engine(), run)


def test_kept_weights_that_are_missing_or_damaged_are_an_error(tmp_path):
    engine = make_engine()
    with pytest.raises(ArtifactError, match=r"best is damaged \(state.json: No such file"):
        load_weights(engine, tmp_path / "best")
    save_weights(engine, tmp_path / "best", step=1)
    cut_weights(tmp_path / "best")
    with pytest.raises(ArtifactError, match="best is damaged"):
        load_weights(engine, tmp_path / "best")


def test_log_is_cut_after_a_step_and_at_a_torn_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in range(1, 6)]
    file.write_text("".join(lines) + '{"step": 3, "lo')
    cut_log(file, 3)
    assert file.read_text() == "".join(lines[:3])
    cut_log(tmp_path / "missing.jsonl", 3)
    assert not (tmp_path / "missing.jsonl").exists()
