"""The contract between a vision-language model and everything else.

A backbone adapts a model class that already exists upstream: it knows how items become model inputs and where the
vectors come out. Nothing outside this folder compares model names.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from fanoise.attention import Attention
from fanoise.backbones.pixels import PixelScale
from fanoise.errors import ArtifactError
from fanoise.pooling import Pooling, pool


@dataclass(frozen=True, kw_only=True)
class Example:
    """What one item gives the model: its prompt, its text ("" for none), and its decoded image."""

    prompt: str
    text: str
    image: Image.Image | None
    suffix: str = ""
    """Put after the content in place of the end-of-text token (prompt pooling); never cut."""


@dataclass(kw_only=True)
class Backbone(ABC):
    """A loaded model with its processor.

    `model` may be wrapped (adapters); `forward` reaches through the wrapper.
    """

    model: Any
    processor: Any

    model_types: ClassVar[tuple[str, ...]]
    """`model_type` values of the checkpoints' config.json that this class serves."""
    model_class: ClassVar[type]
    """The upstream class, with `from_pretrained` and a constructor that takes its config."""
    architectures: ClassVar[tuple[str, ...]] = ()
    """Which of the `architectures` in config.json it serves, where others have the same model type; () for all."""
    lora_targets: ClassVar[str]
    """Regular expression, matched in full: the language tower's attention and MLP projections, nothing else."""
    poolings: ClassVar[tuple[Pooling, ...]]
    """What `forward` can do; the first is the default."""
    prompts: ClassVar[Mapping[str, str]]
    """Instruction for each role where neither the checkpoint nor the user names one."""
    unused_weights: ClassVar[tuple[str, ...]] = ("lm_head",)
    """Beginnings of the names of weights that no embedding depends on, and that a checkpoint may lack."""

    @classmethod
    def load(
        cls, path: str | Path, *, dtype: torch.dtype, revision: str | None = None, attention: Attention = "auto"
    ) -> "Backbone":
        """Load model and processor from a local checkpoint or a hub id, in eval mode on the CPU."""
        options = {} if revision is None else {"revision": revision}
        how = {} if attention == "auto" else {"attn_implementation": attention}
        model, report = cls.model_class.from_pretrained(  # type: ignore[attr-defined]
            path, dtype=dtype, output_loading_info=True, **options, **how
        )
        missing = sorted(name for name in report["missing_keys"] if not name.startswith(cls.unused_weights))
        if missing:  # transformers would go on with random numbers there
            raise ArtifactError(f"{path}: {len(missing)} weights are missing, {missing[0]} first; fetch it again")
        processor = cls.load_processor(path, **options)
        if getattr(processor.image_processor, "backend", "pil") != "pil":
            # where torchvision is installed, it would resize otherwise: another vector than elsewhere, one fingerprint
            processor.image_processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil", **options)
        return cls(model=model.eval(), processor=processor)

    @classmethod
    @abstractmethod
    def load_processor(cls, path: str | Path, **options: Any) -> Any:
        """The checkpoint's tokenizer and image processor, as one object with `save_pretrained`."""

    @property
    def unwrapped(self) -> Any:
        """The upstream model, whatever adapters are around it."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if not isinstance(model, self.model_class):
            raise ArtifactError(f"expected a {self.model_class.__name__}, got {type(model).__name__}")
        return model

    @property
    @abstractmethod
    def dim(self) -> int:
        """Embedding dimension."""

    @property
    @abstractmethod
    def language_model(self) -> nn.Module | None:
        """The module that takes `inputs_embeds` [B, L, H] of text and image tokens alike; none in a dual encoder."""

    @abstractmethod
    def processor_state(self) -> dict[str, Any]:
        """Everything in the processor that changes a model batch, as plain JSON values, without paths or versions."""

    @property
    @abstractmethod
    def max_pixels(self) -> int:
        """What `set_max_pixels` set, or the checkpoint's own limit."""

    @abstractmethod
    def set_max_pixels(self, max_pixels: int) -> None:
        """Images above this many pixels are resized down to it; image tokens are never truncated.

        Raises: ConfigError where the model has one fixed image size.
        """

    @abstractmethod
    def image_tokens(self) -> int | None:
        """How many tokens of the language tower a square image of `max_pixels` takes; None where it takes none."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], *, max_tokens: int) -> dict[str, Tensor]:
        """One padded batch; text is cut to `max_tokens`, images never are. Any mix of text, image and both."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], pooling: Pooling) -> Tensor:
        """A collated batch to one vector a row, [B, dim], not normalised."""

    @cached_property
    def pixel_scale(self) -> PixelScale | None:
        """How the bytes of images become numbers, where `collate` leaves them bytes."""
        return PixelScale.of(self.processor.image_processor)

    def packed(self, processor: Any, **inputs: Any) -> dict[str, Tensor]:
        """What an upstream processor makes of texts and images, but for the images, which stay bytes (`unpacked`)."""
        if self.pixel_scale is None or not inputs.get("images"):
            return dict(processor(**inputs, return_tensors="pt"))
        batch = dict(processor(**inputs, return_tensors="pt", do_rescale=False, do_normalize=False))
        return {**batch, "pixel_values": batch["pixel_values"].to(torch.uint8)}

    @property
    @abstractmethod
    def image_parameters(self) -> Iterator[nn.Parameter]:
        """The weights that have a part in `image_features`."""

    @property
    def takes_features(self) -> bool:
        """Whether `forward` knows what `image_features` makes; else `with_features` leaves every batch as it is."""
        return True

    @property
    def has_frozen_images(self) -> bool:
        """Whether `with_features` makes something that no trained weight has a part in."""
        return self.takes_features and not any(weight.requires_grad for weight in self.image_parameters)

    @abstractmethod
    def image_features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the image tower makes of an unpacked batch with pixels, by the names that `forward` knows."""

    def with_features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A collated batch with what the image tower makes of pixels in their place; `forward` gives the same for it.

        Where those weights are not trained, once is enough for several passes.
        """
        if "pixel_values" not in batch or not self.takes_features:
            return batch
        others = {name: value for name, value in batch.items() if name != "pixel_values"}
        return others | self.image_features(self.unpacked(batch))

    def unpacked(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A collated batch with images as the numbers that the model reads, bit for bit those of its processor.

        But for tiles that only pad a batch, which the model drops: the processor has zeros there.
        """
        pixels = batch.get("pixel_values")
        if self.pixel_scale is None or pixels is None or pixels.dtype != torch.uint8:
            return batch
        return {**batch, "pixel_values": self.pixel_scale.numbers_of(pixels)}


class TokenBackbone(Backbone):
    """A language model that reads image and text tokens in one row: prompt, image, text, end-of-text.

    Causal, so the last token has seen everything.
    """

    poolings = ("last", "mean", "prompt")
    prompts: ClassVar[Mapping[str, str]] = {"query": "Find the matching item: ", "item": "Represent this item: "}

    image_placeholder: ClassVar[str]
    """What stands for an image in a row's text; the processor turns it into as many tokens as the image takes."""

    @property
    @abstractmethod
    def special_tokens(self) -> tuple[str, ...]:
        """What the text of an item must not contain: placeholders, turn marks, ends."""

    @property
    @abstractmethod
    def end_of_text(self) -> str:
        """The token that ends a row and is pooled."""

    @abstractmethod
    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, L, H] after the final norm; `batch` also holds the attention mask [B, L] of the same length."""

    def forward(self, batch: dict[str, Tensor], pooling: Pooling) -> Tensor:
        return pool(self.hidden_states(batch), batch["attention_mask"], pooling)

    def image_tokens(self) -> int:
        side = math.isqrt(self.max_pixels)
        image = Image.new("RGB", (side, side))
        rows = [self.collate([Example(prompt="", text="", image=one)], max_tokens=1) for one in (image, None)]
        with_image, without = (int(row["attention_mask"].sum()) for row in rows)
        return with_image - without

    def collate(self, examples: Sequence[Example], *, max_tokens: int) -> dict[str, Tensor]:
        texts = [self.row_text(example, max_tokens) for example in examples]
        images = [example.image for example in examples if example.image is not None]
        return self.packed(self.processor, text=texts, images=images or None, padding=True)

    def row_text(self, example: Example, max_tokens: int) -> str:
        """The text of a row, placeholder included."""
        text = self.clean_text(example.text)
        tokens = self.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(tokens) > max_tokens:
            # a character of several tokens is kept whole or not at all
            text = text[: min(tokens[max_tokens - 1][1], tokens[max_tokens][0])]
        image = self.image_placeholder if example.image is not None else ""
        return f"{example.prompt}{image}{text}{example.suffix or self.end_of_text}"

    def clean_text(self, text: str) -> str:
        """A catalogue's text must not smuggle in image placeholders or an early end, nor stop the tokenizer."""
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is "?"
        for token in self.special_tokens:
            text = text.replace(token, " ")
        return text


def tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """A fast tokenizer's part of `processor_state`."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # call settings that happen to be stored with the tokenizer
    return {key: value for key, value in state.items() if key not in ("padding", "truncation")}


def plain(value: Any) -> Any:
    """An image processor's setting as a JSON value, the same whichever library wrote it."""
    if value is None:
        return None
    if isinstance(value, tuple | list):
        return [float(one) for one in value]
    if isinstance(value, int | float):
        return float(value)
    return {key: one for key, one in dict(value).items() if one is not None}  # a size
