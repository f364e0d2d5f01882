"""What will run, in a few lines that a person reads before they wait."""

from collections.abc import Sequence

import torch

from fanoise.backbones import Backbone
from fanoise.noise import noise_in_logits
from trainer.config import RunConfig


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
        "noise": _noise(config, backbone.dim, processes),
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


def _noise(config: RunConfig, dim: int, processes: int) -> str:
    noise = config.noise
    if noise.strength == 0:
        return "none"
    highest = noise.highest_strength(config.max_steps)
    strength = f"strength {noise.strength:g}"
    if highest < noise.strength:
        parts = {"warmup_steps": noise.warmup_steps, "decay_steps": noise.decay_steps}
        schedule = " and ".join(f"noise.{name} {steps}" for name, steps in parts.items() if steps)
        strength = f"strength at most {highest:.2g} of {noise.strength:g} (lower {schedule})"
    if noise.position == "input":
        return f"on the token embeddings (NEFTune), {strength}"
    # the mean of S is 1 over its directions, so the sum of its squares is at least their number
    rows = config.batch_size // processes if noise.spectrum == "local" else config.batch_size
    directions = dim if noise.scaling == "isotropic" or noise.energy_matched else min(rows, dim)
    energy = f"at least {highest**2 * directions / dim:.2%} of"
    logits = f"{noise_in_logits(highest, dim, config.temperature):.2f} logits where S = 1, "
    if noise.features == "normalized":
        return f"{noise.scaling}, {strength}: {logits}{energy} a row's energy"
    # raw rows have lengths that nobody knows yet; what is not normalised afterwards has no scale of logits
    logits = logits if noise.renormalize else ""
    return f"{noise.scaling}, {strength}, of a row of length 1: {logits}{energy} its energy"


def _memory(config: RunConfig, backbone: Backbone, total: int, trained: int, processes: int, dtype: torch.dtype) -> str:
    """A lower bound for the states, and the slope of the rest, which depends on the images.

    Activations: 34 bytes a token, layer and hidden unit in 16 bit without attention scores (Korthikanti et al. 2022,
    arXiv 2205.05198, Eq. 2 with fused attention), 2 with gradient checkpointing.
    """
    width = dtype.itemsize
    split = {0: (1, 1, 1), 1: (1, 1, processes), 2: (1, processes, processes), 3: (processes,) * 3}[config.zero_stage]
    optimizer = 12 if config.zero_stage or width < 4 else 8  # AdamW's moments, and masters beside the parameters
    states = total * width / split[0] + trained * 4 / split[1] + trained * optimizer / split[2]
    text = f"at least {_size(states)} a process for parameters, gradients and optimiser"
    settings = getattr(backbone.unwrapped.config, "text_config", backbone.unwrapped.config)
    layers, hidden = getattr(settings, "num_hidden_layers", None), getattr(settings, "hidden_size", None)
    if not (layers and hidden):
        return text
    a_token = layers * hidden * (2 if config.model.gradient_checkpointing else 34) * width / 2
    tokens = None if backbone.processor is None else backbone.image_tokens()
    if tokens is None:
        return f"{text}, about {_size(1000 * a_token)} more for every 1,000 tokens of a chunk"
    text += (
        f", about {_size(config.chunk_size * tokens * a_token)} more for a chunk of {config.chunk_size} images at the "
        f"limit, {tokens:,} tokens each"
    )
    share = -(-config.batch_size // processes)
    if share > config.chunk_size and config.keeps_image_features and backbone.has_frozen_images:
        text += f"; of main memory up to {_size(2 * share * tokens * hidden * width)} for image features"
    return text


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"
