"""The run folder's README.md: what was trained on what, in the hub's model-card form."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepspeed
import peft
import torch
import transformers

from fanoise.backbones import split_revision
from fanoise.noise import noise_in_logits
from trainer.config import RunConfig
from trainer.sources import short_names

_FILES = 24
"""How many files are named; MMEB-train has 20."""


def model_card(
    config: RunConfig,
    metrics: Path,
    *,
    dim: int,
    device: str,
    files: Sequence[tuple[str, int]],
    best: dict[str, Any] | None,
) -> str:
    """Markdown with the hub's YAML header.

    Args:
        files: name and number of pairs of each file, where `data.pairs` may have patterns.
        best: the best validation of the run, none without held-out pairs.
    """
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = [row["loss"] for row in rows[-20:]]
    facts = {
        "noise in training": _noise(config, dim, len(rows)),
        "weights trained": _weights(config),
        "steps × pairs": f"{len(rows)} × {config.batch_size}",
        "pairs from": _files(files),
        "learning rate, temperature, seed": f"{config.optimizer.lr}, {config.temperature}, {config.seed}",
        f"mean loss of the last {len(last)} steps": f"{sum(last) / max(1, len(last)):.4f}",
        "time": f"{sum(row['seconds'] for row in rows):.0f} s on {device}",
        "versions": ", ".join(
            f"{library.__name__} {library.__version__}" for library in (torch, transformers, peft, deepspeed)
        ),
    }
    if extras := _loss(config):
        facts["loss"] = extras
    if best is not None:
        kept = "" if config.validation.keep == "last" else "; these weights"
        facts["held-out pairs"] = f"recall@1 {best['recall@1']:.3f}, MRR {best['mrr']:.3f} at step {best['step']}{kept}"
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    base_id = split_revision(config.model.base)[0]
    base = f"base_model: {base_id}\n" if not Path(base_id).exists() else ""
    return f"""---
library_name: fanoise
{base}tags: [feature-extraction, image-text-retrieval, fanoise]
---
# {config.output_dir.name}

Image-text embedder, {dim} dimensions, trained with InfoNCE from `{Path(base_id).name}`.

| | |
|---|---|
{table}

```python
from fanoise import Embedder, Item

embedder = Embedder.from_pretrained("{config.push_to_hub or config.output_dir.name}")
vectors = embedder.encode([Item(text="a red mug")], role="query")
```

Encoding is always noise-free. Every setting is in `config.yaml`, every step in `metrics.jsonl`.
"""


def _noise(config: RunConfig, dim: int, steps: int) -> str:
    """
    Args:
        steps: that were taken, of which early stopping may have made fewer than the schedule was set for.
    """
    noise = config.noise
    if noise.strength == 0:
        return "none (baseline)"
    highest = noise.highest_strength(steps, config.max_steps)
    strength = f"strength {noise.strength}" if highest == noise.strength else f"strength at most {highest:.2g}"
    if noise.position == "input":
        return f"NEFTune, {strength}{_schedule(config, steps)}"
    # raw rows have any length, which metrics.jsonl divides by
    logits = f" ({noise_in_logits(highest, dim, config.temperature):.2f} logits)" if noise.features != "raw" else ""
    scaling = f"{noise.scaling}{', energy matched' if noise.energy_matched else ''}"
    parts = [
        f"FANoise, {scaling}, {strength}{logits}{_schedule(config, steps)}",
        f"sides: {noise.sides}",
        "spectrum of each process's own rows" if noise.spectrum == "local" else "",
        "on raw features" if noise.features == "raw" else "",
        "" if noise.renormalize else "not normalized again",
    ]
    return ", ".join(part for part in parts if part)


def _schedule(config: RunConfig, steps: int) -> str:
    rising = min(config.noise.warmup_steps, steps)
    falling = min(max(0, config.noise.decay_steps - (config.max_steps - steps)), steps)
    to_zero = " to 0" if steps == config.max_steps else ""
    parts = [
        f" rising over the first {rising} steps" if rising else "",
        f" falling{to_zero} over the last {falling} steps" if falling else "",
    ]
    return ",".join(part for part in parts if part)


def _weights(config: RunConfig) -> str:
    if not config.lora.enabled:
        return "all parameters"
    lora = config.lora
    dropout = f", dropout {lora.dropout:g}" if lora.dropout else ""
    return f"{'DoRA' if lora.dora else 'LoRA'}, rank {lora.rank}, alpha {lora.alpha}{dropout}"


def _files(files: Sequence[tuple[str, int]]) -> str:
    names = short_names([source for source, _ in files])
    said = [f"{name} ({count:,})" for name, (_, count) in zip(names, files, strict=True)]
    more = f" and {len(said) - _FILES} more files" if len(said) > _FILES else ""
    return f"{', '.join(said[:_FILES])}{more}"


def _loss(config: RunConfig) -> str:
    loss = config.loss
    parts = [
        f"negatives weighted by hardness {loss.hardness:g} (LLaVE)" if loss.hardness else "",
        ""
        if loss.false_negative_margin is None
        else f"negatives {loss.false_negative_margin:g} above the positive left out (UniME)",
        f"dropout pairs with weight {loss.dropout_pairs:g} (SimCSE)" if loss.dropout_pairs else "",
    ]
    return ", ".join(part for part in parts if part)
