"""What all fake embedders of the tests share: both halves of a real one, and next to no cost."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fanoise.catalog import Item


class FakeModel(torch.nn.Module):
    """Passes on what `collate` made of the rows, and writes down how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[int] = []

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.batches.append(len(batch["vectors"]))
        return batch["vectors"] + self.weight


class FakeEmbedder(ABC):
    """The interface of `fanoise.Embedder`; a kind of its own says in `vector_of` what becomes of an item."""

    def __init__(self, path: str, *, dim: int, weights: str, noise: dict[str, Any] | None = None) -> None:
        self.path, self.name, self.dim = path, path.rsplit("/", 1)[-1], dim
        self.noise = noise or {}
        self.fingerprint = {
            "weights": weights,
            "processor": "p1",
            "prompts": "q1",
            "pooling": "last",
            "dim": str(dim),
        }
        self.module = FakeModel()

    @abstractmethod
    def vector_of(self, item: Item) -> np.ndarray:
        """float32 [dim] of length 1; raises ImageError for what it refuses."""

    def length(self, text: str | None, pixels: int) -> float:
        return len(text or "") / 4 + pixels / 784

    def collate(self, items: Sequence[Item], role: str) -> dict[str, torch.Tensor]:
        assert role == "item"
        return {"vectors": torch.from_numpy(np.stack([self.vector_of(item) for item in items]))}

    def encode(self, items: Sequence[Item], *, role: str = "item", batch_size: int = 32) -> np.ndarray:
        return np.stack([self.vector_of(item) for item in items])
