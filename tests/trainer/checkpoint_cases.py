"""Checkpoints of real engines, written and read under every ZeRO stage, in two precisions, on one and two processes.

Run by test_checkpoint.py with a folder, into which process 0 writes what engines held (safetensors), by case.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import forked
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fanoise.distributed import rank, world_size
from fanoise.errors import FANoiseError, one_line
from trainer import checkpoint
from trainer.checkpoint import (
    gathered_state_dict,
    load_newest_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from trainer.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig
from trainer.engine import init_process_group, make_engine
from trainer.full_state import MOMENTS, WEIGHTS, full_tensors, optimizer_steps
from trainer.outcomes import on_first_process


class Network(nn.Module):
    """Sizes that two processes cannot share evenly, one of them below their number; a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.first, self.model.second = nn.Linear(5, 7), nn.Linear(7, 3)
        self.model.scale = nn.Parameter(torch.ones(1))
        self.model.fixed = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]), requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.tanh(self.model.first(rows.to(self.model.scale.dtype)))
        return (self.model.second(hidden) * self.model.scale * self.model.fixed).float()


def make(stage: int, precision: Any, *, seed: int) -> Any:
    torch.manual_seed(seed)
    config = RunConfig(
        model=ModelConfig(base="unused"),
        data=DataConfig(pairs=["unused"]),
        output_dir=Path("unused"),
        optimizer=OptimizerConfig(lr=0.01, warmup_steps=2, weight_decay=0.01),
        max_steps=12,
        zero_stage=stage,
        precision=precision,
    )
    network = Network()
    if stage == 3:
        network.to = None  # type: ignore[assignment]  # the device of a large model could not hold it whole
    return make_engine(network, config)  # type: ignore[arg-type]


def train(engine: Any, first: int, last: int, *, scale: float = 1.0) -> None:
    for step in range(first, last + 1):
        numbers = torch.Generator().manual_seed(step)
        rows, targets = torch.randn(8, 5, generator=numbers), torch.randn(8, 3, generator=numbers)
        rows, targets = (part.chunk(world_size())[rank()] for part in (rows, targets))
        engine.backward((engine(rows) - targets).square().mean() * scale)
        engine.step()


def held(engine: Any) -> dict[str, Tensor]:
    """All that a checkpoint restores, and what the model computes with."""
    found = {f"{kind} {name}": value for kind in (WEIGHTS, *MOMENTS) for name, value in full_tensors(engine, kind)}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[f"model {name}"] = parameter.detach().float().clone()
    found["steps"] = torch.tensor([optimizer_steps(engine), engine.global_steps])
    found["lr"] = torch.tensor([engine.get_lr()[0], engine.lr_scheduler.get_last_lr()[0]], dtype=torch.float64)
    return found


def write(out: Path, case: str, tensors: dict[str, Tensor]) -> None:
    if rank() == 0:
        save_file({name: value.detach().clone() for name, value in tensors.items()}, out / f"{case}.safetensors")


def save(out: Path, stage: int, precision: str) -> None:
    """Three steps, a checkpoint, three more steps; then the same from the checkpoint."""
    case = f"{precision} ZeRO {stage} on {world_size()}"
    engine = make(stage, precision, seed=0)
    train(engine, 1, 3)
    save_checkpoint(engine, out / case, 3, keep=2)
    write(out, f"{case}, saved", held(engine))
    train(engine, 4, 6)
    write(out, f"{case}, uninterrupted", held(engine))
    engine = make(stage, precision, seed=1)
    assert load_newest_checkpoint(engine, out / case) == 3
    train(engine, 4, 6)
    write(out, f"{case}, resumed", held(engine))


def load(out: Path, stage: int, precision: str) -> None:
    """From checkpoints that others wrote."""
    for source in ("ZeRO 1 on 1", "ZeRO 3 on 2"):
        engine = make(stage, precision, seed=1)
        load_newest_checkpoint(engine, out / f"{precision} {source}")
        case = f"{precision} {source} read by ZeRO {stage} on {world_size()}"
        write(out, f"{case}, loaded", held(engine))
        if precision == "fp32":
            train(engine, 4, 6)
            write(out, f"{case}, resumed", held(engine))


def keep_best(out: Path, stage: int, precision: str) -> None:
    """Weights that are kept, trained on, and put back."""
    case = f"{precision} ZeRO {stage} on {world_size()}"
    engine = make(stage, precision, seed=0)
    train(engine, 1, 3)
    save_weights(engine, out / case / "checkpoints/best", step=1)
    write(out, f"{case}, best", held(engine))
    train(engine, 4, 5)
    write(out, f"{case}, last", held(engine))
    load_weights(engine, out / case / "checkpoints/best")
    write(out, f"{case}, restored", held(engine))
    state = gathered_state_dict(engine, lora=False)
    if stage < 3 or rank() > 0:
        assert state is None
    else:
        write(out, f"{case}, gathered", {name: value.float() for name, value in state.items()})


def skip_broken_step(out: Path, stage: int, precision: str) -> None:
    case = f"{precision} ZeRO {stage} on {world_size()}"
    engine = make(stage, precision, seed=0)
    save_checkpoint(engine, out / f"{case} at 0", 0, keep=1)  # of a run that breaks in its first step
    write(out, f"{case}, before", held(engine))
    train(engine, 1, 1, scale=float("nan") if rank() == 0 else 1.0)
    other = make(stage, precision, seed=1)
    assert load_newest_checkpoint(other, out / f"{case} at 0") == 0
    write(out, f"{case}, after", {**held(engine), "steps": held(other)["steps"]})
    write(out, f"{case}, at 0", held(other))


def fail_together(out: Path, stage: int, precision: str) -> None:
    """What only process 0 sees must end all of them, in the same way."""
    engine = make(stage, precision, seed=0)
    train(engine, 1, 1)
    run = out / "fail"
    save_checkpoint(engine, run, 1, keep=2)
    written = checkpoint.save_file

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    messages = []
    checkpoint.save_file = full_disk if rank() == 0 else written
    for action in (
        lambda: save_checkpoint(engine, run, 2, keep=2),
        lambda: load_newest_checkpoint(engine, run),
        lambda: on_first_process(full_disk),
        lambda: on_first_process(lambda: [][0]),
    ):
        try:
            action()
        except (FANoiseError, OSError, IndexError) as error:
            messages.append(one_line(error))
        torch.distributed.barrier()
        if rank() == 0:
            (run / "checkpoints/step_1/state.json").unlink(missing_ok=True)
        torch.distributed.barrier()
    (out / f"messages of {rank()}").write_text("\n".join(messages))


def run(out: Path, phase: Any, cases: list[tuple[int, str]]) -> None:
    torch.set_num_threads(1)
    forked.partition_above(10)  # some are, some are not
    init_process_group()
    for stage, precision in cases:
        phase(out, stage, precision)


def main() -> None:
    out = Path(sys.argv[1])
    zero = [(stage, precision) for precision in ("fp32", "bf16") for stage in (1, 2, 3)]
    cases = [(0, "fp32"), *zero]
    for phase, selected in ((save, cases), (load, cases), (keep_best, cases), (skip_broken_step, zero)):
        for processes in (1, 2):
            if forked.wait(forked.start(partial(run, out, phase, selected), processes)):
                sys.exit(f"{phase.__name__} on {processes} failed")
    if forked.wait(forked.start(partial(run, out, fail_together, [(2, "fp32")]), 2, limit_s=60)):
        sys.exit("fail_together failed")


if __name__ == "__main__":
    main()
