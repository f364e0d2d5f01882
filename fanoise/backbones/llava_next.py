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

from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from fanoise.backbones.base import Attention, Backbone, TokenBackbone, plain, tokenizer_state
from fanoise.errors import ArtifactError, ConfigError


class LlavaNextBackbone(TokenBackbone):
    """LLaVA-NeXT with any language tower."""

    model_types = ("llava_next",)
    model_class = transformers.LlavaNextForConditionalGeneration
    lora_targets = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    image_placeholder = "<image>"

    @classmethod
    def load(cls, path: str | Path, *, attention: Attention = "auto", **options: Any) -> Backbone:
        backbone = super().load(path, attention=attention, **options)
        config, processor = backbone.model.config, backbone.processor
        if _pairs(processor.image_processor.image_grid_pinpoints) != _pairs(config.image_grid_pinpoints):
            raise ArtifactError(
                f"{path}: image_grid_pinpoints of the model and of the image processor differ "
                f"({_pairs(config.image_grid_pinpoints)}, {_pairs(processor.image_processor.image_grid_pinpoints)}); "
                "make config.json and preprocessor_config.json equal"
            )
        # checkpoints from before transformers 4.46 lack these, and a row would have another number of image tokens
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = int(config.vision_config.model_type == "clip_vision_model")
        return backbone

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

    @property
    def dim(self) -> int:
        return self.model.config.text_config.hidden_size

    @property
    def language_model(self) -> nn.Module:
        return self.unwrapped.model.language_model

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

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        # `.model` skips the LM head; its last hidden state is after the final norm, unlike `hidden_states[-1]`
        return self.unwrapped.model(**self.unpacked(batch), use_cache=False).last_hidden_state


def _pairs(pinpoints: Any) -> list[list[int]]:
    return [list(pair) for pair in pinpoints]
