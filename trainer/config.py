"""Everything a training run can be told. The text under a field is its documentation and its `--help`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fanoise.errors import ConfigError
from fanoise.noise import NoiseConfig
from fanoise.pooling import Pooling


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The checkpoint to start from, and how it becomes an embedder. What is left out is taken from the checkpoint."""

    base: str
    """Local checkpoint folder or hub id."""
    pooling: Pooling | None = None
    """Last attended token, or mean over attended tokens."""
    query_prompt: str | None = None
    """Instruction put before every query."""
    item_prompt: str | None = None
    """Instruction put before every item."""
    max_pixels: int | None = None
    """Larger images are resized down to this many pixels."""
    max_tokens: int | None = None
    """Text beyond this many tokens is cut."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) on the language tower's attention and MLP projections."""

    enabled: bool = True
    """False trains every parameter."""
    rank: int = 8
    """Rank of the update."""
    alpha: int = 16
    """Scale of the update is alpha / rank."""
    dropout: float = 0.0
    """Dropout before the update; replayed exactly under GradCache."""
    targets: str | None = None
    """Regular expression over module names, matched in full; by default the backbone's own."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank must be >= 1, got {self.rank}; use --lora.enabled false to train everything")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The pairs to learn from."""

    pairs: list[str]
    """CSV, JSONL or Parquet files of pairs, or MMEB-train's Parquet files; each step's batch comes from one file."""
    images: str | None = None
    """Folder in which the image paths of MMEB-train files start; other files name images relative to themselves."""
    weights: list[float] | None = None
    """How often each file is drawn, relative to the others; by default by its number of pairs."""
    augment: Literal["none", "crop", "crop_flip"] = "none"
    """Random crops of training images (80 to 100 % of each side), and left-right flips."""
    workers: int = 1
    """Processes that prepare batches ahead; 0 prepares them in the training process."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"data.workers must be >= 0, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a linear schedule."""

    lr: float = 2e-5
    """Peak learning rate."""
    warmup_steps: int = 200
    """Steps over which the rate rises linearly; it then falls linearly to 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 leaves them."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"optimizer.lr must be > 0, got {self.lr}")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"optimizer.{name} must be >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Fine-tune a vision-language embedder with InfoNCE and, unless its strength is 0, FANoise."""

    model: ModelConfig
    data: DataConfig
    output_dir: Path
    """The run folder: weights, processor, embedder.json, config.yaml, metrics.jsonl, checkpoints, model card."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 256
    """Pairs a step, over all processes; results do not depend on how many share them, dropout masks apart."""
    chunk_size: int = 32
    """Rows that go through the model at once (GradCache); memory depends on this, results do not."""
    temperature: float = 0.02
    """Divides the similarities in the loss."""
    seed: int = 42
    """Seeds data order, adapters, dropout and noise."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is split over processes (1 optimiser, 2 and gradients, 3 and parameters). In bf16 take
    at least 1, on one process too: stage 0 adds up the chunks' gradients in bf16, the others in fp32."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Auto is bf16 on a CUDA device that has it, fp32 elsewhere."""
    save_every: int = 100
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Older checkpoints are removed."""
    resume: Literal["never", "auto"] = "never"
    """Auto goes on from the newest checkpoint in output_dir, or starts if there is none."""
    monitors: list[Literal["csv", "tensorboard", "wandb"]] = field(default_factory=list)
    """DeepSpeed monitors to log to, besides metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "chunk_size", "save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ConfigError("batch_size must be >= 2: the other pairs of the batch are the negatives")
        if self.chunk_size > self.batch_size:
            raise ConfigError(f"chunk_size ({self.chunk_size}) must not be larger than batch_size ({self.batch_size})")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must lie in [0, 2^32), got {self.seed}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be > 0, got {self.temperature}")
        if not self.data.pairs:
            raise ConfigError("data.pairs is empty; name at least one CSV, JSONL or Parquet file of pairs")
        if self.data.weights is not None and len(self.data.weights) != len(self.data.pairs):
            raise ConfigError(
                f"data.weights has {len(self.data.weights)} entries for {len(self.data.pairs)} pair files"
            )
