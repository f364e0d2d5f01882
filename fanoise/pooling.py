"""Hidden states to one vector per row: the only place that knows about padding side."""

from typing import Literal, get_args

import torch
from torch import Tensor

from fanoise.errors import ConfigError

Pooling = Literal["last", "mean", "prompt", "native"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

_ONE_WORD = {
    "text": "\nSummary above sentence in one word: ",
    "image": "\nSummary above image in one word: ",
    "both": "\nSummary above image and sentence in one word: ",
}


def pool(hidden_states: Tensor, attention_mask: Tensor, pooling: Pooling = "last") -> Tensor:
    """[B, L, H], [B, L] -> [B, H]: the last attended token, or the mean over attended tokens.

    Works for left and right padding alike: the last attended position is looked up in the mask. A row that is all
    padding pools to its position 0 (last) or to zeros (mean). `prompt` is `last` on rows that end in `one_word_prompt`.
    """
    if pooling in ("last", "prompt"):
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask.bool() * positions).amax(dim=1)
        return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), last]
    if pooling == "mean":
        weights = attention_mask.to(hidden_states.dtype)[:, :, None]
        return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
    raise ConfigError(f"pooling of tokens must be one of last, mean, prompt, got {pooling!r}")


def one_word_prompt(*, text: bool, image: bool) -> str:
    """What asks a causal model for its content in one word; the state after it is the vector (E5-V, arXiv 2407.12580).

    The prompts for a text and for an image are the paper's; it has none for both.
    """
    return _ONE_WORD["both" if text and image else "image" if image else "text"]
