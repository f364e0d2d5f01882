"""Everything a training run can be told. The text under a field is its documentation and its `--help`."""

import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fanoise.attention import Attention
from fanoise.errors import ConfigError
from fanoise.noise import NoiseConfig
from fanoise.pooling import Pooling


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The checkpoint to start from, and how it becomes an embedder. What is left out is taken from the checkpoint."""

    base: str
    """Local checkpoint folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub."""
    pooling: Pooling | None = None
    """Last attended token, mean over attended tokens, the state after "... in one word:" (E5-V), or, for dual encoders,
    the model's own."""
    query_prompt: str | None = None
    """Instruction put before every query."""
    item_prompt: str | None = None
    """Instruction put before every item."""
    max_pixels: int | None = None
    """Larger images are resized down to this many pixels: the budget of image tokens."""
    max_tokens: int | None = None
    """Text beyond this many tokens is cut."""
    attention: Attention = "auto"
    """How attention is computed; auto is what transformers takes for the model; flash_attention_2 needs flash-attn."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more time. Results do not change."""

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(
                    f"model.{name} must be >= 1, got {getattr(self, name)}; leave it out for the checkpoint's own"
                )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) on the language tower's attention and MLP projections."""

    enabled: bool = True
    """False trains every parameter."""
    rank: int = 8
    """Rank of the update."""
    alpha: int = 16
    """Scale of the update is alpha / rank."""
    dora: bool = False
    """Weight-decomposed adapters (DoRA, arXiv 2402.09353): magnitude and direction apart; slower."""
    dropout: float = 0.0
    """Dropout before the update; replayed exactly under GradCache."""
    targets: str | None = None
    """Regular expression over module names, matched in full; by default the backbone's own."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank must be >= 1, got {self.rank}; use --lora.enabled false to train everything")
        if self.alpha < 1:
            raise ConfigError(f"lora.alpha must be >= 1, got {self.alpha}; at 0 nothing would be trained")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The pairs to learn from."""

    pairs: list[str]
    """CSV, JSONL or Parquet files of pairs, or MMEB-train's Parquet files, or patterns (*, **) for them; what is at
    hf://datasets/OWNER/NAME/FILE, or /PATTERN, is fetched from the hub."""
    images: str | None = None
    """Folder in which the image paths of MMEB-train files start; other files name images relative to themselves."""
    weights: list[float] | None = None
    """How often each file is drawn, relative to the others; by default by its number of pairs, after max_pairs."""
    max_pairs: int | None = None
    """At most this many pairs of each file, drawn by the seed; none takes all."""
    sub_batch_size: int | None = None
    """Consecutive pairs of a batch that come from one file; none takes a whole batch from one file."""
    augment: Literal["none", "crop", "crop_flip"] = "none"
    """Random crops of training images (80 to 100 % of each side), and left-right flips."""
    workers: int = 1
    """Processes that prepare batches ahead; 0 prepares them in the training process."""
    max_rejects: float = 0.05
    """Stop when more than this share of the pairs of the last hundred batches had a broken image, and more than luck
    explains (3 standard deviations); below, they are skipped and named in rejects.jsonl. 0 stops at the first."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"data.workers must be >= 0, got {self.workers}")
        for name in ("max_pairs", "sub_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"data.{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.max_rejects <= 1:
            raise ConfigError(f"data.max_rejects must lie in [0, 1], got {self.max_rejects}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is added to InfoNCE. All of it works together with the noise."""

    hardness: float = 0.0
    """Weight negatives by exp(hardness x similarity) (LLaVE, arXiv 2503.04812; its value is 9); 0 weights all alike."""
    false_negative_margin: float | None = None
    """Leave out negatives more similar than the positive by this much (UniME, arXiv 2504.17432; its value is 0.1)."""
    dropout_pairs: float = 0.0
    """Weight of a second InfoNCE between two encodings of each query that differ by dropout (SimCSE, arXiv 2104.08821);
    needs lora.dropout, or dropout in the model."""

    def __post_init__(self) -> None:
        for name in ("hardness", "dropout_pairs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"loss.{name} must be >= 0, got {getattr(self, name)}")
        margin = self.false_negative_margin
        if margin is not None and not 0 <= margin <= 2:
            raise ConfigError(f"loss.false_negative_margin must lie in [0, 2], got {margin}")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Noise-free retrieval on held-out pairs while training."""

    pairs: list[str] = field(default_factory=list)
    """Files of held-out pairs, in the formats of data.pairs; empty for none."""
    every: int = 100
    """Steps between two validations; the last step is always validated."""
    max_pairs: int = 1000
    """At most this many pairs of each file, drawn by the seed; the positives of a file's pairs are its gallery."""
    metric: Literal["recall@1", "mrr"] = "recall@1"
    """Which mean over the files says what is best."""
    patience: int = 0
    """Stop after this many validations without a better one; 0 trains to max_steps."""
    keep: Literal["best", "last"] = "best"
    """Whose weights the run folder gets."""

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("max_pairs", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"validation.{name} must be >= {least}, got {getattr(self, name)}")
        if self.patience < 0:
            raise ConfigError(f"validation.patience must be >= 0, got {self.patience}")


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
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"optimizer.lr must be a number > 0, got {self.lr}")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"optimizer.{name} must be a number >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Fine-tune a vision-language embedder with InfoNCE and, unless its strength is 0, FANoise."""

    model: ModelConfig
    data: DataConfig
    output_dir: Path
    """The run folder: weights, processor, embedder.json, config.yaml, metrics.jsonl, checkpoints, model card."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 256
    """Pairs a step, over all processes; results do not depend on how many share them, but for dropout, noise on the
    input, and a local spectrum."""
    chunk_size: int = 32
    """Rows that go through the model at once (GradCache); memory depends on this, results do not (dropout and noise on
    the input draw other numbers)."""
    reuse_image_features: bool = True
    """Where the image tower is not trained, keep what it makes of a step's images for GradCache's second pass, in the
    CPU's memory: 2 bytes x hidden size for each image token in bf16 (4 times as much for Qwen3-VL). False makes it
    anew. Not at zero_stage 3."""
    temperature: float = 0.02
    """Divides the similarities in the loss."""
    seed: int = 42
    """Seeds data order, adapters, dropout and noise."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: what is split over processes (1 optimiser, 2 and gradients, 3 and parameters, once each
    process has loaded them). bf16 needs at least 1, which adds up the chunks' gradients in fp32."""
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
    log_spectrum_every: int = 10
    """Steps between two entries about the spectrum (effective rank, noise by band) in metrics.jsonl."""
    push_to_hub: str | None = None
    """Hub repository (OWNER/NAME) that gets the finished run folder; needs a login."""
    dry_run: bool = False
    """Print what would run, and stop before any weight is loaded. Needs the pair files, not their images, and of the
    checkpoint config.json; with its processor, too, the memory is that of the largest images."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "chunk_size", "save_every", "keep_checkpoints", "log_spectrum_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ConfigError("batch_size must be >= 2: the other pairs of the batch are the negatives")
        if self.chunk_size > self.batch_size:
            raise ConfigError(
                f"chunk_size ({self.chunk_size}) must not be larger than batch_size ({self.batch_size}); "
                f"take --chunk_size {self.batch_size} or less"
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must lie in [0, 2^32), got {self.seed}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature must be > 0, got {self.temperature}; 0.02 to 0.07 is usual")
        if self.validation.patience and not self.validation.pairs:
            raise ConfigError(
                "validation.patience needs validation.pairs, the held-out pairs to judge by; none are given"
            )
        for monitor in set(self.monitors) - {"csv"}:
            if importlib.util.find_spec(monitor) is None:
                raise ConfigError(f"monitors names {monitor}, which is not installed; pip install {monitor}")
        if self.zero_stage == 0 and self.precision == "bf16":
            raise ConfigError(
                "precision bf16 needs zero_stage 1 or higher: at 0 the chunks' gradients would be added up in bf16 and "
                "small ones lost; take --zero_stage 1, which is also right for one process, or --precision fp32"
            )
        if self.push_to_hub and self.lora.enabled and Path(self.model.base).is_dir():
            raise ConfigError(
                f"push_to_hub {self.push_to_hub}: nobody else can load adapters whose base is a folder, "
                f"{self.model.base}; "
                "give model.base as a hub id, or train all parameters with --lora.enabled false"
            )
        if not self.data.pairs:
            raise ConfigError("data.pairs is empty; name at least one CSV, JSONL or Parquet file of pairs")
        if self.data.sub_batch_size is not None and self.batch_size % self.data.sub_batch_size:
            raise ConfigError(
                f"data.sub_batch_size ({self.data.sub_batch_size}) must divide batch_size ({self.batch_size})"
            )
        if self.data.weights is not None and len(self.data.weights) != len(self.data.pairs):
            raise ConfigError(
                f"data.weights has {len(self.data.weights)} entries for {len(self.data.pairs)} of data.pairs; "
                "give one for each, or leave them out"
            )

    @property
    def keeps_image_features(self) -> bool:
        """Whether `reuse_image_features` holds at this stage of ZeRO."""
        # ZeRO 3 fetches weights in the order of the pass before, in which the image tower would be missing
        return self.reuse_image_features and self.zero_stage < 3

    def needs_complete_batches(self, processes: int) -> bool:
        """Whether every process must run every part of the model in every call, images or not.

        Processes that share out parameters (ZeRO 3), or gradients of parts that not all of them ran, would wait for
        each other for ever. And ZeRO 3 takes a trained part that did not run to have the gradient of the step before.
        """
        everywhere = not self.lora.enabled or self.lora.targets is not None  # else the language tower alone is trained
        if self.zero_stage == 3:
            return processes > 1 or everywhere
        return processes > 1 and self.zero_stage > 0 and everywhere
