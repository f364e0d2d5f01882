"""Which pairs a step sees, and their model batches: a pure function of (seed, step), so resuming needs no state."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fanoise.catalog import Item
from fanoise.embedder import Embedder, Role
from fanoise.errors import ConfigError, ImageError
from fanoise.images import open_image
from trainer.config import RunConfig
from trainer.mmeb import is_mmeb_train, read_mmeb_train
from trainer.pairs import Pair, read_pairs, valid_answers

ModelBatch = dict[str, Tensor]


class BatchPlan:
    """Global batches by step: one file a step, drawn by weight; each file is walked in a fresh order every epoch."""

    def __init__(self, files: Sequence[Sequence[Pair]], config: RunConfig) -> None:
        self._files = files
        self._batch_size = config.batch_size
        self._seed = config.seed
        for name, pairs in zip(config.data.pairs, files, strict=True):
            if len(pairs) < config.batch_size:
                raise ConfigError(f"batch_size ({config.batch_size}) is more than the {len(pairs)} pairs of {name}")
        weights = np.array(config.data.weights or [len(pairs) for pairs in files], dtype=float)
        if (weights < 0).any() or not weights.sum() > 0:
            raise ConfigError(f"data.weights must be >= 0 with a positive sum, got {config.data.weights}")
        draws = np.random.default_rng([self._seed, 0]).random(config.max_steps)
        self._file_of_step = np.searchsorted(np.cumsum(weights / weights.sum()), draws, side="right").clip(
            max=len(files) - 1
        )

    def pairs(self, step: int) -> list[Pair]:
        """The global batch of a step; the first is 1."""
        file = int(self._file_of_step[step - 1])
        visit = int((self._file_of_step[: step - 1] == file).sum())
        size = len(self._files[file])
        epoch, batch = divmod(visit, size // self._batch_size)  # the remainder of an epoch waits for the next shuffle
        order = np.random.default_rng([self._seed, 1, file, epoch]).permutation(size)
        rows = order[batch * self._batch_size : (batch + 1) * self._batch_size]
        return [self._files[file][row] for row in rows]


@dataclass
class StepBatch:
    """One process's share of a step, chunked and collated, still on the CPU."""

    step: int
    query: list[ModelBatch]
    positive: list[ModelBatch]
    negative: list[ModelBatch]
    rows: list[int]
    """Places of this process's pairs in the global batch; pairs with a broken image are missing."""
    has_negative: list[bool]
    """For each of `rows`, whether a mined negative exists; `negative` holds only those."""
    valid_answers: np.ndarray
    """[G, G] of the whole planned batch, to be cut to the rows that survived."""
    rejects: list[dict[str, str]] = field(default_factory=list)


class StepBatches(Dataset[StepBatch]):
    """Map from step to `StepBatch`; opens and augments images, deterministic by (seed, step, place)."""

    def __init__(self, plan: BatchPlan, embedder: Embedder, config: RunConfig, *, rank: int, world_size: int) -> None:
        self._plan, self._embedder, self._config = plan, embedder, config
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return self._config.max_steps + 1

    def __getitem__(self, step: int) -> StepBatch:
        pairs = self._plan.pairs(step)
        rows, kept, rejects = [], [], []
        for row in np.array_split(np.arange(len(pairs)), self._world_size)[self._rank].tolist():
            try:
                kept.append(self._open(pairs[row], step, row))
                rows.append(row)
            except ImageError as error:
                rejects.append({"pair": pairs[row].query.id, "step": str(step), "reason": str(error)})
        negatives = [pair.negative for pair in kept if pair.negative is not None]
        return StepBatch(
            step=step,
            query=self._chunks([pair.query for pair in kept], "query"),
            positive=self._chunks([pair.positive for pair in kept], "item"),
            negative=self._chunks(negatives, "item"),
            rows=rows,
            has_negative=[pair.negative is not None for pair in kept],
            valid_answers=valid_answers(pairs),
            rejects=rejects,
        )

    def _open(self, pair: Pair, step: int, row: int) -> Pair:
        rng = random.Random(f"{self._config.seed}/{step}/{row}")
        return replace(
            pair,
            query=self._open_item(pair.query, rng),
            positive=self._open_item(pair.positive, rng),
            negative=None if pair.negative is None else self._open_item(pair.negative, rng),
        )

    def _open_item(self, item: Item, rng: random.Random) -> Item:
        if item.image is None:
            return item
        return replace(item, image=_augment(open_image(item.image), self._config.data.augment, rng))

    def _chunks(self, items: Sequence[Item], role: Role) -> list[ModelBatch]:
        size = self._config.chunk_size
        return [self._embedder.collate(items[start : start + size], role) for start in range(0, len(items), size)]


def load_plan(config: RunConfig) -> BatchPlan:
    return BatchPlan([_read_file(path, config.data.images) for path in config.data.pairs], config)


def _read_file(path: str, images: str | None) -> list[Pair]:
    if not is_mmeb_train(path):
        return read_pairs(path)
    if images is None:
        raise ConfigError(f"data.images is not set; {path} is in MMEB format, give the folder its image paths start in")
    return read_mmeb_train(path, images=images)


def step_loader(batches: StepBatches, *, first_step: int, last_step: int, workers: int) -> DataLoader[Any]:
    """Prepare steps ahead of time, in order."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, last_step + 1),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,  # the embedder's processor need not be pickled
        worker_init_fn=_single_thread if workers else None,
    )


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)  # the cores belong to the model


def _augment(image: Image.Image, how: str, rng: random.Random) -> Image.Image:
    if how == "none":
        return image
    width, height = image.size
    scale = rng.uniform(0.8, 1.0)
    crop_width, crop_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = rng.randint(0, width - crop_width), rng.randint(0, height - crop_height)
    image = image.crop((left, top, left + crop_width, top + crop_height))
    return ImageOps.mirror(image) if how == "crop_flip" and rng.random() < 0.5 else image
