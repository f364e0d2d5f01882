"""Loss and gradients of training steps: as DeepSpeed's optimiser received them, or by plain autograd in one process.

Run by test_gradcache.py with a JSON object: `out` and `jobs`. A job is a number of `processes`, a `base`, the settings
of a `model` (`only_weights` rounds the weights to bf16 but computes in fp32) and named `batches`, which it takes one
after the other. The pairs are always the same 10.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import forked
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from fanoise.catalog import Item
from fanoise.distributed import gather_rows, rank
from fanoise.embedder import Embedder, Role
from fanoise.noise import NoiseConfig
from trainer.batches import needs_complete_chunks
from trainer.config import DataConfig, LoraConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig
from trainer.engine import init_process_group, make_engine, resolve_dtype
from trainer.full_state import full_tensors
from trainer.gradcache import ModelBatch, Side, gradcache_backward
from trainer.model import add_lora, attach_input_noise
from trainer.objective import Labels, Objective

WORDS = ("red", "blue", "green", "yellow", "black")
DEFAULTS = {
    "stage": 1,
    "lora": True,
    "dora": False,
    "dropout": 0.0,
    "input_noise": 0.0,
    "checkpointing": False,
    "precision": "fp32",
    "only_weights": False,
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How the 10 pairs are shared out and what the loss does with them."""

    split: list[list[int]]
    """The rows of each process, in order."""
    chunk_size: int = 3
    temperature: float = 0.6
    noise: dict[str, Any] = field(default_factory=lambda: {"strength": 0.5})
    negatives: bool = False
    """Rows 0, 3, 6 and 9 have a mined negative, so processes make different numbers of calls."""
    views: bool = False
    """The queries go through the model twice, with dropout masks of their own."""
    images: list[int] = field(default_factory=list)
    """Rows whose query and positive are images without text; the others are texts without image."""

    def chunked(self, embedder: Embedder, process: int | None, *, complete: bool = False) -> dict[str, Side]:
        """The sides of one process, the chunks out of order; none gives the joined batch, one chunk a side."""
        rows = [row for part in self.split for row in part] if process is None else self.split[process]
        size = len(rows) if process is None else self.chunk_size
        owners = [row for row in rows if row % 3 == 0] if self.negatives else []
        sides = {
            "query": [item(row, row in self.images, f"{WORDS[row % 5]} {row}") for row in rows],
            "positive": [item(row + 50, row in self.images, f"{row} is {WORDS[(row + 1) % 5]}") for row in rows],
            "negative": [item(row, False, f"{WORDS[row % 5]} not {row}") for row in owners],
        }
        found = {}
        for side, items in sides.items():
            role: Role = "query" if side == "query" else "item"
            order = sorted(range(len(items)), key=lambda row: (row % 2, -row))
            chunks = [
                embedder.collate([items[row] for row in order[start : start + size]], role, complete=complete)
                for start in range(0, len(items), size)
            ]
            if side != "negative" and not chunks:  # as a step's batch has it
                chunks = [embedder.collate([], role, complete=True)]
            found[side] = Side(chunks, torch.tensor(order, dtype=torch.long))
        return {**found, "view": found["query"]} if self.views else found

    def loss(self, gathered: dict[str, Tensor], owners: Tensor) -> Tensor:
        labels = Labels(
            exclude=torch.zeros(10, 10, dtype=torch.bool),
            negative_owner=owners,
            rows_per_process=tuple(len(rows) for rows in self.split),
        )
        objective = Objective(
            NoiseConfig(**self.noise),
            temperature=self.temperature,
            seed=3,
            loss=LossConfig(dropout_pairs=float(self.views)),
        )
        items = [gathered[side] for side in ("positive", "negative") if side in gathered]
        return objective.loss(gathered["query"], torch.cat(items), labels, step=1, view=gathered.get("view"))

    def owners(self, process: int) -> Tensor:
        rows = [row for row in self.split[process] if row % 3 == 0] if self.negatives else []
        return torch.tensor(rows, dtype=torch.long)


def item(seed: int, is_image: bool, text: str) -> Item:
    """Texts that every tiny model tells well apart: where some have one vector, rounding decides the gradients."""
    if not is_image:
        return Item(text=text)
    pixels = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    return Item(image=Image.fromarray(pixels))


def run(job: dict[str, Any], out: Path) -> None:
    torch.set_num_threads(1)
    forked.partition_above(0)
    init_process_group()
    model = {**DEFAULTS, **job["model"]}
    config = RunConfig(
        model=ModelConfig(base=job["base"]),
        data=DataConfig(pairs=["unused"]),
        output_dir=out,
        lora=LoraConfig(enabled=model["lora"], dropout=model["dropout"], dora=model["dora"]),
        noise=NoiseConfig(position="input", strength=model["input_noise"]),
        optimizer=OptimizerConfig(max_grad_norm=0.0),
        zero_stage=model["stage"],
        precision=model["precision"],
    )
    embedder = make_embedder(config, model)
    attach_input_noise(embedder, config)
    engine = None if job["oracle"] else make_engine(embedder.module, config)
    module = embedder.module
    frozen = module.with_features if config.keeps_image_features and module.has_frozen_images else None
    # the row that completes a chunk would draw what the oracle's chunks do not
    draws = model["dropout"] > 0 or model["input_noise"] > 0
    complete = needs_complete_chunks(embedder, config, job["processes"]) and not draws
    for name, settings in job["batches"].items():
        batch = Batch(**settings)
        if engine is None:
            found = oracle(embedder, batch, by_chunk=draws)
        else:
            found = cached(engine, batch, batch.chunked(embedder, rank(), complete=complete), frozen)
        if rank() == 0:
            found = {key: value.detach().float().clone() for key, value in found.items()}
            save_file(found, out / f"{job['name']}, {name}.safetensors")


def make_embedder(config: RunConfig, model: dict[str, Any]) -> Embedder:
    base = config.model.base
    torch.manual_seed(0)
    embedder = Embedder.from_pretrained(base, device="cpu", dtype=resolve_dtype(config))
    if model["lora"]:
        add_lora(embedder.backbone, config.lora)
        embedder = Embedder(embedder.backbone, embedder.spec, path=base, device="cpu")
        for name, parameter in embedder.module.named_parameters():
            if "lora_B" in name:  # starts at zero, which would make every gradient of A zero
                torch.nn.init.normal_(parameter, std=0.05)
    embedder.module.train()
    if not model["dropout"]:  # BLIP-2 has some of its own, in modules and in attention
        for module in embedder.module.modules():
            for name in {"p", "attention_dropout"} & vars(module).keys():
                setattr(module, name, 0.0)
    if model["checkpointing"]:
        settings = {"use_reentrant": False}
        embedder.backbone.unwrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    if model["precision"] == "bf16":
        for parameter in embedder.module.parameters():  # the adapters too, as DeepSpeed does
            parameter.data = parameter.data.bfloat16()
        if model["only_weights"]:
            embedder.module.float()
    return embedder


def cached(
    engine: Any, batch: Batch, sides: dict[str, Side], frozen: Callable[[ModelBatch], ModelBatch] | None
) -> dict[str, Tensor]:
    """AdamW's first mean starts at zero and takes a tenth of the gradient: it is what the optimiser really received."""
    for state in engine.optimizer.state.values():
        state["exp_avg"].zero_()
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0  # the next batch finds the same model
    owners = gather_rows(batch.owners(rank()))
    torch.manual_seed(rank())
    loss = gradcache_backward(engine, sides, lambda gathered: batch.loss(gathered, owners), frozen=frozen)
    engine.step()
    return {"loss": loss.reshape(1)} | {name: mean / 0.1 for name, mean in full_tensors(engine, "exp_avg")}


def oracle(embedder: Embedder, batch: Batch, *, by_chunk: bool) -> dict[str, Tensor]:
    """One graph over the whole batch, one backward pass, no engine.

    Args:
        by_chunk: draw the dropout masks, and noise, of every process as it does, one chunk after the other.
    """
    outputs: dict[str, list[Tensor]] = {}
    for process in range(len(batch.split)) if by_chunk else [None]:
        torch.manual_seed(process or 0)
        for name, side in batch.chunked(embedder, process).items():
            found = [row for chunk in side.chunks for row in embedder.module(chunk)]
            by_row = dict(zip(side.rows.tolist(), found, strict=True))  # type: ignore[union-attr]
            outputs.setdefault(name, []).extend(by_row[row] for row in range(len(found)))
    embedder.module.zero_grad()
    owners = torch.cat([batch.owners(process) for process in range(len(batch.split))])
    loss = batch.loss({side: torch.stack(rows) for side, rows in outputs.items() if rows}, owners)
    loss.backward()
    gradients = {name: p.grad for name, p in embedder.module.named_parameters() if p.grad is not None}
    return {"loss": loss.reshape(1), **gradients}


def main() -> None:
    task = json.loads(sys.argv[1])
    for base in {job["base"] for job in task["jobs"]}:
        Embedder.from_pretrained(base, device="cpu")  # what transformers works out once, all processes inherit
    for job in task["jobs"]:
        code = forked.wait(forked.start(partial(run, job, Path(task["out"])), job["processes"]))
        if code:
            sys.exit(f"{job['name']}: a process ended with {code}")


if __name__ == "__main__":
    main()
