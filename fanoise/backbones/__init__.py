"""Registry of model families, by the `model_type` in a checkpoint's config.json."""

from collections.abc import Iterator
from contextlib import contextmanager
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
from fanoise.errors import ArtifactError, ConfigError, one_line

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
    attention: Attention = "auto",
) -> Backbone:
    """Load a local checkpoint or a hub id (OWNER/NAME or OWNER/NAME@REVISION) with the family its config names.

    Raises: ArtifactError when there is no checkpoint at `path`, or its family is not known.
    """
    source, revision = split_revision(path)
    family, _ = _family(path)
    try:
        with _quiet(Path(source).is_dir()):
            return family.load(source, dtype=dtype, revision=revision, attention=attention)
    except (OSError, ValueError, RuntimeError, SafetensorError, ImportError) as error:
        if attention != "auto" and "attention" in str(error).lower():
            raise ConfigError(f"attention {attention} cannot be had: {one_line(error)}; take auto") from None
        raise ArtifactError(
            f"{path}: the checkpoint is incomplete or damaged ({one_line(error)}); fetch or save it again"
        ) from None


def load_skeleton(path: str | Path) -> Backbone:
    """The model of a checkpoint on the `meta` device: shapes and names, no weights.

    Needs nothing of the checkpoint but its config.json; the processor is None where its files are not there.
    """
    family, config = _family(path)
    source, revision = split_revision(path)
    options = {} if revision is None else {"revision": revision}
    try:
        with _quiet(Path(source).is_dir()):
            processor = family.load_processor(source, **options)
    except (OSError, ValueError, ImportError):
        processor = None
    with torch.device("meta"):
        return family(model=family.model_class(config), processor=processor)


def split_revision(path: str | Path) -> tuple[str, str | None]:
    """Hub id and revision (a branch, a tag or a commit) of OWNER/NAME@REVISION; a folder as it is."""
    if Path(path).is_dir():
        return str(path), None
    hub_id, _, revision = str(path).partition("@")
    return hub_id, revision or None


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """No progress bar of transformers, where nothing takes long."""
    bars = transformers.utils.logging
    if not (wanted and bars.is_progress_bar_enabled()):
        yield
        return
    bars.disable_progress_bar()
    try:
        yield
    finally:
        bars.enable_progress_bar()


def _family(path: str | Path) -> tuple[type[Backbone], transformers.PretrainedConfig]:
    source, revision = split_revision(path)
    options = {} if revision is None else {"revision": revision}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        # for what is no folder the hub's answer is about the spelling of repository names
        reason = one_line(error) if Path(path).exists() else "no such folder, nor such a model on the hub"
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


__all__ = ["Attention", "Backbone", "Example", "load_backbone", "load_skeleton", "split_revision"]
