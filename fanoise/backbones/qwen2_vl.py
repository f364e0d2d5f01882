"""Qwen2-VL (arXiv 2409.12191): any resolution, M-RoPE, causal language tower."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.utils import is_torchvision_available

from fanoise.backbones.base import Backbone, Example
from fanoise.errors import ArtifactError

_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_SPECIAL = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
)


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


class Qwen2VLBackbone(Backbone):
    """Qwen2-VL of any size. Layout of a row: prompt, image, text, end-of-text; the last token is pooled."""

    model_types = ("qwen2_vl",)
    lora_targets = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype, revision: str | None = None) -> "Qwen2VLBackbone":
        options = {} if revision is None else {"revision": revision}
        model, report = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **options
        )
        missing = sorted(name for name in report["missing_keys"] if not name.startswith("lm_head"))
        if missing:  # transformers would go on with random numbers there; the head alone is never used
            raise ArtifactError(f"{path}: {len(missing)} weights are missing, {missing[0]} first; fetch it again")
        source = transformers.AutoProcessor if is_torchvision_available() else _Qwen2VLProcessor
        processor = source.from_pretrained(path, **options)
        processor.tokenizer.padding_side = "left"
        return cls(model=model.eval(), processor=processor)

    @property
    def dim(self) -> int:
        return self.model.config.text_config.hidden_size

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

    def collate(self, examples: Sequence[Example], *, max_tokens: int) -> dict[str, Tensor]:
        tokenizer = self.processor.tokenizer
        texts, images = [], []
        for example in examples:
            text = _clean_text(example.text)
            tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            if len(tokens) > max_tokens:
                # a character of several tokens is kept whole or not at all
                text = text[: min(tokens[max_tokens - 1][1], tokens[max_tokens][0])]
            texts.append(f"{example.prompt}{_IMAGE if example.image is not None else ''}{text}<|endoftext|>")
            if example.image is not None:
                images.append(example.image)
        return dict(self.processor(text=texts, images=images or None, padding=True, return_tensors="pt"))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if not isinstance(model, transformers.Qwen2VLForConditionalGeneration):
            raise ArtifactError(f"expected a Qwen2-VL model, got {type(model).__name__}")
        # `.model` skips the LM head; its last hidden state is after the final norm, unlike `hidden_states[-1]`
        return model.model(**batch, use_cache=False).last_hidden_state


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else float(value)


def _clean_text(text: str) -> str:
    """A catalogue's text must not smuggle in image placeholders or an early end, nor stop the tokenizer."""
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is "?"
    for token in _SPECIAL:
        text = text.replace(token, " ")
    return text
