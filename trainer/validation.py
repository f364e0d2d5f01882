"""Noise-free retrieval on held-out pairs while training: what is best so far, and when to stop."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fanoise.catalog import Item
from fanoise.distributed import gather_rows, rank, world_size
from fanoise.embedder import Embedder, Role
from fanoise.errors import CatalogError, ImageError
from fanoise.images import open_image
from trainer.config import RunConfig, ValidationConfig
from trainer.log_files import append
from trainer.outcomes import on_first_process
from trainer.pair_table import Pair
from trainer.pairs import valid_answers

VALIDATION_FILE = "validation.jsonl"


@dataclass(frozen=True)
class HeldOut:
    """The pairs of one file that can be read; their positives are the gallery."""

    name: str
    pairs: list[Pair]


def read_held_out(files: list[tuple[str, Any]]) -> tuple[list[HeldOut], str]:
    """Open every image once, so that training does not end at the first validation; also which pairs were lost.

    Process 0 looks for all: a file that one process fails to read for a moment would set them apart for ever.
    Raises: CatalogError for a file that has fewer than two pairs left.
    """

    def broken_rows() -> list[dict[int, str]]:
        return [{row: reason for row, pair in enumerate(table) if (reason := _why_broken(pair))} for _, table in files]

    found, lost, first = [], 0, ""
    for (name, table), broken in zip(files, on_first_process(broken_rows), strict=True):
        lost += len(broken)
        first = first or next(iter(broken.values()), "")
        if len(table) - len(broken) < 2:
            reason = f" ({next(iter(broken.values()))})" if broken else ""
            raise CatalogError(
                f"validation.pairs {name}: {len(table) - len(broken)} of {len(table)} pairs can be read{reason}, at "
                "least 2 are needed to rank; check data.images and the paths"
            )
        found.append(HeldOut(name, [pair for row, pair in enumerate(table) if row not in broken]))
    return found, f"{lost} held-out pair(s) have a broken image and are left out ({first})" if lost else ""


def validate(engine: Any, embedder: Embedder, held_out: list[HeldOut], config: RunConfig) -> dict[str, Any]:
    """Recall@1 and mean reciprocal rank by file, and their mean over the files. Every process gets the same."""
    device = next(engine.module.parameters()).device
    training, files = engine.module.training, {}
    engine.module.eval()
    try:
        for part in held_out:
            queries = _encode(engine, embedder, [pair.query for pair in part.pairs], "query", config, device)
            positives = _encode(engine, embedder, [pair.positive for pair in part.pairs], "item", config, device)
            files[part.name] = ranking_metrics(queries, positives, valid_answers(part.pairs))
    finally:
        engine.module.train(training)
    means = {name: float(np.mean([found[name] for found in files.values()])) for name in ("recall@1", "mrr")}
    # unlike devices may round the same scores to another winner, and stop, or save, without each other
    return on_first_process(lambda: {**means, "files": files})


def ranking_metrics(queries: Tensor, positives: Tensor, answers: np.ndarray) -> dict[str, float]:
    """Of [G, D] unit rows, where the positive of query i is row i and `answers` [G, G] do not compete with it.

    A tie, to rounding, counts against the positive, so a collapsed model does not look perfect.
    """
    similarity = queries @ positives.T
    competes = ~torch.from_numpy(answers).to(similarity.device)
    competes.fill_diagonal_(False)
    # "not below" rather than "at least": nothing is below a NaN, so a broken model does not look perfect either
    ahead = (~(similarity < similarity.diagonal()[:, None] - 1e-6) & competes).sum(dim=1).double()
    return {"recall@1": float((ahead == 0).double().mean()), "mrr": float((1 / (1 + ahead)).mean())}


class History:
    """The validations of a run so far, and what follows from them. Nothing but the log is state."""

    def __init__(self, run: Path, config: ValidationConfig) -> None:
        self._file, self._config = run / VALIDATION_FILE, config
        self.rows: list[dict[str, Any]] = on_first_process(self._read)

    def _read(self) -> list[dict[str, Any]]:
        text = self._file.read_text() if self._file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def add(self, row: dict[str, Any]) -> None:
        """Raises: TrainingError with a remedy where the log cannot be written."""
        self.rows.append(row)
        if rank() == 0:
            append(self._file, json.dumps(row) + "\n")

    @property
    def best(self) -> dict[str, Any] | None:
        """The best row, the earliest of equals."""
        return max(self.rows, key=lambda row: row[self._config.metric], default=None)

    @property
    def is_over(self) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        best = self.best
        return best is not None and 0 < self._config.patience <= len(self.rows) - 1 - self.rows.index(best)


def _why_broken(pair: Pair) -> str:
    """What is wrong with an image of the pair; empty if nothing is."""
    try:
        for item in (pair.query, pair.positive):
            if item.image is not None:
                open_image(item.image)
    except ImageError as error:
        return str(error)
    return ""


@torch.no_grad()
def _encode(
    engine: Any, embedder: Embedder, items: list[Item], role: Role, config: RunConfig, device: torch.device
) -> Tensor:
    """[N, D] unit rows of all items, on every process; each encodes its share."""
    shares = np.array_split(np.arange(len(items)), world_size())
    size = config.chunk_size
    # ZeRO communicates in every call: all processes make equally many
    calls = -(-len(shares[0]) // size)
    own = [items[row] for row in shares[rank()]]
    rows = []
    for call in range(calls):
        chunk = own[call * size : (call + 1) * size]
        batch = embedder.collate(chunk or items[:1], role, complete=config.needs_complete_batches(world_size()))
        embeddings = engine({key: value.to(device) for key, value in batch.items()})
        rows.append(embeddings[: len(chunk)])
    return gather_rows(F.normalize(torch.cat(rows).float(), dim=-1))
