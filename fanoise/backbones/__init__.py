"""Registry of model families, by the `model_type` in a checkpoint's config.json."""

from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError

from fanoise.backbones.base import Attention, Backbone, Example
from fanoise.backbones.blip_2 import Blip2Backbone
from fanoise.backbones.clip import CLIPBackbone
from fanoise.backbones.llava_next import LlavaNextBackbone
from fanoise.backbones.phi3_v import Phi3VBackbone
from fanoise.backbones.qwen_vl import Qwen2_5VLBackbone, Qwen2VLBackbone, Qwen3VLBackbone
from fanoise.errors import ArtifactError, ConfigError
from fanoise.process import settle_accelerator

_FAMILIES: tuple[type[Backbone], ...] = (
    Qwen2VLBackbone,
    Qwen2_5VLBackbone,
    Qwen3VLBackbone,
    LlavaNextBackbone,
    Phi3VBackbone,
    CLIPBackbone,
    Blip2Backbone,
)
_BY_TYPE = {model_type: family for family in _FAMILIES for model_type in family.model_types}


def load_backbone(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    attention: Attention = "auto",
) -> Backbone:
    """Load a local checkpoint or hub id with the family its config names.

    Raises: ArtifactError when there is no checkpoint at `path`, or its family is not known.
    """
    settle_accelerator()
    transformers.utils.logging.disable_progress_bar()
    family, _ = _family(path, revision)
    try:
        return family.load(path, dtype=dtype, revision=revision, attention=attention)
    except (OSError, ValueError, RuntimeError, SafetensorError, ImportError) as error:
        if attention != "auto" and "attention" in str(error).lower():
            raise ConfigError(f"attention {attention} cannot be had: {str(error).splitlines()[0]}; take auto") from None
        raise ArtifactError(
            f"{path}: the checkpoint is incomplete or damaged ({str(error).splitlines()[0]}); fetch or save it again"
        ) from None


def load_skeleton(path: str | Path, *, revision: str | None = None) -> Backbone:
    """The model of a checkpoint on the `meta` device: shapes and names, no weights, no processor.

    Needs nothing of the checkpoint but its config.json.
    """
    family, config = _family(path, revision)
    with torch.device("meta"):
        return family(model=family.model_class(config), processor=None)


def _family(path: str | Path, revision: str | None) -> tuple[type[Backbone], transformers.PretrainedConfig]:
    options = {} if revision is None else {"revision": revision}
    try:
        config = transformers.AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        # for what is no folder the hub's answer is about the spelling of repository names
        reason = str(error).splitlines()[0] if Path(path).exists() else "no such folder, nor such a model on the hub"
        raise ArtifactError(
            f"{path}: no model checkpoint can be loaded from there ({reason}); "
            "give a folder with config.json and *.safetensors, or a hub id"
        ) from None
    if config.model_type not in _BY_TYPE:
        raise ArtifactError(
            f"{path}: model type {config.model_type!r} is not supported; known: {', '.join(sorted(_BY_TYPE))}"
        )
    family = _BY_TYPE[config.model_type]
    named = config.architectures or []
    if family.architectures and named and not set(named) & set(family.architectures):
        raise ArtifactError(
            f"{path}: architecture {named[0]!r} of {config.model_type} is not supported; "
            f"give a checkpoint of {' or '.join(family.architectures)}"
        )
    return family, config


__all__ = ["Attention", "Backbone", "Example", "load_backbone", "load_skeleton"]
