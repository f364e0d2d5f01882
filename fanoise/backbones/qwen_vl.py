"""Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (2502.13923) and Qwen3-VL (2511.21631).

One contract for the three: images at any resolution, M-RoPE, a causal language tower. What differs (window attention,
DeepStack, the side of a patch) is inside the upstream classes and the checkpoints' own settings.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from fanoise.backbones.base import Example, plain, tokenizer_state
from fanoise.backbones.upstream import UpstreamTokenBackbone
from fanoise.errors import ConfigError


class _WithoutVideo(transformers.ProcessorMixin):
    """An upstream processor without its video half, which cannot be built where torchvision is missing.

    transformers reads a processor's parts off the `__init__` signature, so leaving `video_processor` out is enough;
    files written by either class load in the other.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


class QwenVLBackbone(UpstreamTokenBackbone):
    """What the Qwen-VL families share."""

    processor_class: ClassVar[type]
    layout_key = "image_grid_thw"
    image_placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    end_of_text = "<|endoftext|>"
    special_tokens = (
        *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
        *("<|quad_start|>", "<|quad_end|>"),
    )

    @classmethod
    def load_processor(cls, path: str | Path, **options: Any) -> Any:
        # of the same name, for that is what is saved and looked up
        without_video: Any = type(cls.processor_class.__name__, (_WithoutVideo, cls.processor_class), {})
        processor = without_video.from_pretrained(path, **options)
        processor.tokenizer.padding_side = "left"
        return processor

    def processor_state(self) -> dict[str, Any]:
        images = self.processor.image_processor
        names = ["patch_size", "temporal_patch_size", "merge_size", "do_resize", "do_rescale", "rescale_factor"]
        names += ["do_normalize", "image_mean", "image_std", "resample"]
        return {
            "images": {**{name: plain(getattr(images, name)) for name in names}, "size": dict(images.size)},
            "tokenizer": tokenizer_state(self.processor.tokenizer),
        }

    @property
    def max_pixels(self) -> int:
        return self.processor.image_processor.size["longest_edge"]

    def set_max_pixels(self, max_pixels: int) -> None:
        if max_pixels < self._token_side**2:
            raise ConfigError(f"max_pixels must be at least {self._token_side**2}, one image token, got {max_pixels}")
        size = self.processor.image_processor.size
        # `max_pixels` alone keeps the saved minimum; above half the maximum, `_within_limit` could not be kept
        shortest = min(size["shortest_edge"], max_pixels // 2)
        self.processor.image_processor.size = type(size)(
            **{**dict(size), "shortest_edge": shortest, "longest_edge": max_pixels}
        )

    def collate(self, examples: Sequence[Example], *, max_tokens: int) -> dict[str, Tensor]:
        fitted = [replace(one, image=one.image and self._within_limit(one.image)) for one in examples]
        batch = super().collate(fitted, max_tokens=max_tokens)
        if "pixel_values" in batch and self.pixel_scale is not None:
            batch["pixel_values"] = batch["pixel_values"].unflatten(1, self._patch)[:, :, 0].flatten(1)
        return batch

    def unpacked(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = batch.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return batch
        channels, frames, size = self._patch
        repeated = pixels.view(-1, channels, 1, size).expand(-1, -1, frames, -1).flatten(1)
        return super().unpacked({**batch, "pixel_values": repeated})

    @property
    def _patch(self) -> tuple[int, int, int]:
        """Channels, frames and pixels of a patch: upstream makes a film of each image, whose frames are all the same.

        One of them is kept.
        """
        images = self.processor.image_processor
        return len(images.image_mean), images.temporal_patch_size, images.patch_size**2

    @property
    def _token_side(self) -> int:
        """Side in pixels of the square that one image token stands for."""
        images = self.processor.image_processor
        return images.patch_size * images.merge_size

    def _within_limit(self, image: Image.Image) -> Image.Image:
        """Upstream rounds both sides of a thin or small image up to whole tokens, past the limit; such are shrunk."""
        images, side = self.processor.image_processor, self._token_side
        most = images.size["longest_edge"] // side**2
        if images.get_number_of_image_patches(image.height, image.width) <= most * images.merge_size**2:
            return image
        across = min(max(round(math.sqrt(most * image.width / image.height)), 1), most)
        return image.resize((across * side, most // across * side), Image.Resampling.BICUBIC)

    @property
    def image_parameters(self) -> Iterator[nn.Parameter]:
        return self.unwrapped.model.visual.parameters()


class Qwen2VLBackbone(QwenVLBackbone):
    """Qwen2-VL of any size."""

    model_types = ("qwen2_vl",)
    model_class = transformers.Qwen2VLForConditionalGeneration
    processor_class = transformers.Qwen2VLProcessor


class Qwen2_5VLBackbone(QwenVLBackbone):
    """Qwen2.5-VL of any size."""

    model_types = ("qwen2_5_vl",)
    model_class = transformers.Qwen2_5_VLForConditionalGeneration
    processor_class = transformers.Qwen2_5_VLProcessor


class Qwen3VLBackbone(QwenVLBackbone):
    """Qwen3-VL, dense, of any size."""

    model_types = ("qwen3_vl",)
    model_class = transformers.Qwen3VLForConditionalGeneration
    processor_class = transformers.Qwen3VLProcessor
