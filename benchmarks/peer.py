"""sentence-transformers on a random Qwen2-VL checkpoint, as the benchmarks compare with it."""

from pathlib import Path
from typing import Any
from unittest import mock

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "<|endoftext|>"
)
"""Spells an image as `fanoise` does, without a prompt; a random checkpoint has no chat template."""


def load_peer(checkpoint: str | Path, processor: Any, *, dim: int, prompt: str = "") -> Any:
    """A SentenceTransformer with last-token pooling that is given this processor, which is changed for it.

    It would ask for the checkpoint's own processor, and so for torchvision, for the sake of video.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    processor.chat_template = prompt + TEMPLATE
    automatic = "sentence_transformers.base.modules.transformer.AutoProcessor.from_pretrained"
    with mock.patch(automatic, lambda *_, **__: processor):
        transformer = Transformer(str(checkpoint))
    return SentenceTransformer(modules=[transformer, Pooling(dim, pooling_mode="lasttoken"), Normalize()], device="cpu")
