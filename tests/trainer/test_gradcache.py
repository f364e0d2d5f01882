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


def relative_error(found: Gradients, expected: Gradients) -> float:
    """Norm of the difference of all gradients over their norm. Parameters the loss never reached have none, or zero."""
    assert expected.keys() <= found.keys()
    names = [name for name in found if name != "loss"]
    reference = {name: expected.get(name, torch.zeros_like(found[name])) for name in names}
    norm = sum(float(value.double().square().sum()) for value in reference.values()) ** 0.5
    assert norm > 0.1, "nothing to compare"
    return sum(float((found[n].double() - reference[n].double()).square().sum()) for n in names) ** 0.5 / norm


def assert_equal(found: Gradients, expected: Gradients) -> None:
    assert abs(float(found["loss"] - expected["loss"])) < 1e-6 * float(expected["loss"])
    assert relative_error(found, expected) < 1e-6


def test_noise_changes_the_gradients_that_are_compared(results):
    assert relative_error(results["plain, no noise"], results["plain"]) > 1e-2


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
