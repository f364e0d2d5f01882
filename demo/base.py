"""The demo's base checkpoint: a small Qwen2-VL with a tokenizer of its own, from random start to the shipped folder."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fanoise.errors import FANoiseError
from fanoise.storage import staged_directory, write_atomic

RECIPE = Path("trainer/recipes/demo_base.yaml")
CHECKPOINT = Path("demo/checkpoint")
SEED = 7

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass(frozen=True, kw_only=True)
class BaseSize:
    """Shape of a small Qwen2-VL. Head sizes must be multiples of 8 (M-RoPE splits half a head in 1 : 3 : 4 parts)."""

    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    vision_size: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    vocabulary: int = 768
    max_pixels: int = 112 * 168


def save_random_base(folder: str | Path, texts: Iterable[str], *, size: BaseSize, seed: int) -> None:
    """Write a checkpoint that the ordinary Auto classes load: weights, config, tokenizer, image processor.

    Args:
        texts: what the tokenizer (byte-level BPE) is trained on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(texts, size.vocabulary)
    tokenizer.save_pretrained(folder)
    processor_config = {
        "processor_class": "Qwen2VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 56 * 56, "longest_edge": size.max_pixels},
    }
    write_atomic(folder / "preprocessor_config.json", json.dumps(processor_config, indent=2) + "\n")
    torch.manual_seed(seed)
    model = transformers.Qwen2VLForConditionalGeneration(_config(size, tokenizer))
    model.save_pretrained(folder)


def _train_tokenizer(texts: Iterable[str], vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL[1:]),
        padding_side="left",
        model_max_length=2048,
    )


def _config(size: BaseSize, tokenizer: transformers.PreTrainedTokenizerFast) -> transformers.Qwen2VLConfig:
    half_head = size.hidden_size // size.heads // 2
    token = tokenizer.convert_tokens_to_ids
    end = token("<|endoftext|>")
    return transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": size.hidden_size,
            "intermediate_size": 3 * size.hidden_size,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "max_position_embeddings": 2048,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [half_head // 4, half_head * 3 // 8, half_head - half_head // 4 - half_head * 3 // 8],
            },
        },
        vision_config={
            "depth": size.vision_layers,
            "embed_dim": size.vision_size,
            "hidden_size": size.hidden_size,
            "num_heads": size.vision_heads,
            "mlp_ratio": 4,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def train_base(
    root: Path = Path("runs/base"),
    target: Path = CHECKPOINT,
    *,
    products: int = 7000,
    pages: int = 3000,
    options: Sequence[str] = (),
) -> None:
    """Corpus, random start, training by the trainer's own recipe, and the half-precision copy that is shipped.

    Args:
        options: further command-line options of the trainer.
    """
    from demo.corpus import corpus_texts, make_corpus

    corpus = root / "corpus"
    if not corpus.exists():
        make_corpus(corpus, product_count=products, page_count=pages)
    if not (root / "start").exists():
        with staged_directory(root / "start") as staging:
            save_random_base(staging, corpus_texts(corpus), size=BaseSize(), seed=SEED)
    paths = [f"--model.base={root / 'start'}", f"--output_dir={root / 'run'}"]
    paths.append(f"--data.pairs=[{corpus / 'products.jsonl'},{corpus / 'documents.jsonl'}]")
    command = [sys.executable, "-m", "trainer", "--config", str(RECIPE), "--resume=auto", *paths, *options]
    if subprocess.run(command).returncode:
        raise FANoiseError("the base was not trained; see the trainer's message above, then call this again to go on")
    ship(root / "run", target)


def ship(run: Path, target: Path) -> None:
    """Copy a finished run as a float16 checkpoint, with its configuration and log beside it."""
    from fanoise.embedder import Embedder

    embedder = Embedder.from_pretrained(run, device="cpu", dtype=torch.float16)
    with staged_directory(target) as staging:
        embedder.save_pretrained(staging)
        shutil.copy(run / "config.yaml", staging / "training.yaml")
        card = (run / "README.md").read_text()
        card = card.replace(f"# {run.name}\n", "# The demo's base\n").replace(f'"{run.name}"', f'"{CHECKPOINT}"')
        card = card.replace(
            "`config.yaml`, every step in `metrics.jsonl`", "`training.yaml`, the log in `training.csv`"
        )
        (staging / "README.md").write_text(card)
        _thin_log(run / "metrics.jsonl", staging / "training.csv")


def _thin_log(metrics: Path, out: Path, *, every: int = 20) -> None:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    names = ("step", "loss", "lr", "grad_norm", "positive_similarity", "negative_similarity")
    kept = [row for row in rows if row["step"] % every == 0 or row["step"] == 1]
    lines = [",".join(f"{row[name]:.6g}" for name in names) for row in kept]
    out.write_text("\n".join([",".join(names), *lines]) + "\n")
