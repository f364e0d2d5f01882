"""The model of Phi-3-vision and Phi-3.5-vision (arXiv 2404.14219), composed of transformers' Phi-3 and CLIP classes.

transformers has no such class, and the checkpoints' own code was written for 4.43 and does not run on 5. This one loads
and saves the original tensors under the original names. The facts about the architecture come from the code and the
configuration published with microsoft/Phi-3.5-vision-instruct.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

_CLIP_VIT_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


class Phi3VConfig(transformers.Phi3Config):
    """Phi-3's settings, and of the image part what the published configuration leaves to its code.

    Raises: ValueError for an arrangement of image features other than the published one.
    """

    model_type = "phi3_v"
    sub_configs = {"vision_config": transformers.CLIPVisionConfig}  # noqa: RUF012

    vision_config: dict | transformers.PretrainedConfig | None = None
    """CLIP's vision tower, published by name only: ViT-L/14 at 336 pixels."""
    image_token_id: int = 32044
    """<|image|>, which stands for every image token until its embedding is put there. The original has -1."""
    img_processor: dict | None = None
    embd_layer: dict | str | None = None
    rope_parameters: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, transformers.CLIPVisionConfig):
            self.vision_config = transformers.CLIPVisionConfig(**{**_CLIP_VIT_L_14_336, **(self.vision_config or {})})
        if isinstance(self.embd_layer, dict) and self.embd_layer.get("hd_transform_order", "sub_glb") != "sub_glb":
            raise ValueError(f"hd_transform_order must be 'sub_glb', got {self.embd_layer['hd_transform_order']!r}")
        kwargs.pop("auto_map", None)  # names files of code that are neither needed nor saved
        if rope := kwargs.pop("rope_scaling", None) or self.rope_parameters:
            # what transformers computes itself where it is not given, with a warning
            factor = self.max_position_embeddings / self.original_max_position_embeddings
            self.rope_parameters = {"factor": factor, **rope}
        super().__post_init__(**kwargs)


class RowRotaryEmbedding(Phi3RotaryEmbedding):
    """LongRoPE (arXiv 2402.13753) whose choice of factors is each row's own.

    Rows of up to `original_max_position_embeddings` (4096) tokens take the short factors, longer ones the long ones.
    Upstream looks at the longest row of the batch, so that a row's vector would depend on its neighbours.
    """

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for `position_ids` [B, L], each [B, L, D], in the type of `x`."""
        if self.rope_type != "longrope":
            return super().forward(x, position_ids)
        frequencies = ROPE_INIT_FUNCTIONS["longrope"]
        limit = self.config.original_max_position_embeddings
        short, _ = frequencies(self.config, x.device, seq_len=limit)
        long, _ = frequencies(self.config, x.device, seq_len=limit + 1)
        is_long = position_ids.amax(dim=1) >= limit
        angles = position_ids[:, :, None].float() * torch.where(is_long[:, None], long, short)[:, None]
        angles = torch.cat([angles, angles], dim=-1)
        return tuple((part * self.attention_scaling).to(x.dtype) for part in (angles.cos(), angles.sin()))


class HDImageEmbedding(nn.Module):
    """Tiles of images to embeddings for the language model.

    An image is its tiles of S × S pixels, row by row, before them its overview. Of each, the features of CLIP's last
    layer but one are merged 2 × 2. The tiles are put together to one grid; then come, in this order, the rows of the
    grid, `glb_GN`, and the rows of the overview, every row with `sub_GN` at its end (InternLM-XComposer2-4KHD's
    arrangement, arXiv 2404.06512, with "sub_glb" order). A two-layer MLP projects it all.
    """

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        width = 4 * vision.hidden_size
        self.tile_size = vision.image_size
        self.layer = (config.img_processor or {}).get("layer_idx", -2)
        self.img_processor = nn.ModuleDict({"vision_model": transformers.CLIPVisionModel._from_config(vision)})
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
        """[T, 3, S, S], [N, 2] -> [tokens, H], the N images one after the other.

        Args:
            pixel_values: for each image its overview and its tiles; T is the sum over images of 1 + rows * columns.
            image_sizes: height and width of the tiled images in pixels, multiples of S.
        """
        tower = self.img_processor["vision_model"]
        states = tower(pixel_values, output_hidden_states=True).hidden_states[self.layer]
        return self.img_projection(self.arrange(states[:, 1:], (image_sizes // self.tile_size).tolist()))

    def arrange(self, patches: Tensor, layouts: Sequence[Sequence[int]]) -> Tensor:
        """[T, (2s)², C] and the rows and columns of each image's tiles -> [tokens, 4C]."""
        merged = _merge_2x2(patches)
        side = merged.shape[1]
        pieces, start = [], 0
        for rows, columns in layouts:
            overview, tiles = merged[start], merged[start + 1 : start + 1 + rows * columns]
            start += 1 + rows * columns
            grid = tiles.unflatten(0, (rows, columns)).transpose(1, 2).reshape(rows * side, columns * side, -1)
            pieces += [self._with_row_ends(grid), self.glb_GN[0], self._with_row_ends(overview)]
        return torch.cat(pieces)

    def _with_row_ends(self, grid: Tensor) -> Tensor:
        """[h, w, 4C] -> [h * (w + 1), 4C]."""
        return torch.cat([grid, self.sub_GN[0].expand(grid.shape[0], -1, -1)], dim=1).flatten(0, 1)


def _merge_2x2(patches: Tensor) -> Tensor:
    """[T, (2s)², C] -> [T, s, s, 4C]: of each 2 × 2 patches the upper left, upper right, lower left, lower right."""
    side = round(patches.shape[1] ** 0.5) // 2
    blocks = patches.unflatten(1, (side, 2, side, 2)).transpose(2, 3)
    return blocks.flatten(3)


class Phi3VModel(transformers.Phi3Model):
    """Phi-3 with the image embedding beside its token embedding. `forward` is Phi-3's and takes `inputs_embeds`."""

    config_class = Phi3VConfig

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.rotary_emb = RowRotaryEmbedding(config)
        self.vision_embed_tokens = HDImageEmbedding(config)
        self.post_init()

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_features: Tensor | None = None,
    ) -> Tensor:
        """[B, L] with image tokens, and the images' tiles, or what `vision_embed_tokens` makes of them -> [B, L, H].

        Raises: ValueError when the images have more or fewer embeddings than there are image tokens.
        """
        embeddings = self.embed_tokens(input_ids)
        if pixel_values is None and image_features is None:
            return embeddings
        images = self.vision_embed_tokens(pixel_values, image_sizes) if image_features is None else image_features
        is_image = input_ids == self.config.image_token_id
        if len(images) != is_image.sum():
            raise ValueError(f"{int(is_image.sum())} image tokens for {len(images)} image embeddings")
        return embeddings.masked_scatter(is_image[:, :, None], images.to(embeddings.dtype))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HDImageEmbedding):
            for separator in (module.sub_GN, module.glb_GN):
                init.normal_(separator, std=self.config.initializer_range)


class Phi3VForCausalLM(transformers.Phi3PreTrainedModel):
    """Named and laid out like the original, for its checkpoints."""

    config_class = Phi3VConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    # the token embedding once more, under the name it also had in the original
    _keys_to_ignore_on_load_unexpected = [r"vision_embed_tokens\.wte\."]  # noqa: RUF012

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_features: Tensor | None = None,
    ) -> Tensor:
        """[B, L, H] after the final norm; the image parts are `HDImageEmbedding`'s, for all images of the batch."""
        return self.model(
            inputs_embeds=self.model.embed(input_ids, pixel_values, image_sizes, image_features),
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(dim=1) - 1).clamp_min(0),  # from a row's first token, not its padding
            use_cache=False,
        ).last_hidden_state

    def forward(self, **batch: Tensor) -> CausalLMOutput:
        """Logits [B, L, V] from what `hidden_states` takes."""
        return CausalLMOutput(logits=self.lm_head(self.hidden_states(**batch)))


# `exist_ok` for the day when transformers has a class of its own under this name
transformers.AutoConfig.register("phi3_v", Phi3VConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
