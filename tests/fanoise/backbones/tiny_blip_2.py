"""A random two-layer BLIP-2 for retrieval, 32 dimensions, images of 28 × 28 pixels, four queries."""

import json
import string
from pathlib import Path

import torch
import transformers

SIDE = 28
CONTEXT = 64
QUERIES = 4
WORDS = (
    "a",
    "and",
    "blue",
    "far",
    "find",
    "green",
    "large",
    "left",
    "rather",
    "red",
    "some",
    "square",
    "the",
    "yellow",
)


def save(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BlipImageProcessor", "size": {"height": SIDE, "width": SIDE}})
    )
    torch.manual_seed(0)
    model = transformers.Blip2ForImageTextRetrieval(config(len(tokenizer)))
    with torch.no_grad():  # zero at the start, all queries would be one
        model.query_tokens.normal_()
    model.save_pretrained(folder)


def config(vocabulary: int) -> transformers.Blip2Config:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.Blip2Config(
        vision_config={**tower, "image_size": SIDE, "patch_size": 14, "initializer_range": 0.2},
        qformer_config={
            **tower,
            "vocab_size": vocabulary,
            "max_position_embeddings": CONTEXT,
            "use_qformer_text_input": True,
            "initializer_range": 0.2,
        },
        text_config={"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 8},  # never built
        num_query_tokens=QUERIES,
        image_text_hidden_size=24,
        initializer_range=0.2,
    )


def make_tokenizer() -> transformers.BertTokenizer:
    """Lower-case WordPiece with the first-stage model's "[DEC]" as its last token."""
    signs = string.ascii_lowercase + string.digits + string.punctuation
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs)]
    tokens += [word for word in WORDS if word not in tokens]
    tokenizer = transformers.BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer
