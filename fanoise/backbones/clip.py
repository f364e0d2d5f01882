"""CLIP (arXiv 2103.00020): the projected end-of-text state and the projected class token, compared by cosine."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import transformers
from torch import Tensor, nn

from fanoise.backbones.dual_encoder import DualEncoderBackbone


@dataclass(kw_only=True)
class CLIPBackbone(DualEncoderBackbone):
    """CLIP with a vision transformer, of any size.

    Adapters go to the text tower only: of all pairs of locked and trained towers, LiT (arXiv 2111.07991) found a locked
    image tower under a trained text tower to be the best.
    """

    model_types = ("clip",)
    model_class = transformers.CLIPModel
    processor_class = transformers.CLIPProcessor
    lora_targets = r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
    unused_weights = ("logit_scale",)

    def __post_init__(self) -> None:
        # no embedding depends on the temperature, and DeepSpeed cannot broadcast a parameter without dimensions
        if isinstance(getattr(self.model, "logit_scale", None), nn.Parameter):
            value = self.model.logit_scale.detach()
            del self.model.logit_scale
            self.model.register_buffer("logit_scale", value)

    @property
    def dim(self) -> int:
        return self.unwrapped.config.projection_dim

    @property
    def context(self) -> int:
        return self.unwrapped.config.text_config.max_position_embeddings

    @property
    def image_parameters(self) -> Iterator[nn.Parameter]:
        return chain(self.unwrapped.vision_model.parameters(), self.unwrapped.visual_projection.parameters())

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.unwrapped.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        return self.unwrapped.get_image_features(pixel_values=pixel_values).pooler_output
