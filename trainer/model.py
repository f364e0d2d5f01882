"""The model that is trained: a base checkpoint as an embedder, its adapters, and noise on its input."""

import re
from dataclasses import replace

import torch
from torch import nn

from fanoise.backbones import Backbone, split_revision
from fanoise.embedder import Embedder, EmbedderSpec, base_reference, read_spec, run_folder, weights_digest
from fanoise.errors import ArtifactError, ConfigError, one_line
from fanoise.input_noise import InputNoise
from trainer.config import LoraConfig, RunConfig
from trainer.engine import resolve_dtype


def build_embedder(config: RunConfig, device: torch.device) -> Embedder:
    """The base checkpoint as an embedder, with fresh LoRA adapters unless every parameter is trained."""
    model, inherited = config.model, read_base_spec(config)
    embedder = Embedder.from_pretrained(
        config.model.base, device="cpu", dtype=resolve_dtype(config), attention=model.attention
    )
    backbone = embedder.backbone
    spec = replace(
        inherited,
        prompts={
            "query": embedder.prompts["query"] if model.query_prompt is None else model.query_prompt,
            "item": embedder.prompts["item"] if model.item_prompt is None else model.item_prompt,
        },
        pooling=inherited.pooling if model.pooling is None else model.pooling,
        max_pixels=inherited.max_pixels if model.max_pixels is None else model.max_pixels,
        max_tokens=inherited.max_tokens if model.max_tokens is None else model.max_tokens,
        noise={},
    )
    if config.lora.enabled:
        spec = replace(
            spec,
            base_model=base_reference(config.model.base, config.output_dir),
            base_revision=split_revision(embedder.path)[1],
            base_weights=weights_digest(config.model.base),
        )
        add_lora(backbone, config.lora)
    check_backbone(config, backbone)
    if model.gradient_checkpointing:
        backbone.unwrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # ZeRO 3 brings it to the device in parts
    embedder = Embedder(backbone, spec, path=config.output_dir, device="cpu" if config.zero_stage == 3 else str(device))
    embedder.module.train()
    embedder.module.normalize = config.noise.features == "normalized"
    return embedder


def read_base_spec(config: RunConfig) -> EmbedderSpec:
    base = config.model.base
    folder = run_folder(base, whole=False)
    spec = EmbedderSpec() if folder is None else read_spec(folder)
    if spec.base_model is not None:
        raise ArtifactError(
            f"model.base {base} is an adapter; start from its base {spec.base_model!r} (relative to it) instead"
        )
    return spec


def add_lora(backbone: Backbone, config: LoraConfig) -> None:
    """Wrap the backbone's model in fresh adapters.

    Raises: ConfigError when `targets` matches nothing, or what no embedding depends on, listing what there is.
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
    used = [name for name in names if not name.startswith(backbone.unused_weights)]
    try:
        for name in set(names) - set(used):
            if re.fullmatch(settings.target_modules, name):  # DeepSpeed stumbles over a loss without a gradient
                raise ValueError(f"no embedding depends on {name}")
        backbone.model = peft.get_peft_model(backbone.model, settings)
    except (ValueError, re.error) as error:
        there = list(dict.fromkeys(re.sub(r"\d+", "N", name) for name in used))
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


def attach_input_noise(embedder: Embedder, config: RunConfig) -> InputNoise | None:
    if config.noise.position != "input" or config.noise.strength == 0:
        return None
    language_model = embedder.backbone.language_model
    assert language_model is not None, "check_backbone"
    noise = InputNoise(config.noise.strength)
    noise.attach(language_model)
    return noise


def _has_dropout(module: nn.Module) -> bool:
    """Whether two forward passes of the module in training mode can differ."""
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules())
