"""Hidden states to one vector per row: the only place that knows about padding side."""

from typing import Literal, get_args

import torch
from torch import Tensor

from fanoise.errors import ConfigError

Pooling = Literal["last", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pool(hidden_states: Tensor, attention_mask: Tensor, pooling: Pooling = "last") -> Tensor:
    """[B, L, H], [B, L] -> [B, H]: the last attended token, or the mean over attended tokens.

    Works for left and right padding alike: the last attended position is looked up in the mask. A row that is all
    padding pools to its position 0 (last) or to zeros (mean).
    """
    if pooling == "last":
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask.bool() * positions).amax(dim=1)
        return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), last]
    if pooling == "mean":
        weights = attention_mask.to(hidden_states.dtype)[:, :, None]
        return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
    raise ConfigError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
