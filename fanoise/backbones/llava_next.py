"""LLaVA-NeXT, also called LLaVA-1.6: AnyRes tiles of 336 × 336 pixels, a causal language tower (Mistral, Vicuna, …).

An image becomes an overview, squeezed into one tile, and a canvas: one of the checkpoint's `image_grid_pinpoints`, cut
into tiles, on which it lies as large as fits with its proportions kept. A tile has 24 × 24 tokens; the canvas loses the
rows or columns that are only margin, and each of its rows ends with one newline token. So an image takes at most

    576 + rows * columns * 576 + rows * 24 tokens  (rows × columns tiles of canvas)

The limit on pixels chooses among the canvases:

- 336² (low resolution): below every published pinpoint, so the canvas is one tile of its own, and a square image takes
  1176 tokens. The single tile is fed twice, as overview and as canvas: that is the layout the model was trained on, and
  what VLM2Vec's images of 336 × 336 get, whose canvas of two tiles is half margin.
- 1344² (high resolution): above every published pinpoint, so all of them stay. The largest canvas is 672 × 672, on
  which a square image takes 2928 tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from fanoise.backbones.base import plain, tokenizer_state
from fanoise.backbones.upstream import UpstreamTokenBackbone
from fanoise.errors import ArtifactError, ConfigError


@dataclass(kw_only=True)
class LlavaNextBackbone(UpstreamTokenBackbone):
    """LLaVA-NeXT with any language tower."""

    model_types = ("llava_next",)
    model_class = transformers.LlavaNextForConditionalGeneration
    layout_key = "image_sizes"
    image_placeholder = "<image>"

    def __post_init__(self) -> None:
        processor = self.processor
        if processor is None:  # a skeleton
            return
        config = self.unwrapped.config
        if _pairs(processor.image_processor.image_grid_pinpoints) != _pairs(config.image_grid_pinpoints):
            raise ArtifactError(
                f"{config.name_or_path}: image_grid_pinpoints of the model and of the image processor differ "
                f"({_pairs(config.image_grid_pinpoints)}, {_pairs(processor.image_processor.image_grid_pinpoints)}); "
                "make config.json and preprocessor_config.json equal"
            )
        # checkpoints from before transformers 4.46 lack these, and a row would have another number of image tokens
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = int(config.vision_config.model_type == "clip_vision_model")

    @classmethod
    def load_processor(cls, path: str | Path, **options: Any) -> Any:
        processor = transformers.AutoProcessor.from_pretrained(path, **options)
        processor.tokenizer.padding_side = "left"
        return processor

    @property
    def end_of_text(self) -> str:
        return self.processor.tokenizer.eos_token

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return tuple(self.processor.tokenizer.get_added_vocab())

    def processor_state(self) -> dict[str, Any]:
        images = self.processor.image_processor
        names = ["do_convert_rgb", "do_resize", "resample", "do_center_crop", "do_rescale", "rescale_factor"]
        names += ["do_normalize", "image_mean", "image_std", "do_pad"]
        return {
            "images": {
                **{name: plain(getattr(images, name)) for name in names},
                "size": dict(images.size),
                "crop_size": dict(images.crop_size),
                "image_grid_pinpoints": _pairs(images.image_grid_pinpoints),
            },
            "tokens": {
                name: getattr(self.processor, name)
                for name in (
                    "image_token",
                    "patch_size",
                    "vision_feature_select_strategy",
                    "num_additional_image_tokens",
                )
            },
            "tokenizer": tokenizer_state(self.processor.tokenizer),
        }

    @property
    def max_pixels(self) -> int:
        return max(height * width for height, width in _pairs(self.processor.image_processor.image_grid_pinpoints))

    def set_max_pixels(self, max_pixels: int) -> None:
        """Keep the canvases of at most this many pixels, and one tile where there is none (see the module)."""
        tile = self.model.config.vision_config.image_size
        if max_pixels < tile * tile:
            raise ConfigError(f"max_pixels must be at least {tile * tile} (one tile of {tile}²), got {max_pixels}")
        kept = [pair for pair in self._pinpoints if pair[0] * pair[1] <= max_pixels] or [[tile, tile]]
        # the model cuts the margin off again, and must do so on the same canvas
        self.processor.image_processor.image_grid_pinpoints = kept
        self.unwrapped.config.image_grid_pinpoints = kept

    @cached_property
    def _pinpoints(self) -> list[list[int]]:
        """The canvases of the checkpoint, (height, width), before any limit was set."""
        return _pairs(self.processor.image_processor.image_grid_pinpoints)

    @property
    def image_parameters(self) -> Iterator[nn.Parameter]:
        model = self.unwrapped.model
        return chain(model.vision_tower.parameters(), model.multi_modal_projector.parameters(), [model.image_newline])


def _pairs(pinpoints: Any) -> list[list[int]]:
    return [list(pair) for pair in pinpoints]
