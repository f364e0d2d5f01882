"""A random two-layer Phi-3.5-vision checkpoint, 32 dimensions, in the layout of the published one."""

import json
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing

from fanoise.backbones.phi3_v_model import Phi3VConfig, Phi3VForCausalLM
from tests.fanoise.backbones.tiny_tokenizer import train_tokenizer

TILE = 56
GRID = 2
"""Tokens along the side of a tile."""
SPECIAL = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|image|>")


def most_image_tokens(limit: int) -> int:
    """Tiles, overview, ends of rows and separator of an image with all tiles above each other."""
    tiles = limit // TILE**2
    return (tiles + 1) * GRID**2 + (tiles + 1) * GRID + 1


def save(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(SPECIAL, end="<|endoftext|>", model_max_length=4096)
    start = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "auto_map": {
                    "AutoProcessor": "processing_phi3_v.Phi3VProcessor",
                    "AutoImageProcessor": "processing_phi3_v.Phi3VImageProcessor",
                },
                "num_crops": 4,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Phi3VImageProcessor",
                "processor_class": "Phi3VProcessor",
                "num_img_tokens": GRID * GRID,
                "tile_size": TILE,
            }
        )
    )
    config = Phi3VConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        original_max_position_embeddings=256,
        rope_theta=10_000.0,
        rope_scaling={
            "type": "su",
            "short_factor": [1.0 + 0.1 * i for i in range(8)],
            "long_factor": [4.0 + i for i in range(8)],
        },
        bos_token_id=start,
        eos_token_id=tokenizer.convert_tokens_to_ids("</s>"),
        pad_token_id=tokenizer.eos_token_id,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,  # the last is not used
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": TILE // GRID // 2,
        },
    )
    torch.manual_seed(0)
    Phi3VForCausalLM(config).save_pretrained(folder)
