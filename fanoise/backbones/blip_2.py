"""BLIP-2 for retrieval (arXiv 2301.12597): the Q-Former's text path and its image path, projected into one space.

BLIP-2 compares a text with the 32 query vectors of an image and takes the largest cosine, which no single vector can
give. Here an image is the mean of its 32 unit vectors, so that its product with a text is the mean of the 32 cosines
instead of their maximum, up to the length of the mean.

Published zero-shot results of BLIP-2 as an embedder are of something else: VLM2Vec's evaluation on MMEB and MTEB's
wrapper both take the states of the first query and of [CLS] before the projections, which no loss has ever compared.
"""

from collections.abc import Iterator
from itertools import chain

import transformers
from torch import Tensor, nn

from fanoise.backbones.dual_encoder import DualEncoderBackbone, unit


class Blip2Backbone(DualEncoderBackbone):
    """The first-stage BLIP-2, without a language model behind the Q-Former.

    Adapters go to the whole Q-Former, which reads text and queries the image; the image tower is locked, as in
    BLIP-2's own training.
    """

    model_types = ("blip-2",)
    model_class = transformers.Blip2ForImageTextRetrieval
    architectures = ("Blip2ForImageTextRetrieval",)  # the others have no shared space for text and image
    processor_class = transformers.Blip2Processor
    lora_targets = (
        r"qformer\.encoder\.layer\.\d+\."
        r"((cross)?attention\.(attention\.(query|key|value)|output\.dense)|(intermediate|output)(_query)?\.dense)"
    )
    unused_weights = ("itm_head",)

    @property
    def dim(self) -> int:
        return self.unwrapped.config.image_text_hidden_size

    @property
    def context(self) -> int:
        return self.unwrapped.config.qformer_config.max_position_embeddings

    @property
    def image_parameters(self) -> Iterator[nn.Parameter]:
        model = self.unwrapped
        parts = (model.vision_model, model.qformer, model.vision_projection)
        return chain([model.query_tokens], *(part.parameters() for part in parts))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        model = self.unwrapped
        states = model.qformer(
            query_embeds=model.embeddings(input_ids=input_ids), query_length=0, attention_mask=attention_mask
        ).last_hidden_state
        # in half precision transformers keeps the Q-Former in float32, and the projections not
        return model.text_projection(states[:, 0].to(model.text_projection.weight.dtype))

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        model = self.unwrapped
        patches = model.vision_model(pixel_values=pixel_values).last_hidden_state
        states = model.qformer(
            query_embeds=model.query_tokens.expand(len(patches), -1, -1), encoder_hidden_states=patches
        ).last_hidden_state
        return unit(model.vision_projection(states.to(model.vision_projection.weight.dtype))).mean(dim=1)
