"""Phi-3.5-vision and Phi-3-vision (arXiv 2404.14219): tiles of 336 × 336 pixels, a causal language tower.

An image is enlarged or reduced, its proportions kept, until its longer side fills as many tiles as `num_crops` in all
allow, and is padded with white to whole tiles along the other side. An overview, all of that squeezed into one tile,
comes beside them. A tile has 12 × 12 tokens (24 × 24 patches, merged 2 × 2), each row of tokens one more, and one token
stands between tiles and overview. So an image of rows × columns tiles takes

    (rows * columns + 1) * 144 + (rows + 1) * 12 + 1 tokens,

of a square one 757 with 4 crops (672 × 672 pixels) and 2509 with 16 (1344 × 1344 pixels).
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from fanoise.backbones.base import Example, TokenBackbone, tokenizer_state
from fanoise.backbones.phi3_v_model import Phi3VConfig, Phi3VForCausalLM
from fanoise.errors import ConfigError

_IMAGE_TAG = re.compile(r"<\|image_\d+\|>")
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Phi3VImageProcessor(transformers.BaseImageProcessor):
    """Images to tiles; reads and writes the original preprocessor_config.json.

    Args:
        num_crops: the most tiles of one image, >= 1, its overview not counted.
        num_img_tokens: tokens of one tile, a square number.
        tile_size: side of a tile in pixels; not in the original file, for it is always 336.
    """

    def __init__(
        self,
        num_crops: int = 1,
        num_img_tokens: int = 144,
        image_mean: Sequence[float] = _CLIP_MEAN,
        image_std: Sequence[float] = _CLIP_STD,
        tile_size: int = 336,
        **_: Any,  # names of code and classes, in the original file
    ) -> None:
        super().__init__()
        self.num_crops = num_crops
        self.num_img_tokens = num_img_tokens
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.tile_size = tile_size

    def __call__(self, images: Sequence[Image.Image], return_tensors: str = "pt") -> transformers.BatchFeature:
        """RGB images to pixel_values [T, 3, S, S] (of each its overview and tiles) and image_sizes [N, 2] in pixels."""
        tiled = [self.tile(image) for image in images]
        return transformers.BatchFeature(
            {"pixel_values": torch.cat([tiles for tiles, _ in tiled]), "image_sizes": [size for _, size in tiled]},
            tensor_type=return_tensors,
        )

    def tile(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """An image to its overview and tiles [1 + rows * columns, 3, S, S], row by row, and their height and width."""
        canvas = np.array(self.fit(image))
        pixels = torch.from_numpy(canvas).permute(2, 0, 1).float() / 255
        pixels = (pixels - torch.tensor(self.image_mean)[:, None, None]) / torch.tensor(self.image_std)[:, None, None]
        side = self.tile_size
        overview = F.interpolate(pixels[None], size=(side, side), mode="bicubic")
        rows, columns = canvas.shape[0] // side, canvas.shape[1] // side
        tiles = pixels.unflatten(2, (columns, side)).unflatten(1, (rows, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return torch.cat([overview, tiles]), (rows * side, columns * side)

    def fit(self, image: Image.Image) -> Image.Image:
        """The image on as many tiles as `num_crops` allows for its proportions, centred on white."""
        if image.width < image.height:
            return self.fit(image.transpose(Image.Transpose.TRANSPOSE)).transpose(Image.Transpose.TRANSPOSE)
        ratio = image.width / image.height
        columns = 1
        while (columns + 1) * math.ceil((columns + 1) / ratio) <= self.num_crops:
            columns += 1
        width = columns * self.tile_size
        height = max(1, int(width / ratio))
        canvas = Image.new("RGB", (width, math.ceil(height / self.tile_size) * self.tile_size), "white")
        canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (0, (canvas.height - height) // 2))
        return canvas

    def count_tokens(self, image_size: Sequence[int]) -> int:
        """Tokens of an image whose tiles have this height and width in pixels."""
        rows, columns = (length // self.tile_size for length in image_size)
        return (rows * columns + 1) * self.num_img_tokens + (rows + 1) * math.isqrt(self.num_img_tokens) + 1


# not transformers.AutoImageProcessor, which 5.10 hides where torchvision is missing
AutoImageProcessor.register(Phi3VConfig, slow_image_processor_class=Phi3VImageProcessor, exist_ok=True)


class Phi3VProcessor:
    """Tokenizer and image processor."""

    def __init__(self, image_processor: Phi3VImageProcessor, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "Phi3VProcessor":
        return cls(
            Phi3VImageProcessor.from_pretrained(path, **options),
            transformers.PreTrainedTokenizerFast.from_pretrained(path, **options),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def __call__(self, texts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """One batch, padded on the left. The texts hold one <|image_1|> for each image, which stand in their order.

        Raises: ConfigError when the texts have more or fewer of them.
        """
        placeholders = sum(len(_IMAGE_TAG.findall(text)) for text in texts)
        if placeholders != len(images):
            raise ConfigError(
                f"a batch of {len(images)} images has {placeholders} times <|image_1|>; leave it out of the prompts"
            )
        pixels = dict(self.image_processor(images)) if images else {}
        lengths = iter([self.image_processor.count_tokens(size) for size in pixels.get("image_sizes", torch.empty(0))])
        rows = [self._row(text, lengths) for text in texts]
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
            **pixels,
        }

    def _row(self, text: str, lengths: Any) -> list[int]:
        # as in the original, every piece is tokenized by itself, so each has its own begin-of-text and leading space
        image_token = self.tokenizer.convert_tokens_to_ids("<|image|>")
        first, *others = (self.tokenizer(piece)["input_ids"] for piece in _IMAGE_TAG.split(text))
        row = list(first)
        for piece in others:
            row += [image_token] * next(lengths) + piece
        return row


class Phi3VBackbone(TokenBackbone):
    """Phi-3.5-vision."""

    model_types = ("phi3_v",)
    model_class = Phi3VForCausalLM
    lora_targets = r".*model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
    image_placeholder = "<|image_1|>"
    end_of_text = "<|endoftext|>"

    @classmethod
    def load_processor(cls, path: str | Path, **options: Any) -> Any:
        return Phi3VProcessor.from_pretrained(path, **options)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return (self.image_placeholder, *self.processor.tokenizer.get_added_vocab())

    @property
    def dim(self) -> int:
        return self.model.config.hidden_size

    @property
    def language_model(self) -> nn.Module:
        return self.unwrapped.model

    def processor_state(self) -> dict[str, Any]:
        images = self.processor.image_processor
        names = ("num_crops", "num_img_tokens", "image_mean", "image_std", "tile_size")
        return {
            "images": {name: getattr(images, name) for name in names},
            "tokenizer": tokenizer_state(self.processor.tokenizer),
        }

    @property
    def max_pixels(self) -> int:
        images = self.processor.image_processor
        return images.num_crops * images.tile_size**2

    def set_max_pixels(self, max_pixels: int) -> None:
        """Take as many crops as have at most this many pixels."""
        images = self.processor.image_processor
        if max_pixels < images.tile_size**2:
            raise ConfigError(
                f"max_pixels must be at least {images.tile_size**2} (one tile of {images.tile_size}²), got {max_pixels}"
            )
        images.num_crops = max_pixels // images.tile_size**2

    def collate(self, examples: Sequence[Example], *, max_tokens: int) -> dict[str, Tensor]:
        texts = [self.row_text(example, max_tokens) for example in examples]
        return self.processor(texts, [example.image for example in examples if example.image is not None])

    def clean_text(self, text: str) -> str:
        return super().clean_text(_IMAGE_TAG.sub(" ", text))

    @property
    def image_parameters(self) -> Iterator[nn.Parameter]:
        return self.unwrapped.model.vision_embed_tokens.parameters()

    def image_features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        embed = self.unwrapped.model.vision_embed_tokens
        return {"image_features": embed(batch["pixel_values"], batch["image_sizes"])}

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        return self.unwrapped.hidden_states(**batch)
