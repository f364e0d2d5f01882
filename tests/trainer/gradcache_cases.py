"""One training step per case on the processes a launcher made; rank 0 writes loss and gradients of each.

Run by test_gradcache.py with a JSON object of cases: name -> {base, out, stage, chunk_size, noise, lora, negatives,
uncached, split}. The batch is always the same 10 rows.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file

from fanoise.catalog import Item
from fanoise.distributed import gather_rows, rank, world_size
from fanoise.noise import NoiseConfig
from trainer.config import DataConfig, LoraConfig, ModelConfig, RunConfig
from trainer.engine import init_process_group, make_engine
from trainer.gradcache import gradcache_backward
from trainer.objective import Labels, Objective
from trainer.train import build_embedder

WORDS = ("red", "blue", "green", "yellow", "black")


def main() -> None:
    torch.set_num_threads(1)
    device = init_process_group()
    for name, case in json.loads(sys.argv[1]).items():
        run(name, case, device)


def run(name: str, case: dict[str, Any], device: torch.device) -> None:
    config = RunConfig(
        model=ModelConfig(base=case["base"]),
        data=DataConfig(pairs=["unused"]),
        output_dir=Path(case["out"]),
        lora=LoraConfig(enabled=case["lora"]),
        noise=NoiseConfig(**case["noise"]),
        zero_stage=case["stage"],
        max_steps=2,
    )
    torch.manual_seed(0)
    embedder = build_embedder(config, device)
    if case["lora"]:  # LoRA's B starts at zero, which would make every gradient of A zero
        for key, parameter in embedder.module.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.05)
    engine = make_engine(embedder.module, config)
    items = [(Item(text=f"a {WORDS[i % 5]} thing {i}"), Item(text=f"{i} is {WORDS[(i + 1) % 5]}")) for i in range(10)]
    negatives = [Item(text=f"not {WORDS[i % 5]}") for i in range(10)] if case["negatives"] else []
    rows = case["split"][rank()] if world_size() > 1 else list(range(10))
    owners = [row for row in rows if row % 3 == 0] if negatives else []
    chunk = case["chunk_size"]

    def chunks(selected: list[Item], role: str) -> list:
        return [embedder.collate(selected[start : start + chunk], role) for start in range(0, len(selected), chunk)]

    sides = {
        "query": chunks([items[row][0] for row in rows], "query"),
        "positive": chunks([items[row][1] for row in rows], "item"),
        "negative": chunks([negatives[row] for row in owners], "item"),
    }
    labels = Labels(
        exclude=torch.zeros(10, 10, dtype=torch.bool),
        negative_owner=gather_rows(torch.tensor(owners, dtype=torch.long)),
        rows_per_process=tuple(len(part) for part in case["split"]) if world_size() > 1 else (10,),
    )
    objective = Objective(config.noise, temperature=0.4, seed=3)

    def loss_of(gathered: dict[str, torch.Tensor]) -> torch.Tensor:
        item = (
            torch.cat([gathered["positive"], gathered["negative"]]) if "negative" in gathered else gathered["positive"]
        )
        return objective.loss(gathered["query"], item, labels, step=1)

    if case["uncached"]:  # the oracle: one graph over the whole batch, plain autograd, no engine in between
        embedded = {
            side: torch.cat([embedder.module(part) for part in parts]) for side, parts in sides.items() if parts
        }
        loss = loss_of(embedded)
        loss.backward()
        gradients = {key: p.grad for key, p in embedder.module.named_parameters() if p.grad is not None}
    else:
        loss = gradcache_backward(engine, sides, loss_of)
        gradients = {key: safe_get_full_grad(p) for key, p in embedder.module.named_parameters() if p.requires_grad}
    if rank() == 0:
        kept = {key: gradient.float().clone() for key, gradient in gradients.items() if gradient is not None}
        save_file({"loss": loss.detach().float().reshape(1), **kept}, Path(case["out"]) / f"{name}.safetensors")
    dist.barrier()
    engine.destroy()


if __name__ == "__main__":
    main()
