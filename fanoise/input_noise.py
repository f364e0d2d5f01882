"""NEFTune (arXiv 2310.05914): uniform noise on the token embeddings, the peer that FANoise is compared with."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class InputNoise:
    """Adds `strength / sqrt(L d) * U(-1, 1)` to a language model's input embeddings while it trains.

    L is the number of attended tokens of a row, d the hidden size. Text and image tokens alike are perturbed. Draws
    come from torch's default generator, so GradCache's second pass repeats them like dropout masks.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def attach(self, language_model: nn.Module) -> RemovableHandle:
        """Perturb every later forward of a module that takes `inputs_embeds` [B, L, d]; `remove()` undoes it."""
        return language_model.register_forward_pre_hook(self._perturb, with_kwargs=True)

    def _perturb(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not module.training or self.strength == 0:
            return args, kwargs
        embedded = kwargs["inputs_embeds"]
        return args, {**kwargs, "inputs_embeds": self.perturb(embedded, kwargs.get("attention_mask"))}

    def perturb(self, embedded: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, L, d] -> [B, L, d]; padding is perturbed as well, which nothing attends to."""
        batch, longest, dim = embedded.shape
        lengths = torch.full((batch,), longest, device=embedded.device)
        if attention_mask is not None and attention_mask.ndim == 2:
            lengths = attention_mask.sum(dim=1)
        scale = self.strength / torch.sqrt(lengths.clamp_min(1).float() * dim)
        noise = torch.empty_like(embedded, dtype=torch.float32).uniform_(-1, 1) * scale[:, None, None]
        return embedded + noise.to(embedded.dtype)
