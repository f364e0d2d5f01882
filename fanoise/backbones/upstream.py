"""What the families share whose model is transformers' own: a vision tower, and a language tower that reads its output.

Their model makes features of pixels in `get_image_features`, and puts them in the places of the image tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fanoise.backbones.base import TokenBackbone

_FEATURES = "image_features"
"""[image tokens of the batch, H], in a batch in place of pixels."""
_DEEPSTACK = "deepstack_features"
"""[layers, image tokens, H], of vision layers that feed into layers of the language tower (Qwen3-VL)."""


class UpstreamTokenBackbone(TokenBackbone):
    """A `TokenBackbone` around a model class of transformers."""

    lora_targets = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    image_layout: ClassVar[str]
    """What the processor says of the images beside their pixels."""

    @property
    def dim(self) -> int:
        return self.model.config.text_config.hidden_size

    @property
    def language_model(self) -> nn.Module:
        return self.unwrapped.model.language_model

    def with_features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if "pixel_values" not in batch:
            return batch
        pixels = self.unpacked(batch)["pixel_values"]
        found = self.unwrapped.model.get_image_features(pixels, batch[self.image_layout], return_dict=True)
        features = {_FEATURES: torch.cat(list(found.pooler_output))}
        if (layers := getattr(found, _DEEPSTACK, None)) is not None:
            features[_DEEPSTACK] = torch.stack([torch.cat(list(layer)) for layer in layers])
        return {name: value for name, value in batch.items() if name != "pixel_values"} | features

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        # `.model` skips the LM head; its last hidden state is after the final norm, unlike `hidden_states[-1]`
        model = self.unwrapped.model
        with _given_features(model, self.unpacked(batch)) as inputs:
            return model(**inputs, use_cache=False).last_hidden_state


@contextmanager
def _given_features(model: Any, batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The batch as `model` takes it; of one with features, `model` uses these instead of making its own."""
    if _FEATURES not in batch:
        yield batch
        return
    inputs = dict(batch)
    features, layers = inputs.pop(_FEATURES), inputs.pop(_DEEPSTACK, ())
    made = SimpleNamespace(pooler_output=[features], deepstack_features=[[layer] for layer in layers])
    # not `mm_encoder_outputs`, which transformers has since 5.18 only
    model.get_image_features = lambda *_, **__: made
    try:
        yield {**inputs, "pixel_values": features}  # asked whether there are some, and for nothing else
    finally:
        del model.get_image_features
