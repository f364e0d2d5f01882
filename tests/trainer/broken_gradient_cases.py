"""A finite loss with a gradient that is not: does it reach the weights? Prints one JSON object a case.

Arguments: folder of a checkpoint, then cases like `1-fp32`.
"""

import json
import math
import os
import sys
from pathlib import Path

import torch

from fanoise.catalog import Item
from trainer.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig
from trainer.engine import init_process_group, make_engine
from trainer.full_state import WEIGHTS, full_tensors
from trainer.gradcache import Side, gradcache_backward
from trainer.model import build_embedder
from trainer.step import update


def weights(engine) -> list[torch.Tensor]:
    return [tensor.clone() for _, tensor in full_tensors(engine, WEIGHTS)]


def main() -> None:
    torch.set_num_threads(1)
    report = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    device = init_process_group()
    for case in sys.argv[2:]:
        stage, precision = case.split("-")
        config = RunConfig(
            model=ModelConfig(base=sys.argv[1]),
            data=DataConfig(pairs=["unused"]),
            output_dir=Path("unused"),
            optimizer=OptimizerConfig(lr=0.1, warmup_steps=0),
            zero_stage=int(stage),
            precision=precision,
        )
        embedder = build_embedder(config, device)
        engine = make_engine(embedder.module, config)
        chunk = embedder.collate([Item(text="a red square")] * 2, "item")
        before = weights(engine)
        # the root of zero: 0, with a slope of 0 / 0
        loss = gradcache_backward(engine, {"query": Side([chunk])}, lambda sides: (sides["query"] * 0).sum().sqrt())
        broken = update(engine)
        after = weights(engine)
        gradcache_backward(engine, {"query": Side([chunk])}, lambda sides: sides["query"][:, 0].sum())
        sound = update(engine)
        facts = {
            "case": case,
            "loss": float(loss),
            "noticed": not math.isfinite(broken),
            "kept": all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
            "sound": math.isfinite(sound),
            "moved": not all(torch.equal(a, b) for a, b in zip(before, weights(engine), strict=True)),
        }
        print(json.dumps(facts), file=report, flush=True)
        engine.destroy()


if __name__ == "__main__":
    main()
