"""Items to embed, and what a backbone makes of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fanoise.backbones import Backbone, Example
from fanoise.pooling import Pooling, one_word_prompt


def picture(width: int = 56, height: int = 56, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def example(text: str = "", image: Image.Image | None = None) -> Example:
    return Example(prompt="Find: ", text=text, image=image)


EXAMPLES = [
    example("a red square"),
    example("", picture(84, 56, seed=1)),
    example("blue, large and rather far to the left " * 3, picture(56, 56, seed=2)),
    example(""),
    example("green", picture(40, 100, seed=3)),
    example("a yellow square " * 8),
]
"""Text, image, both, neither, both, text."""


def asking(examples: Sequence[Example]) -> list[Example]:
    """The examples with the suffix that prompt pooling gives them."""
    return [replace(one, suffix=one_word_prompt(text=bool(one.text), image=one.image is not None)) for one in examples]


@torch.inference_mode()
def embed(
    backbone: Backbone, examples: Sequence[Example], pooling: Pooling | None = None, max_tokens: int = 512
) -> torch.Tensor:
    """Unit rows, by the backbone's first pooling if none is named."""
    pooling = pooling or backbone.poolings[0]
    batch = backbone.collate(asking(examples) if pooling == "prompt" else examples, max_tokens=max_tokens)
    return F.normalize(backbone.forward(batch, pooling), dim=-1)


def ids(backbone: Backbone, *examples: Example, max_tokens: int = 512) -> list[list[int]]:
    """Token ids of each row without padding."""
    batch = backbone.collate(examples, max_tokens=max_tokens)
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [row[mask.bool()].tolist() for row, mask in rows]


def count(backbone: Backbone, row: list[int], token: str) -> int:
    return row.count(backbone.processor.tokenizer.convert_tokens_to_ids(token))
