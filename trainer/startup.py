"""What will run, in a few lines that a person reads before they wait."""

import re
from collections.abc import Sequence

import torch
from torch import nn

from fanoise.backbones import Backbone
from fanoise.errors import ConfigError, one_line
from fanoise.noise import noise_in_logits
from trainer.config import LoraConfig, RunConfig


def add_lora(backbone: Backbone, config: LoraConfig) -> None:
    """Wrap the backbone's model in fresh adapters.

    Raises: ConfigError when `targets` matches nothing, listing what there is.
    """
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        target_modules=config.targets or backbone.lora_targets,
    )
    names = [name for name, module in backbone.model.named_modules() if isinstance(module, nn.Linear)]
    try:
        backbone.model = peft.get_peft_model(backbone.model, settings)
    except (ValueError, re.error) as error:
        there = list(dict.fromkeys(re.sub(r"\d+", "N", name) for name in names))
        more = f" and {len(there) - 24} more" if len(there) > 24 else ""
        raise ConfigError(
            f"lora.targets {settings.target_modules!r} matches no module or cannot be adapted "
            f"({one_line(error)[:120]}); it must match in full one of: {', '.join(there[:24])}{more}"
        ) from None


def check_backbone(config: RunConfig, backbone: Backbone) -> None:
    """Raise ConfigError for what this backbone, with its adapters, cannot do. It may lie on the `meta` device."""
    pooling = config.model.pooling
    if pooling is not None and pooling not in backbone.poolings:
        raise ConfigError(
            f"model.pooling must be one of {', '.join(backbone.poolings)} for this backbone, got {pooling}"
        )
    if config.noise.position == "input" and config.noise.strength and backbone.language_model is None:
        raise ConfigError("noise.position input needs a language model; this backbone has none, take output")
    if config.loss.dropout_pairs and not _has_dropout(backbone.model):
        raise ConfigError("loss.dropout_pairs needs dropout, and the model has none; set lora.dropout")


def describe_run(
    config: RunConfig, backbone: Backbone, *, processes: int, dtype: torch.dtype, files: Sequence[tuple[str, int]]
) -> str:
    """The start-up table. Only shapes are looked at, so the model may lie on the `meta` device.

    Args:
        files: name and number of pairs of each file.
    """
    parameters = list(backbone.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    pairs = sum(count for _, count in files)
    share = -(-config.batch_size // processes)
    chunks = -(-share // config.chunk_size)
    lora = config.lora
    how = f"{'DoRA' if lora.dora else 'LoRA'} rank {lora.rank}, alpha {lora.alpha}" if lora.enabled else "everything"
    mixing = "one file a batch" if config.data.sub_batch_size is None else f"{config.data.sub_batch_size} of a file"
    passes = "each run once" if chunks == 1 else "each run twice (GradCache)"
    if chunks > 1 and config.keeps_image_features and backbone.has_frozen_images:
        passes += ", but the image tower once"
    lines = {
        "run": str(config.output_dir),
        "backbone": f"{backbone.unwrapped.config.model_type}, {_count(total)} parameters, {backbone.dim} dimensions",
        "trained": f"{how}: {_count(trained)} parameters ({trained / total:.2%})",
        "batch": (
            f"{config.batch_size} pairs = {processes} process(es) × {share}, "
            f"{chunks} chunk(s) of up to {config.chunk_size} a side, {passes}"
        ),
        "data": (
            f"{pairs:,} pairs in {len(files)} file(s), {mixing if len(files) > 1 else 'all in every epoch'}, "
            f"{config.max_steps * config.batch_size / max(1, pairs):.2f} epochs"
        ),
        "steps": (
            f"{config.max_steps}, {_learning_rate(config)}, "
            f"{str(dtype).removeprefix('torch.')}, ZeRO {config.zero_stage}"
        ),
        "noise": _noise(config, backbone.dim),
        "memory": _memory(config, backbone, total, trained, processes, dtype),
    }
    return "\n".join(f"{name:>8}  {text}" for name, text in lines.items())


def _learning_rate(config: RunConfig) -> str:
    lr, warmup = config.optimizer.lr, config.optimizer.warmup_steps
    if warmup < config.max_steps:
        return f"learning rate {lr:g} after {warmup} steps"
    # the last step still has the rate of the step before it: step s is taken at (s - 1) / warmup of the peak
    highest = lr * (config.max_steps - 1) / warmup
    return f"learning rate at most {highest:.2g} (optimizer.warmup_steps {warmup} is not over by then, lower it)"


def _has_dropout(module: nn.Module) -> bool:
    """Whether two forward passes of the module in training mode can differ."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())


def _noise(config: RunConfig, dim: int) -> str:
    noise = config.noise
    if noise.strength == 0:
        return "none"
    if noise.position == "input":
        return f"on the token embeddings (NEFTune), strength {noise.strength:g}"
    # the mean of S is 1 over its directions, so the sum of its squares is at least their number
    directions = dim if noise.scaling == "isotropic" or noise.energy_matched else min(config.batch_size, dim)
    return (
        f"{noise.scaling}, strength {noise.strength:g}: {noise_in_logits(noise.strength, dim, config.temperature):.2f} "
        f"logits where S = 1, at least {noise.strength**2 * directions / dim:.2%} of a row's energy"
    )


def _memory(config: RunConfig, backbone: Backbone, total: int, trained: int, processes: int, dtype: torch.dtype) -> str:
    """A lower bound for the states, and the slope of the rest, which depends on the images.

    Activations: 34 bytes a token, layer and hidden unit in 16 bit without attention scores (Korthikanti et al. 2022,
    arXiv 2205.05198, Eq. 2 with fused attention), 2 with gradient checkpointing.
    """
    width = dtype.itemsize
    split = {0: (1, 1, 1), 1: (1, 1, processes), 2: (1, processes, processes), 3: (processes,) * 3}[config.zero_stage]
    optimizer = 12 if config.zero_stage or width < 4 else 8  # AdamW's moments, and masters beside the parameters
    states = total * width / split[0] + trained * 4 / split[1] + trained * optimizer / split[2]
    text = f"at least {states / 2**30:.2f} GiB a process for parameters, gradients and optimiser"
    settings = getattr(backbone.unwrapped.config, "text_config", backbone.unwrapped.config)
    layers, hidden = getattr(settings, "num_hidden_layers", None), getattr(settings, "hidden_size", None)
    if layers and hidden:
        a_unit = (2 if config.model.gradient_checkpointing else 34) * width / 2
        text += f", about {1000 * layers * hidden * a_unit / 2**30:.2f} GiB more for every 1,000 tokens of a chunk"
    return text


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
