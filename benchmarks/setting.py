"""What the trainer's benchmarks share: a small random Qwen2-VL, captions with product photos, the trainer's own parts.

Import it after `fanoise.process.prepare_process()`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from demo import products
from demo.base import BaseSize, save_random_base
from demo.catalogs import Picture, draw, write_jsonl
from fanoise.embedder import Embedder
from fanoise.noise import NoiseConfig
from trainer.batches import StepBatch, StepBatches, load_plan
from trainer.config import DataConfig, LoraConfig, ModelConfig, OptimizerConfig, RunConfig
from trainer.engine import init_process_group, make_engine
from trainer.model import build_embedder
from trainer.objective import Objective
from trainer.step import make_labels, train_step

SEED = 5


@contextmanager
def workspace(pairs: int, *, varied: bool = False, size: BaseSize | None = None) -> Iterator[Path]:
    """A folder that is gone afterwards, with a random checkpoint in `base` and `pairs.jsonl`.

    Args:
        pairs: how many; each a caption of about ten tokens and its 256 px photo, none twice.
        varied: captions of one to twelve such sentences, most of them short, as they are in mixed training sets.
        size: of the checkpoint; by default that of the demo's base.
    """
    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory(prefix="fanoise-benchmark-") as name:
        folder = Path(name)
        sampled = products.sample_products(pairs, seed=SEED, held_out=False)
        captions = [products.describe(product, phrasing=number) for number, product in enumerate(sampled)]
        if varied:
            sentences = np.random.default_rng(SEED).lognormal(0.7, 0.8, size=pairs).astype(int).clip(1, 12)
            captions = [
                " ".join(captions[(number + more) % pairs] for more in range(count))
                for number, count in enumerate(sentences)
            ]
        pictures = [Picture(f"{number}.jpg", product, view=number) for number, product in enumerate(sampled)]
        draw(pictures, folder, label="photos", progress=False)
        write_jsonl(
            folder / "pairs.jsonl",
            [
                {"query_text": caption, "positive_image": picture.file}
                for caption, picture in zip(captions, pictures, strict=True)
            ],
        )
        save_random_base(folder / "base", captions, size=size or BaseSize(), seed=SEED)
        yield folder


def make_config(folder: Path, *, batch_size: int, chunk_size: int, lora: bool, noise: float) -> RunConfig:
    """The trainer's own defaults, apart from what is given; images of 112 x 112 pixels (16 tokens) at most."""
    return RunConfig(
        model=ModelConfig(base=str(folder / "base"), query_prompt="", item_prompt="", max_pixels=112 * 112),
        data=DataConfig(pairs=[str(folder / "pairs.jsonl")]),
        output_dir=folder / "run",
        noise=NoiseConfig(strength=noise),
        lora=LoraConfig(enabled=lora),
        optimizer=OptimizerConfig(warmup_steps=0),
        batch_size=batch_size,
        chunk_size=chunk_size,
        max_steps=100_000,
    )


@dataclass
class Training:
    """The trainer's own parts, put together as `trainer.train` does, without its files and loop."""

    config: RunConfig
    engine: Any
    embedder: Embedder
    device: torch.device

    @classmethod
    def start(cls, config: RunConfig) -> "Training":
        device = init_process_group()
        torch.manual_seed(config.seed)
        embedder = build_embedder(config, device)
        return cls(config, make_engine(embedder.module, config), embedder, device)

    def batches(self, **changes: int) -> StepBatches:
        """Batches by step, with the config's `batch_size` and `chunk_size` or others."""
        config = replace(self.config, **changes)
        return StepBatches(load_plan(config), self.embedder, config, rank=0, world_size=1)

    def objective(self, noise: float) -> Objective:
        return Objective(NoiseConfig(strength=noise), temperature=self.config.temperature, seed=self.config.seed)

    def step(self, batch: StepBatch, objective: Objective) -> dict[str, Any]:
        """Forward, gather, loss, backward, update, and the row of metrics."""
        keep = self.config.keeps_image_features
        return train_step(
            self.engine, objective, batch, self.device, views=False, spectrum=False, keep_image_features=keep
        )


class LossStage:
    """What a step does between its two passes, on random embeddings of its shape."""

    def __init__(self, training: Training, batch: StepBatch) -> None:
        shape = (len(batch.rows), training.embedder.dim)
        self._query, self._item = (
            F.normalize(torch.randn(shape, device=training.device), dim=-1).requires_grad_() for _ in range(2)
        )
        self._labels = make_labels(batch, training.device)

    def run(self, objective: Objective) -> None:
        loss = objective.loss(self._query, self._item, self._labels, step=1)
        torch.autograd.grad(loss, [self._query, self._item])
