"""The contract between a vision-language model and everything else.

A backbone adapts a model class that already exists upstream: it knows how items become model inputs and where the
post-norm hidden states come out. Nothing outside this folder compares model names.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Example:
    """What one item gives the model: its prompt, its text ("" for none), and its decoded image."""

    prompt: str
    text: str
    image: Image.Image | None


@dataclass(kw_only=True)
class Backbone(ABC):
    """A loaded model with its processor.

    `model` may be wrapped (adapters); `forward` reaches through the wrapper.
    """

    model: Any
    processor: Any

    model_types: ClassVar[tuple[str, ...]]
    """`model_type` values of the checkpoints' config.json that this class serves."""
    lora_targets: ClassVar[str]
    """Regular expression, matched in full: the language tower's attention and MLP projections, nothing else."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype, revision: str | None = None) -> "Backbone":
        """Load model and processor from a local checkpoint or a hub id, in eval mode on the CPU."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Hidden size, which is the embedding dimension."""

    @abstractmethod
    def processor_state(self) -> dict[str, Any]:
        """Everything in the processor that changes a model batch, as plain JSON values, without paths or versions."""

    @abstractmethod
    def set_max_pixels(self, max_pixels: int) -> None:
        """Images above this many pixels are resized down to it; image tokens are never truncated."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], *, max_tokens: int) -> dict[str, Tensor]:
        """One padded batch; text is cut to `max_tokens`, images never are. Any mix of text, image and both."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, L, H] hidden states after the final norm; `batch` also holds the attention mask [B, L]."""
