"""Random two-layer LLaVA-NeXT checkpoints, 32 dimensions, in the layout of the published ones."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.fanoise.backbones.tiny_tokenizer import train_tokenizer

TILE = 168  # large enough for the thinnest images: AnyRes finds no canvas where a side would shrink to nothing
GRID = 4
"""Tokens along the side of a tile."""
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE], [TILE, 3 * TILE]]
SPECIAL = ("<unk>", "<s>", "</s>", "<image>", "<pad>")


def most_image_tokens(limit: int) -> int:
    """Overview, canvas and newlines of an image that fills the largest canvas within the limit."""
    canvases = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    return GRID**2 + max(
        rows * columns * GRID**2 + rows * GRID for rows, columns in canvases if rows * columns * TILE**2 <= limit
    )


def save(folder: Path) -> None:
    """With Mistral's tower."""
    save_with(folder, {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": None})


def save_with(
    folder: Path,
    text: dict[str, Any],
    *,
    special: tuple[str, ...] = SPECIAL,
    end: str = "</s>",
    tile: int = TILE,
    grid: int = GRID,
) -> None:
    """With any tower, tokenizer and size of tiles; `text` are the tower's settings besides its size."""
    pinpoints = [[height // TILE * tile, width // TILE * tile] for height, width in PINPOINTS]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(special, end=end, model_max_length=4096, padding_side="left")
    tokenizer.save_pretrained(folder)
    images = {
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
        "crop_size": {"height": tile, "width": tile},
        "size": {"shortest_edge": tile},
        "image_grid_pinpoints": pinpoints,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    tokens = {
        "processor_class": "LlavaNextProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": tile // grid,
        "vision_feature_select_strategy": "default",
    }
    (folder / "processor_config.json").write_text(json.dumps(tokens))
    token = tokenizer.convert_tokens_to_ids
    config = transformers.LlavaNextConfig(
        text_config={
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 4096,
            "bos_token_id": token(special[1]),
            "eos_token_id": token(end),
            "pad_token_id": token(end),
            **text,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,  # the last is not used
            "num_attention_heads": 2,
            "image_size": tile,
            "patch_size": tile // grid,
        },
        image_token_index=token("<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=grid * grid,
    )
    torch.manual_seed(0)
    transformers.LlavaNextForConditionalGeneration(config).save_pretrained(folder)
