"""The run folder's README.md: what was trained on what, in the hub's model-card form."""

import json
from pathlib import Path

import deepspeed
import peft
import torch
import transformers

from fanoise.noise import noise_in_logits
from trainer.config import RunConfig


def model_card(config: RunConfig, metrics: Path, *, seconds: float, dim: int, device: str) -> str:
    """Markdown with the hub's YAML header."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = sum(row["loss"] for row in rows[-20:]) / max(1, len(rows[-20:]))
    noise = config.noise
    how = (
        "none (baseline)"
        if noise.strength == 0
        else f"FANoise, {noise.scaling}, strength {noise.strength} "
        f"({noise_in_logits(noise.strength, dim, config.temperature):.2f} logits), sides: {noise.sides}"
    )
    weights = f"LoRA, rank {config.lora.rank}" if config.lora.enabled else "all parameters"
    libraries = (torch, transformers, peft, deepspeed)
    versions = ", ".join(f"{library.__name__} {library.__version__}" for library in libraries)
    return f"""---
library_name: fanoise
tags: [feature-extraction, image-text-retrieval, fanoise]
---
# {config.output_dir.name}

Image-text embedder, {dim} dimensions, trained with InfoNCE from `{Path(config.model.base).name}`.

| | |
|---|---|
| noise in training | {how} |
| weights trained | {weights} |
| steps × pairs | {config.max_steps} × {config.batch_size} |
| pairs from | {", ".join("/".join(Path(path).parts[-2:]) for path in config.data.pairs)} |
| learning rate, temperature, seed | {config.optimizer.lr}, {config.temperature}, {config.seed} |
| mean loss of the last 20 steps | {last:.4f} |
| time | {seconds:.0f} s on {device} |
| versions | {versions} |

```python
from fanoise import Embedder, Item

embedder = Embedder.from_pretrained("{config.output_dir.name}")
vectors = embedder.encode([Item(text="a red mug")], role="query")
```

Encoding is always noise-free. Every setting is in `config.yaml`, every step in `metrics.jsonl`.
"""
