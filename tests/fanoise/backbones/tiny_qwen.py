"""Random two-layer checkpoints of the Qwen-VL classes, 32 dimensions."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.fanoise.backbones.tiny_tokenizer import train_tokenizer

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def save_qwen2_vl(folder: Path) -> None:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    _save(folder, transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig, vision, "Qwen2VLProcessor")


def save_qwen2_5_vl(folder: Path) -> None:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "window_size": 56,  # 2 × 2 tokens, so that images have several windows
        "fullatt_block_indexes": [1],
    }
    _save(
        folder,
        transformers.Qwen2_5_VLForConditionalGeneration,
        transformers.Qwen2_5_VLConfig,
        vision,
        "Qwen2_5_VLProcessor",
    )


def save_qwen3_vl(folder: Path) -> None:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,  # a grid of 4 × 4, interpolated to every image
        "deepstack_visual_indexes": [0],
    }
    _save(
        folder,
        transformers.Qwen3VLForConditionalGeneration,
        transformers.Qwen3VLConfig,
        vision,
        "Qwen3VLProcessor",
        text={"head_dim": 16},
        rope={"mrope_interleaved": True},
        images={"patch_size": 16, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    )


def _save(
    folder: Path,
    model_class: Any,
    config_class: Any,
    vision: dict[str, Any],
    processor: str,
    *,
    text: dict[str, Any] | None = None,
    rope: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(SPECIAL, end="<|endoftext|>", model_max_length=2048, padding_side="left")
    tokenizer.save_pretrained(folder)
    patch_size = (images or {}).get("patch_size", 14)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "processor_class": processor,
                "image_processor_type": "Qwen2VLImageProcessor",
                "patch_size": patch_size,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "size": {"shortest_edge": 4 * (2 * patch_size) ** 2, "longest_edge": 6 * (2 * patch_size) ** 2},
                **(images or {}),
            }
        )
    )
    token = tokenizer.convert_tokens_to_ids
    end = token("<|endoftext|>")
    config = config_class(
        text_config={
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "initializer_range": 0.2,  # at 0.02 what a row holds hardly shows in its vector
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 3, 3],
                **(rope or {}),
            },
            **(text or {}),
        },
        vision_config={**vision, "initializer_range": 0.2},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
