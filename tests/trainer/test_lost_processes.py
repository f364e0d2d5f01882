"""What is said where a data worker or another process is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fanoise.errors import TrainingError
from tests.trainer.test_train import options
from trainer.lost_processes import naming_lost_processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def said(tiny_base: Path, toy_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("lost")
    runs = {
        name: options(tiny_base, toy_pairs, out / name, **{"data.workers": workers, "max_steps": 4, "save_every": 1})
        for name, workers in (("worker", 1), ("process", 0))
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, ROOT / "tests/trainer/lost_process_cases.py", json.dumps(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.split()[-2:] == ["1", "1"], done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_a_worker_that_is_killed_while_the_model_computes_is_one_line_with_a_remedy(said):
    assert len(said) == 2
    assert said[0].startswith("error: a data worker died (DataLoader worker (pid ")
    assert said[0].endswith("it may have run out of memory, lower data.workers")


def test_the_others_say_in_one_line_that_a_process_was_lost(said):
    assert said[1] == "error: another process was lost; it may say why itself"


@pytest.mark.parametrize(
    "error", [dist.DistBackendError("NCCL error in: x.cpp:1\nmore"), dist.DistNetworkError("NCCL error in: x.cpp:1")]
)
def test_what_torch_names_itself_is_said_with_its_first_line(error):
    expected = r"^another process was lost; it may say why itself \(NCCL error in: x.cpp:1\)$"
    with pytest.raises(TrainingError, match=expected), naming_lost_processes():
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("sizes do not match"), torch.OutOfMemoryError("CUDA out of memory"), OSError("gloo")]
)
def test_any_other_error_stays_what_it_was(error):
    with pytest.raises(type(error)) as caught, naming_lost_processes():
        raise error
    assert caught.value is error
