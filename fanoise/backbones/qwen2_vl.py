"""Qwen2-VL (arXiv 2409.12191): any resolution, M-RoPE, causal language tower."""

import json
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.utils import is_torchvision_available

from fanoise.backbones.base import TokenBackbone


class _Qwen2VLProcessor(transformers.Qwen2VLProcessor):
    """The upstream processor without its video half, which cannot be built where torchvision is missing.

    transformers reads a processor's parts off the `__init__` signature, so leaving `video_processor` out is enough;
    files written by either class load in the other.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


_Qwen2VLProcessor.__name__ = "Qwen2VLProcessor"  # the name that is saved and looked up


class Qwen2VLBackbone(TokenBackbone):
    """Qwen2-VL of any size."""

    model_types = ("qwen2_vl",)
    model_class = transformers.Qwen2VLForConditionalGeneration
    lora_targets = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    image_placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    end_of_text = "<|endoftext|>"
    special_tokens = (
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    )

    @classmethod
    def load_processor(cls, path: str | Path, **options: Any) -> Any:
        source = transformers.AutoProcessor if is_torchvision_available() else _Qwen2VLProcessor
        processor = source.from_pretrained(path, **options)
        processor.tokenizer.padding_side = "left"
        return processor

    @property
    def dim(self) -> int:
        return self.model.config.text_config.hidden_size

    @property
    def language_model(self) -> nn.Module:
        return self.unwrapped.model.language_model

    def processor_state(self) -> dict[str, Any]:
        images = self.processor.image_processor
        names = ["patch_size", "temporal_patch_size", "merge_size", "do_resize", "do_rescale", "rescale_factor"]
        names += ["do_normalize", "image_mean", "image_std", "resample"]
        return {
            "images": {**{name: _plain(getattr(images, name)) for name in names}, "size": dict(images.size)},
            # padding and truncation are call settings that happen to be stored with the tokenizer
            "tokenizer": {
                key: value
                for key, value in json.loads(self.processor.tokenizer.backend_tokenizer.to_str()).items()
                if key not in ("padding", "truncation")
            },
        }

    def set_max_pixels(self, max_pixels: int) -> None:
        size = self.processor.image_processor.size
        # `max_pixels` alone keeps the saved minimum, which may lie above the new maximum
        shortest = min(size["shortest_edge"], max_pixels)
        self.processor.image_processor.size = type(size)(
            **{**dict(size), "shortest_edge": shortest, "longest_edge": max_pixels}
        )

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        # `.model` skips the LM head; its last hidden state is after the final norm, unlike `hidden_states[-1]`
        return self.unwrapped.model(**batch, use_cache=False).last_hidden_state


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else float(value)
