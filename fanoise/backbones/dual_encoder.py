"""Dual encoders: one tower reads text, one reads images, and both end in the same space.

An item of text and image is the sum of its two unit vectors: score fusion, CLIP_SF in UniIR (arXiv 2311.17136). With
texts t, images i and cosines c, the score of two such items is

    (c(t, t') + c(t, i') + c(i, t') + c(i, i')) / (|t + i| |t' + i'|)

that is, up to the two norms, four times the mean of all cross-similarities. UniIR adds the features as the towers give
them. Here they are unit vectors first: these models are trained by cosine, so the norms of their features mean nothing,
and the longer of the two would decide how much text and image count.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fanoise.backbones.base import Backbone, Example, plain, tokenizer_state
from fanoise.errors import ConfigError
from fanoise.pooling import Pooling

_FEATURES = "image_features"
"""[I, dim], what the image tower made of pixels, in a batch in their place."""
_IMAGE_SETTINGS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


class DualEncoderBackbone(Backbone):
    """What the dual encoders share.

    The prompt is text like any other: with one, an item of an image alone becomes an item of both. An item of neither
    is the empty text.
    """

    poolings = ("native",)
    prompts: ClassVar[Mapping[str, str]] = {"query": "", "item": ""}

    processor_class: ClassVar[type]

    @classmethod
    def load_processor(cls, path: str | Path, **options: Any) -> Any:
        processor = cls.processor_class.from_pretrained(path, **options)  # type: ignore[attr-defined]
        tokenizer = processor.tokenizer
        # where the vocabulary's file is missing, transformers goes on with a few special tokens
        if set(tokenizer("a", add_special_tokens=False)["input_ids"]) <= set(tokenizer.all_special_ids):
            raise ValueError("the tokenizer has no vocabulary")
        return processor

    @property
    @abstractmethod
    def context(self) -> int:
        """The most tokens the text tower reads, those that begin and end a text among them."""

    @abstractmethod
    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[T, L] token ids, padded on the right, to [T, dim]; not normalised."""

    @abstractmethod
    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """[I, 3, N, N] to [I, dim]; not normalised."""

    @property
    def language_model(self) -> None:
        return None

    def processor_state(self) -> dict[str, Any]:
        images = self.processor.image_processor
        return {
            "images": {name: plain(getattr(images, name, None)) for name in _IMAGE_SETTINGS},
            "tokenizer": tokenizer_state(self.processor.tokenizer),
        }

    @property
    def max_pixels(self) -> int:
        return self.unwrapped.config.vision_config.image_size**2

    def set_max_pixels(self, max_pixels: int) -> None:
        side = self.unwrapped.config.vision_config.image_size
        name = self.unwrapped.config.model_type
        raise ConfigError(
            f"max_pixels is {max_pixels}, but {name} always resizes images to {side}×{side} pixels; leave it out"
        )

    def image_tokens(self) -> None:
        return None

    def collate(self, examples: Sequence[Example], *, max_tokens: int) -> dict[str, Tensor]:
        """`has_text` and `has_image` [B] say which rows the T texts and the I images belong to, in order."""
        texts = [one for one in examples if _has_text(one)]
        images = [one.image for one in examples if one.image is not None]
        batch = {
            "has_text": torch.tensor([_has_text(one) for one in examples]),
            "has_image": torch.tensor([one.image is not None for one in examples]),
        }
        if texts:
            rows = [torch.tensor(self.token_ids(one, max_tokens)) for one in texts]
            padding = self.processor.tokenizer.pad_token_id
            batch["input_ids"] = pad_sequence(rows, batch_first=True, padding_value=padding)
            batch["attention_mask"] = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        if images:
            batch |= self._pixels(images)
        return batch

    def _pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """As of the image processor, which copies each image several times, still large, around the same resizing."""
        processor = self.processor.image_processor
        side = processor.size.shortest_edge
        if not (processor.do_resize and side) or processor.size.longest_edge:
            return self.packed(processor, images=images)
        resized = []
        for image in images:
            longer = int(side * max(image.size) / min(image.size))
            size = (side, longer) if image.width <= image.height else (longer, side)
            resized.append(image.resize(size, processor.resample))
        return self.packed(processor, images=resized, do_resize=False)

    def token_ids(self, example: Example, max_tokens: int) -> list[int]:
        """Prompt and text between the tokens that begin and end a text; only the text is cut.

        It is cut to `max_tokens`, and to what the prompt leaves of the context.
        """
        start, end = self._ends
        prompt, text = self._content_ids(example.prompt), self._content_ids(example.text)
        room = self.context - 2 - len(prompt)
        if room < 0:
            raise ConfigError(
                f"prompt {example.prompt[:40]!r} is {len(prompt)} tokens long, and the model reads at most "
                f"{self.context - 2} with the text; shorten it"
            )
        return [start, *prompt, *text[: min(max_tokens, room)], end]

    @cached_property
    def _ends(self) -> tuple[int, int]:
        start, end = self.processor.tokenizer("")["input_ids"]
        return start, end

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        tokenizer = self.processor.tokenizer
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        # the unknown token stands for a word, unless it is the end as well
        return frozenset(special if tokenizer.unk_token_id in self._ends else special - {tokenizer.unk_token_id})

    def _content_ids(self, text: str) -> list[int]:
        """A text's tokens without special ones: an early end would be pooled in place of the real one."""
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is "?"
        # not verbose: else it warns of texts beyond the context, which are cut afterwards
        ids = self.processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [number for number in ids if number not in self._special_ids]

    def image_features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {_FEATURES: self.encode_image(batch["pixel_values"])}

    def forward(self, batch: dict[str, Tensor], pooling: Pooling) -> Tensor:
        batch = self.with_features(batch)
        parts = []
        if "input_ids" in batch:
            parts.append((batch["has_text"], self.encode_text(batch["input_ids"], batch["attention_mask"])))
        if _FEATURES in batch:
            parts.append((batch["has_image"], batch[_FEATURES]))
        units = [unit(features) for _, features in parts]
        fused = units[0].new_zeros((len(batch["has_text"]), units[0].shape[1]))
        for (rows, _), vectors in zip(parts, units, strict=True):
            fused[rows] += vectors
        return fused


def unit(features: Tensor) -> Tensor:
    """[..., D] with rows of length 1, in float32 at least: of two bfloat16 vectors none is quite of length 1."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def _has_text(example: Example) -> bool:
    return bool(example.prompt or example.text) or example.image is None
