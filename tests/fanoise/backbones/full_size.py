"""The published sizes of the models, as far as their shapes go: what their config.json says and what it adds up to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """Facts about one published checkpoint. Source: config.json and safetensors index of its hub repository."""

    config: Mapping[str, Any]
    """The published config.json, shapes and positions only."""
    dim: int
    """Embedding dimension."""
    parameters: int
    """Published total (total_size of the safetensors index ÷ 2 bytes); tied weights count once."""
    not_loaded: int = 0
    """Of these, parameters that the backbone leaves aside, such as the LM head of a model composed of parts."""
    lora: Mapping[str, tuple[int, int]]
    """Every module that LoRA reaches, by its name in the model, with its input and output size."""


def decoder(where: str, layers: int, sizes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The projections of all layers; `where` is the list of layers, as in "model.layers"."""
    return {f"{where}.{layer}.{name}": size for layer in range(layers) for name, size in sizes.items()}


def llama_sizes(
    hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int = 128
) -> dict[str, tuple[int, int]]:
    """Input and output size of the projections of a decoder layer as Llama, Mistral and Qwen have them."""
    return {
        "self_attn.q_proj": (hidden, heads * head_dim),
        "self_attn.k_proj": (hidden, kv_heads * head_dim),
        "self_attn.v_proj": (hidden, kv_heads * head_dim),
        "self_attn.o_proj": (heads * head_dim, hidden),
        "mlp.gate_proj": (hidden, intermediate),
        "mlp.up_proj": (hidden, intermediate),
        "mlp.down_proj": (intermediate, hidden),
    }


def _qwen2(
    model_type: str,
    vision: Mapping[str, Any],
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    tied: bool,
    parameters: int,
) -> FullSize:
    """Qwen2-VL and Qwen2.5-VL: their files have the text settings at the top, as transformers 4 wrote them."""
    config = {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 32,
            "num_heads": 16,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            **vision,
        },
    }
    lora = decoder("model.language_model.layers", layers, llama_sizes(hidden, intermediate, heads, kv_heads))
    return FullSize(config=config, dim=hidden, parameters=parameters, lora=lora)


def _qwen3(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    tied: bool,
    vision: Mapping[str, Any],
    parameters: int,
) -> FullSize:
    config = {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "rope_theta": 5_000_000,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "in_channels": 3,
            "num_position_embeddings": 2304,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
    }
    lora = decoder("model.language_model.layers", layers, llama_sizes(hidden, intermediate, heads, 8))
    return FullSize(config=config, dim=hidden, parameters=parameters, lora=lora)


def _clip(*, image_size: int, patch_size: int, text: int, vision: int, layers: int, parameters: int) -> FullSize:
    """`text` and `vision` are hidden sizes, with heads of 64; vectors are as wide as the text tower."""

    def tower(hidden: int, layers: int) -> dict[str, Any]:
        sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": hidden // 64}
        return {**sizes, "num_hidden_layers": layers, "projection_dim": text}

    sizes = {f"self_attn.{part}_proj": (text, text) for part in ("q", "k", "v", "out")}
    sizes |= {"mlp.fc1": (text, 4 * text), "mlp.fc2": (4 * text, text)}
    return FullSize(
        config={
            "model_type": "clip",
            "projection_dim": text,
            "text_config": {**tower(text, 12), "vocab_size": 49_408, "max_position_embeddings": 77},
            "vision_config": {**tower(vision, layers), "image_size": image_size, "patch_size": patch_size},
        },
        dim=text,
        parameters=parameters,
        not_loaded=1,  # the temperature, which is a buffer
        lora=decoder("text_model.encoder.layers", 12, sizes),
    )


def _blip_2() -> FullSize:
    """The settings with which transformers' converter made it from the original; the paper rounds its size to 1.2 B."""
    vision, hidden, intermediate = 1408, 768, 3072
    attention = {f"attention.attention.{part}": (hidden, hidden) for part in ("query", "key", "value")}
    attention["attention.output.dense"] = (hidden, hidden)
    cross = {f"cross{name}": size for name, size in attention.items()}
    cross |= {f"crossattention.attention.{part}": (vision, hidden) for part in ("key", "value")}
    mlp = {f"intermediate{of}.dense": (hidden, intermediate) for of in ("", "_query")}
    mlp |= {f"output{of}.dense": (intermediate, hidden) for of in ("", "_query")}
    layers = "qformer.encoder.layer"
    lora = decoder(layers, 12, {**attention, **mlp})
    lora |= {f"{layers}.{layer}.{name}": size for layer in range(0, 12, 2) for name, size in cross.items()}
    return FullSize(
        config={
            "model_type": "blip-2",
            "architectures": ["Blip2ForImageTextRetrieval"],
            "image_text_hidden_size": 256,
            "num_query_tokens": 32,
            "vision_config": {
                "model_type": "blip_2_vision_model",
                "hidden_size": vision,
                "intermediate_size": 6144,
                "num_hidden_layers": 39,
                "num_attention_heads": 16,
                "image_size": 224,
                "patch_size": 14,
            },
            "qformer_config": {
                "model_type": "blip_2_qformer",
                "vocab_size": 30_523,
                "hidden_size": hidden,
                "intermediate_size": intermediate,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "max_position_embeddings": 512,
                "cross_attention_frequency": 2,
                "use_qformer_text_input": True,
            },
        },
        dim=256,
        parameters=1_172_032_258,
        lora=lora,
    )


def _llava_next(text: Mapping[str, Any], *, intermediate: int, kv_heads: int, parameters: int) -> FullSize:
    return FullSize(
        config={
            "model_type": "llava_next",
            "image_token_index": 32_000,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            "text_config": {"vocab_size": 32_064, **text},
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
                "vocab_size": 32_000,
            },
        },
        dim=4096,
        parameters=parameters,
        lora=decoder("model.language_model.layers", 32, llama_sizes(4096, intermediate, 32, kv_heads)),
    )


def _phi3_v() -> FullSize:
    sizes = {
        "self_attn.qkv_proj": (3072, 3 * 3072),
        "self_attn.o_proj": (3072, 3072),
        "mlp.gate_up_proj": (3072, 2 * 8192),
        "mlp.down_proj": (8192, 3072),
    }
    return FullSize(
        config={
            "model_type": "phi3_v",
            "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
            "embd_layer": {
                "embedding_cls": "image",
                "hd_transform_order": "sub_glb",
                "projection_cls": "mlp",
                "use_hd_transform": True,
                "with_learnable_separator": True,
            },
            "img_processor": {
                "image_dim_out": 1024,
                "model_name": "openai/clip-vit-large-patch14-336",
                "name": "clip_vision_model",
                "num_img_tokens": 144,
            },
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32_064,
            "pad_token_id": 32_000,
            "max_position_embeddings": 131_072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "su", "short_factor": [1.08] * 48, "long_factor": [1.08] * 48},  # their lengths
            "sliding_window": 262_144,
            "tie_word_embeddings": False,
        },
        dim=3072,
        parameters=4_146_621_440,
        lora=decoder("model.layers", 32, sizes),
    )


_QWEN3_SMALL_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
_QWEN3_LARGE_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}
_QWEN2_5_VISION = {
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "hidden_act": "silu",
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}

FULL_SIZES: dict[str, FullSize] = {
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2(
        "qwen2_vl",
        {"embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4},
        hidden=1536,
        intermediate=8960,
        layers=28,
        heads=12,
        kv_heads=2,
        vocabulary=151_936,
        tied=True,
        parameters=2_208_985_600,
    ),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2(
        "qwen2_vl",
        {"embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4},
        hidden=3584,
        intermediate=18_944,
        layers=28,
        heads=28,
        kv_heads=4,
        vocabulary=152_064,
        tied=False,
        parameters=8_291_375_616,
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2(
        "qwen2_5_vl",
        {**_QWEN2_5_VISION, "out_hidden_size": 2048},
        hidden=2048,
        intermediate=11_008,
        layers=36,
        heads=16,
        kv_heads=2,
        vocabulary=151_936,
        tied=True,
        parameters=3_754_622_976,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2(
        "qwen2_5_vl",
        {**_QWEN2_5_VISION, "out_hidden_size": 3584},
        hidden=3584,
        intermediate=18_944,
        layers=28,
        heads=28,
        kv_heads=4,
        vocabulary=152_064,
        tied=False,
        parameters=8_292_166_656,
    ),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3(
        hidden=2048,
        intermediate=6144,
        layers=28,
        heads=16,
        tied=True,
        vision=_QWEN3_SMALL_VISION,
        parameters=2_127_532_032,
    ),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3(
        hidden=2560,
        intermediate=9728,
        layers=36,
        heads=32,
        tied=True,
        vision=_QWEN3_SMALL_VISION,
        parameters=4_437_815_808,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3(
        hidden=4096,
        intermediate=12_288,
        layers=36,
        heads=32,
        tied=False,
        vision=_QWEN3_LARGE_VISION,
        parameters=8_767_123_696,
    ),
    "llava-hf/llava-v1.6-mistral-7b-hf": _llava_next(
        {
            "model_type": "mistral",
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32_768,
            "rope_theta": 1_000_000.0,
            "sliding_window": None,
        },
        intermediate=14_336,
        kv_heads=8,
        parameters=7_566_747_648,
    ),
    "llava-hf/llava-v1.6-vicuna-7b-hf": _llava_next(
        {"model_type": "llama", "max_position_embeddings": 4096, "pad_token_id": 0},
        intermediate=11_008,
        kv_heads=32,
        parameters=7_063_431_168,  # LLaVA-1.5's 7 063 427 072 and a newline embedding
    ),
    "microsoft/Phi-3.5-vision-instruct": _phi3_v(),
    "openai/clip-vit-base-patch32": _clip(
        image_size=224,
        patch_size=32,
        text=512,
        vision=768,
        layers=12,
        parameters=151_277_313,  # 151.28 M in open_clip's docs/model_profile.csv
    ),
    "openai/clip-vit-large-patch14-336": _clip(
        image_size=336,
        patch_size=14,
        text=768,
        vision=1024,
        layers=24,
        parameters=427_944_193,  # 427.94 M there
    ),
    "Salesforce/blip2-itm-vit-g": _blip_2(),
}
"""By hub id."""
