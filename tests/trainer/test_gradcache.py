"""GradCache against plain autograd on the whole batch, on one process and on two, with noise on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fanoise.noise import NoiseConfig
from trainer.gradcache import gradcache_backward
from trainer.objective import Labels, Objective

ROOT = Path(__file__).parents[2]
EVEN = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
UNEVEN = [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]]
DEFAULT = {
    "stage": 0,
    "chunk_size": 3,
    "noise": {"strength": 0.5, "scaling": "sublinear"},
    "lora": True,
    "negatives": False,
    "uncached": False,
    "split": EVEN,
}
PLAIN = {"uncached": True, "chunk_size": 10}
# rows 0, 3, 6 and 9 have a mined negative, so two processes make different numbers of model calls
ONE_PROCESS = {
    "plain": PLAIN,
    "plain, no noise": {**PLAIN, "noise": {"strength": 0.0}},
    "plain, every parameter": {**PLAIN, "lora": False},
    "plain, negatives": {**PLAIN, "negatives": True},
    "chunks of 1": {"chunk_size": 1},
    "chunks of 3": {"chunk_size": 3},
    "one chunk": {"chunk_size": 10},
}
TWO_PROCESSES = {
    "zero 0": {"stage": 0},
    "zero 2": {"stage": 2},
    "zero 0, uneven": {"stage": 0, "split": UNEVEN},
    "zero 2, uneven": {"stage": 2, "split": UNEVEN},
    "every parameter": {"stage": 2, "lora": False},
    "negatives": {"stage": 2, "negatives": True, "split": UNEVEN, "chunk_size": 2},
}
Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def results(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Gradients]:
    out = tmp_path_factory.mktemp("gradients")
    for processes, cases in ((1, ONE_PROCESS), (2, TWO_PROCESSES)):
        _launch(
            processes,
            {name: {**DEFAULT, "base": str(tiny_base), "out": str(out), **case} for name, case in cases.items()},
        )
    return {file.stem: load_file(file) for file in out.glob("*.safetensors")}


def _launch(processes: int, cases: dict[str, Any]) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(ROOT / "tests/trainer/gradcache_cases.py"), json.dumps(cases)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def largest_error(found: Gradients, expected: Gradients) -> float:
    """Over all entries. Parameters the loss never reached have no gradient, or a zero one."""
    assert expected.keys() <= found.keys()
    return max(float((value - expected.get(name, torch.zeros(()))).abs().max()) for name, value in found.items())


def assert_equal(found: Gradients, expected: Gradients) -> None:
    """To 1e-6 where the largest gradient is around 1: what float32 can give, whatever the order of its sums."""
    assert 0.1 < max(float(value.abs().max()) for name, value in expected.items() if name != "loss") < 3
    assert largest_error(found, expected) < 1e-6


def test_noise_changes_the_gradients_that_are_compared(results):
    assert largest_error(results["plain, no noise"], results["plain"]) > 1e-2


@pytest.mark.parametrize("case", ["chunks of 1", "chunks of 3", "one chunk"])
def test_cached_equals_uncached_on_one_process(results, case):
    assert_equal(results[case], results["plain"])


@pytest.mark.parametrize("case", ["zero 0", "zero 2", "zero 0, uneven", "zero 2, uneven"])
def test_two_processes_equal_one_with_the_joined_batch(results, case):
    assert_equal(results[case], results["plain"])


def test_training_every_parameter_is_exact_too(results):
    assert_equal(results["every parameter"], results["plain, every parameter"])


def test_mined_negatives_on_some_rows_are_exact_over_processes(results):
    assert_equal(results["negatives"], results["plain, negatives"])


class PlainEngine:
    """What `gradcache_backward` needs of a DeepSpeed engine, in any precision."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.module(batch)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        pass

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()


class Tower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)).double()

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.normalize(self.layers(batch["x"]), dim=-1)


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
def test_gradients_are_exact_to_float64_at_the_papers_temperature(chunk_size):
    """Float32 rounding hides what is below 1e-6; here nothing does."""
    torch.manual_seed(0)
    tower, x, y = Tower(), torch.randn(8, 5).double(), torch.randn(8, 5).double()
    objective = Objective(NoiseConfig(strength=0.5), temperature=0.02, seed=1)
    labels = Labels(torch.zeros(8, 8, dtype=torch.bool), torch.zeros(0, dtype=torch.long), (8,))
    objective.loss(tower({"x": x}), tower({"x": y}), labels, step=1).backward()
    expected = [parameter.grad.clone() for parameter in tower.parameters()]
    tower.zero_grad()
    sides = {name: [{"x": part} for part in rows.split(chunk_size)] for name, rows in (("query", x), ("positive", y))}
    gradcache_backward(
        PlainEngine(tower), sides, lambda found: objective.loss(found["query"], found["positive"], labels, step=1)
    )
    for parameter, gradient in zip(tower.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-11, atol=1e-11)


def test_second_pass_repeats_the_dropout_masks_of_the_first():
    """The oracle keeps the graph of the first pass: the same chunks, the same random state, one backward."""
    torch.manual_seed(0)
    tower, x, y = Tower(), torch.randn(8, 5).double(), torch.randn(8, 5).double()
    tower.layers.insert(2, torch.nn.Dropout(0.5))
    objective = Objective(NoiseConfig(strength=0.5), temperature=0.2, seed=1)
    labels = Labels(torch.zeros(8, 8, dtype=torch.bool), torch.zeros(0, dtype=torch.long), (8,))
    chunks = {name: [{"x": part} for part in rows.split(3)] for name, rows in (("query", x), ("positive", y))}

    torch.manual_seed(7)
    embedded = {name: torch.cat([tower(chunk) for chunk in parts]) for name, parts in chunks.items()}
    objective.loss(embedded["query"], embedded["positive"], labels, step=1).backward()
    expected = [parameter.grad.clone() for parameter in tower.parameters()]
    after = torch.get_rng_state()

    tower.zero_grad()
    torch.manual_seed(7)
    gradcache_backward(
        PlainEngine(tower), chunks, lambda found: objective.loss(found["query"], found["positive"], labels, step=1)
    )
    for parameter, gradient in zip(tower.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-11, atol=1e-11)
    assert torch.equal(torch.get_rng_state(), after), "what comes later draws as if there had been one pass"
