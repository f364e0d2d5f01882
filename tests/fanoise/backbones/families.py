"""Every family of backbones, with a tiny random checkpoint of its real class and the facts its tests need."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fanoise.backbones import Backbone
from fanoise.backbones.base import TokenBackbone
from fanoise.backbones.blip_2 import Blip2Backbone
from fanoise.backbones.clip import CLIPBackbone
from fanoise.backbones.llava_next import LlavaNextBackbone
from fanoise.backbones.phi3_v import Phi3VBackbone
from fanoise.backbones.qwen_vl import Qwen2_5VLBackbone, Qwen2VLBackbone, Qwen3VLBackbone
from tests.fanoise.backbones import tiny_blip_2, tiny_clip, tiny_llava_next, tiny_phi3_v, tiny_qwen


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the contract has to know about a family and cannot read off its backbone."""

    backbone: type[Backbone]
    save: Callable[[Path], None]
    """Writes a checkpoint into a new folder: two layers, about 32 dimensions, weights, tokenizer, image processor."""
    lora: frozenset[str]
    """Modules of the tiny checkpoint that `lora_targets` must match, and no others."""
    special_tokens: tuple[str, ...] = ()
    """Tokens that do nothing in an item's text; for a `TokenBackbone` those it names itself."""
    image_token: str | None = None
    """The token that stands for a piece of an image in `input_ids`; none where images have no tokens."""
    image_tokens: Callable[[int], int] | None = None
    """The most tokens one image may take under a limit of so many pixels; none where the image size is fixed."""
    limits: tuple[int, ...] = ()
    """Pixel limits to set, ascending; () where the image size is fixed."""
    files: tuple[str, ...] = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")
    """What a checkpoint cannot do without."""
    pixels: torch.dtype = torch.uint8
    """What images are in a collated batch."""
    auto_model: str | None = "AutoModelForImageTextToText"
    """The Auto class that loads the checkpoint; none where transformers has none."""

    @property
    def has_tokens(self) -> bool:
        return issubclass(self.backbone, TokenBackbone)


def projections(layers: str, *names: str) -> frozenset[str]:
    """Names of modules in the two layers of a tiny model; `layers` is where they are, as in "model.layers"."""
    return frozenset(f"{layers}.{layer}.{name}" for layer in (0, 1) for name in names)


LLAMA = tuple(f"self_attn.{part}_proj" for part in "qkvo") + tuple(
    f"mlp.{part}_proj" for part in ("gate", "up", "down")
)
"""Projections of a decoder layer as Llama, Mistral and Qwen have them."""


def _qwen(backbone: type[Backbone], save: Callable[[Path], None], side: int) -> Family:
    return Family(
        backbone=backbone,
        save=save,
        lora=projections("model.language_model.layers", *LLAMA),
        image_token="<|image_pad|>",
        image_tokens=lambda limit: limit // side**2,
        limits=(side * side, 4 * side * side, 6 * side * side),
    )


_Q_FORMER = tuple(
    f"attention.{part}" for part in ("attention.query", "attention.key", "attention.value", "output.dense")
)
_Q_FORMER_MLP = ("intermediate", "output", "intermediate_query", "output_query")

FAMILIES: dict[str, Family] = {
    "qwen2_vl": _qwen(Qwen2VLBackbone, tiny_qwen.save_qwen2_vl, 28),
    "qwen2_5_vl": _qwen(Qwen2_5VLBackbone, tiny_qwen.save_qwen2_5_vl, 28),
    "qwen3_vl": _qwen(Qwen3VLBackbone, tiny_qwen.save_qwen3_vl, 32),
    "llava_next": Family(
        backbone=LlavaNextBackbone,
        save=tiny_llava_next.save,
        lora=projections("model.language_model.layers", *LLAMA),
        image_token="<image>",
        image_tokens=tiny_llava_next.most_image_tokens,
        limits=tuple(tiles * tiny_llava_next.TILE**2 for tiles in (1, 2, 4)),
    ),
    "phi3_v": Family(
        backbone=Phi3VBackbone,
        save=tiny_phi3_v.save,
        lora=projections("model.layers", "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        image_token="<|image|>",
        image_tokens=tiny_phi3_v.most_image_tokens,
        limits=tuple(tiles * tiny_phi3_v.TILE**2 for tiles in (1, 4, 6)),
        pixels=torch.float32,  # its overview lies between bytes
        auto_model="AutoModelForCausalLM",
    ),
    "clip": Family(
        backbone=CLIPBackbone,
        save=tiny_clip.save,
        lora=projections(
            "text_model.encoder.layers",
            *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
            *("mlp.fc1", "mlp.fc2"),
        ),
        special_tokens=("<|startoftext|>", "<|endoftext|>"),
        auto_model="AutoModelForZeroShotImageClassification",
    ),
    "blip_2": Family(
        backbone=Blip2Backbone,
        save=tiny_blip_2.save,
        lora=projections("qformer.encoder.layer", *_Q_FORMER, *(f"{part}.dense" for part in _Q_FORMER_MLP))
        | {f"qformer.encoder.layer.0.cross{name}" for name in _Q_FORMER},  # every second layer has it
        special_tokens=("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[DEC]", "<image>"),
        auto_model="AutoModelForZeroShotImageClassification",
    ),
}
