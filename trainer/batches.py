"""Which pairs a step sees, and their model batches: a pure function of (seed, step), so resuming needs no state."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from fanoise.catalog import Item
from fanoise.embedder import Embedder, Role
from fanoise.errors import CatalogError, ConfigError, FANoiseError, ImageError
from fanoise.images import open_image
from fanoise.process import settle_worker
from trainer.config import RunConfig
from trainer.epochs import Epochs
from trainer.gradcache import Side
from trainer.pair_table import Pair, PairTable
from trainer.pairs import equal_keys
from trainer.sources import load_pairs, matching_each, short_names


class BatchPlan:
    """Global batches by step. Each sub-batch comes from one file, drawn by weight; no sub-batches, the whole batch.

    A file's pairs are walked in a fresh order every epoch, so that pairs with the same query, positive or group are in
    different batches wherever there are enough others (see `Epochs`). Where they meet all the same, as they may across
    files and epochs, the loss has `StepBatch.valid_answers`. With sub-batches a file's last epoch depends on max_steps
    as well.
    """

    def __init__(self, tables: Sequence[PairTable], config: RunConfig) -> None:
        self._tables = tables
        self._size = config.data.sub_batch_size or config.batch_size
        self._parts = config.batch_size // self._size
        self.files = [(name, len(table)) for name, table in zip(config.data.pairs, tables, strict=True)]
        """Name and number of pairs of each file."""
        weights = self._weights(config)
        draws = np.random.default_rng([config.seed, 0]).random(config.max_steps * self._parts)
        ends = np.cumsum(weights / weights.sum())
        # of the file that a rounding error leaves beyond the last end there is none
        self._file = np.searchsorted(ends, draws, side="right").clip(max=np.flatnonzero(weights)[-1]).astype(np.int32)
        self._epochs: dict[int, Epochs] = {}
        self._steps: dict[int, np.ndarray] = {}
        self._draw = np.zeros(len(draws), dtype=np.int32)
        for file in np.flatnonzero(weights).tolist():
            places = np.flatnonzero(self._file == file)
            self._draw[places] = np.arange(len(places))
            self._steps[file] = places // self._parts
            self._epochs[file] = Epochs(tables[file].keys, self._size, (config.seed, 1, file))
        self.notes = [note for file in self._epochs for note in self._notes_on(file)]
        """What a user should hear about the files before training."""

    def rows(self, step: int) -> np.ndarray:
        """[G, 2] file and row of each pair in the global batch of a step; the first step is 1."""
        found = []
        for part in range((step - 1) * self._parts, step * self._parts):
            file = int(self._file[part])
            rows = self._epochs[file].rows(int(self._draw[part]), self._steps[file])
            found.append(np.stack([np.full(len(rows), file), rows], axis=1))
        return np.concatenate(found)

    def pairs(self, step: int) -> list[Pair]:
        """The global batch of a step."""
        return [self.pair(file, row) for file, row in self.rows(step).tolist()]

    def pair(self, file: int, row: int) -> Pair:
        return self._tables[file][row]

    def digests(self) -> dict[str, str]:
        """Of each file what says whether it is still the same, see `PairTable.digest`."""
        return {name: table.digest() for (name, _), table in zip(self.files, self._tables, strict=True)}

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """[G, 3] keys of [G, 2] `rows` (see `PairTable.keys`)."""
        keys = np.empty((len(rows), 3), dtype=np.int64)
        for file in np.unique(rows[:, 0]).tolist():
            of_file = rows[:, 0] == file
            keys[of_file] = self._tables[file].keys[rows[of_file, 1]]
        return keys

    def _weights(self, config: RunConfig) -> np.ndarray:
        weights = np.array(config.data.weights or [count for _, count in self.files], dtype=float)
        if not ((weights >= 0).all() and 0 < weights.sum() < np.inf):
            raise ConfigError(f"data.weights must be >= 0 with a positive sum, got {config.data.weights}")
        setting = "batch_size" if config.data.sub_batch_size is None else "data.sub_batch_size"
        for (name, count), weight in zip(self.files, weights, strict=True):
            if weight and count < self._size:
                alone = setting == "batch_size" and count < 2  # which nothing could be told apart from
                remedies = [] if alone else [f"set {setting} to at most {count}"]
                if len(self.files) > 1:
                    remedies.append("leave that file out")
                    if setting == "batch_size":
                        remedies.append(f"set data.sub_batch_size to at most {count}")
                remedy = ", or ".join(remedies) or "at least 2 are needed, each other's negatives"
                raise ConfigError(
                    f"{setting} ({self._size}) is more than the {count} pair{'s' * (count > 1)} of {name}; {remedy}"
                )
        return weights

    def _notes_on(self, file: int) -> Iterator[str]:
        name, count = self.files[file]
        if equal := self._tables[file].equal_negatives:
            yield f"{name}: {equal} mined negative(s) equal the positive of their own pair and are left out"
        epochs = self._epochs[file]
        largest, what = max(zip(epochs.largest, ("query", "positive", "group"), strict=True))
        if largest > epochs.draws:
            yield (
                f"{name}: {largest} of {count} pairs have the same {what}, too many to keep apart in batches of "
                f"{self._size}; in one batch they are not negatives of each other"
            )


@dataclass
class StepBatch:
    """One process's share of a step, chunked and collated, still on the CPU."""

    step: int
    query: Side
    positive: Side
    negative: Side
    """Mined negatives of all pairs, in the order of `rows`."""
    rows: list[int]
    """Places of this process's pairs in the global batch; pairs with a broken image are missing."""
    negative_counts: list[int]
    """For each of `rows`, how many mined negatives it has."""
    valid_answers: np.ndarray
    """[G, G] of the whole planned batch, to be cut to the rows that survived."""
    rejects: list[dict[str, Any]] = field(default_factory=list)
    """A record for each broken image: step, pair, side, image, reason. Only a broken negative leaves its pair."""
    broken_pairs: int = 0
    """How many pairs these belong to."""


class StepBatches(Dataset[StepBatch]):
    """Map from step to `StepBatch`; opens and augments images, deterministic by (seed, step, place)."""

    def __init__(self, plan: BatchPlan, embedder: Embedder, config: RunConfig, *, rank: int, world_size: int) -> None:
        self._plan, self._embedder, self._config = plan, embedder, config
        self._rank, self._world_size = rank, world_size
        self._complete = needs_complete_chunks(embedder, config, world_size)

    def __len__(self) -> int:
        return self._config.max_steps + 1

    def __getitem__(self, step: int) -> StepBatch:
        places = self._plan.rows(step)
        rows, kept, rejects, broken_pairs = [], [], [], 0
        for row in np.array_split(np.arange(len(places)), self._world_size)[self._rank].tolist():
            pair, broken = self._open(self._plan.pair(*places[row].tolist()), step, row)
            rejects += broken
            broken_pairs += bool(broken)
            if pair is not None:
                kept.append(pair)
                rows.append(row)
        return StepBatch(
            step=step,
            query=self._side([pair.query for pair in kept], "query", needed=True),
            positive=self._side([pair.positive for pair in kept], "item", needed=True),
            negative=self._side([item for pair in kept for item in pair.negatives], "item"),
            rows=rows,
            negative_counts=[len(pair.negatives) for pair in kept],
            valid_answers=equal_keys(self._plan.keys(places)),
            rejects=rejects,
            broken_pairs=broken_pairs,
        )

    def _open(self, pair: Pair, step: int, row: int) -> tuple[Pair | None, list[dict[str, Any]]]:
        """The pair with its images, None if it cannot be had, and a record for each broken image."""
        rng = random.Random(f"{self._config.seed}/{step}/{row}")
        broken: list[dict[str, Any]] = []

        def opened(item: Item, side: str) -> Item | None:
            if item.image is None:
                return item
            try:
                return replace(item, image=_augment(open_image(item.image), self._config.data.augment, rng))
            except ImageError as error:
                broken.append(
                    {"step": step, "pair": item.id, "side": side, "image": str(item.image), "reason": error.reason}
                )
                return None

        query, positive = opened(pair.query, "query"), opened(pair.positive, "positive")
        negatives = [opened(item, "negative") for item in pair.negatives]
        if query is None or positive is None:
            return None, broken
        found = tuple(item for item in negatives if item is not None)
        return replace(pair, query=query, positive=positive, negatives=found), broken

    def _side(self, items: Sequence[Item], role: Role, *, needed: bool = False) -> Side:
        """The longest first: a chunk is padded to its longest item, and too little memory shows at once.

        Args:
            needed: a chunk without rows where there is no item, since every process calls the model in every step.
        """
        size = self._config.chunk_size

        def length(row: int) -> float:
            text, image = items[row].text, items[row].image
            return self._embedder.length(text, image.width * image.height if isinstance(image, Image.Image) else 0)

        rows = sorted(range(len(items)), key=length, reverse=True)
        chunks = [
            self._embedder.collate([items[row] for row in rows[start : start + size]], role, complete=self._complete)
            for start in range(0, len(items), size)
        ]
        if needed and not chunks:
            chunks = [self._embedder.collate([], role, complete=True)]
        return Side(chunks, torch.tensor(rows, dtype=torch.long))


def needs_complete_chunks(embedder: Embedder, config: RunConfig, processes: int) -> bool:
    """Whether every chunk of a step must hold text and an image, whatever its rows hold (see `Embedder.collate`)."""
    # where only a part of the model learns, such as a dual encoder's text tower, a chunk that does not reach it has no
    # gradient at all
    partial = embedder.backbone.language_model is None or config.lora.targets is not None
    return config.needs_complete_batches(processes) or partial


def load_plan(config: RunConfig) -> BatchPlan:
    """Read `data.pairs`; of a pattern every file has the pattern's weight."""
    found = matching_each(config.data.pairs)
    weights = config.data.weights
    if weights is not None:
        weights = [weight for weight, sources in zip(weights, found, strict=True) for _ in sources]
    data = replace(config.data, pairs=[source for sources in found for source in sources], weights=weights)
    config = replace(config, data=data)
    return BatchPlan(load_pairs(data.pairs, config, max_pairs=data.max_pairs), config)


def load_validation(config: RunConfig) -> list[tuple[str, PairTable]]:
    """The tables of `validation.pairs`, each with a short name of its own.

    Raises: CatalogError for a file with fewer than two pairs.
    """
    sources = [source for found in matching_each(config.validation.pairs) for source in found]
    tables = load_pairs(sources, config, max_pairs=config.validation.max_pairs)
    for source, table in zip(sources, tables, strict=True):
        if len(table) < 2:
            raise CatalogError(
                f"validation.pairs {source}: {len(table)} pair, at least 2 are needed to rank; add some, or leave the "
                "file out"
            )
    return list(zip(short_names(sources), tables, strict=True))


def step_loader(batches: StepBatches, *, first_step: int, last_step: int, workers: int) -> Iterator[StepBatch]:
    """Prepare steps ahead of time, in order; what a data worker raises comes out as in this process.

    Raises: RuntimeError where one is killed (see `naming_lost_processes`).
    """
    loader = DataLoader(
        _Guarded(batches),
        batch_size=None,
        sampler=range(first_step, last_step + 1),
        num_workers=workers,
        prefetch_factor=2 if workers else None,  # a batch of a thousand pictures takes gigabytes
        multiprocessing_context="fork" if workers else None,  # neither processor nor tables need be pickled
        worker_init_fn=_settle if workers else None,
    )
    for batch in loader:
        if isinstance(batch, FANoiseError):
            raise batch
        yield batch


class _Guarded(Dataset[StepBatch | FANoiseError]):
    """Hands errors on as values: torch would raise them again with the worker's traceback as their message."""

    def __init__(self, batches: StepBatches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> StepBatch | FANoiseError:
        try:
            return self._batches[step]
        except FANoiseError as error:
            return error


def _settle(worker: int) -> None:
    settle_worker(shared_memory=True)


def _augment(image: Image.Image, how: str, rng: random.Random) -> Image.Image:
    if how == "none":
        return image
    width, height = image.size
    scale = rng.uniform(0.8, 1.0)
    crop_width, crop_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = rng.randint(0, width - crop_width), rng.randint(0, height - crop_height)
    image = image.crop((left, top, left + crop_width, top + crop_height))
    return ImageOps.mirror(image) if how == "crop_flip" and rng.random() < 0.5 else image
