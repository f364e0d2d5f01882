"""What the families share whose model is transformers' own: a vision tower, and a language tower that reads its output.

Their model makes features of pixels in `get_image_features`, and puts them in the places of the image tokens.
"""

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fanoise.backbones.base import TokenBackbone

_FEATURES = "image_features"
"""[image tokens of the batch, H], in a batch in place of pixels."""
_DEEPSTACK = "deepstack_features"
"""[layers, image tokens, H], of vision layers that feed into layers of the language tower (Qwen3-VL)."""


class UpstreamTokenBackbone(TokenBackbone):
    """A `TokenBackbone` around a model class of transformers."""

    lora_targets = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    layout_key: ClassVar[str]
    """Entry of a batch with what the processor says of the images beside their pixels."""

    @property
    def dim(self) -> int:
        return self.model.config.text_config.hidden_size

    @property
    def language_model(self) -> nn.Module:
        return self.unwrapped.model.language_model

    @property
    def takes_features(self) -> bool:
        """From transformers 5.18 on; a model before would leave the images out without a word."""
        return "mm_encoder_outputs" in inspect.signature(type(self.unwrapped.model).forward).parameters

    def image_features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        model = self.unwrapped.model
        found = model.get_image_features(batch["pixel_values"], batch[self.layout_key], return_dict=True)
        features = {_FEATURES: torch.cat(list(found.pooler_output))}
        if (layers := getattr(found, "deepstack_features", None)) is not None:
            features[_DEEPSTACK] = torch.stack([torch.cat(list(layer)) for layer in layers])
        return features

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        inputs: dict[str, Any] = dict(self.unpacked(batch))
        if _FEATURES in inputs:
            made = BaseModelOutputWithPooling(pooler_output=[inputs.pop(_FEATURES)])
            made.deepstack_features = [[layer] for layer in inputs.pop(_DEEPSTACK, ())]
            inputs["mm_encoder_outputs"] = {"image": made}
        # `.model` skips the LM head; its last hidden state is after the final norm, unlike `hidden_states[-1]`
        return self.unwrapped.model(**inputs, use_cache=False).last_hidden_state
