"""Embedder: a backbone, its pooling and its prompts; items in, unit vectors out. Always noise-free."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from fanoise.backbones import Attention, Backbone, Example, load_backbone, split_revision
from fanoise.catalog import Item
from fanoise.errors import ArtifactError, ConfigError, one_line
from fanoise.images import open_image
from fanoise.pooling import POOLINGS, Pooling, one_word_prompt
from fanoise.storage import sha256_file, write_atomic

Role = Literal["query", "item"]
SPEC_FILE = "embedder.json"
ADAPTER_FILE = "adapter_config.json"
CONFIG_FILE = "config.json"
_PASSING = {
    "_name_or_path",
    "auto_mapping",
    "base_model_name_or_path",
    "dtype",
    "inference_mode",
    "peft_version",
    "revision",
    "torch_dtype",
    "transformers_version",
}
"""Entries of a model's or adapter's config that change no vector, and differ between two savings of the same."""
_SETS = {"exclude_modules", "modules_to_save", "target_modules"}
"""Entries whose lists an adapter saves in any order."""
_KEEP = "keep_rows"
"""Entry of a batch: bool [B], False for rows that only make every part of the model run."""
SPEC_VERSION = 2
_BYTES_A_TOKEN, _PIXELS_A_TOKEN = 4, 28 * 28
"""Only the order of lengths matters, and only for speed."""


@dataclass(frozen=True, kw_only=True)
class EmbedderSpec:
    """How a checkpoint is used as an embedder: everything besides weights and processor that changes a vector."""

    prompts: Mapping[str, str] | None = None
    """Instruction put before the content, per role; none takes the backbone's."""
    pooling: Pooling | None = None
    """How a row becomes a vector; none takes the backbone's first."""
    max_pixels: int | None = None
    """Larger images are resized down to this many pixels; none keeps the processor's own limit."""
    max_tokens: int = 512
    """Text beyond this many tokens is cut; image tokens never are."""
    base_model: str | None = None
    """Hub id, or path relative to the run folder, of the checkpoint an adapter sits on; none if weights are whole."""
    base_revision: str | None = None
    base_weights: str | None = None
    """Digest of the base's weight files, checked when the adapter is loaded."""
    noise: Mapping[str, Any] = field(default_factory=dict)
    """The noise trained with; for information, it never acts here."""

    def __post_init__(self) -> None:
        if self.prompts is not None:
            if not isinstance(self.prompts, Mapping) or set(self.prompts) != {"query", "item"}:
                raise ConfigError(f"prompts must have the keys query and item, got {', '.join(self.prompts) or 'none'}")
            if not all(isinstance(prompt, str) for prompt in self.prompts.values()):
                raise ConfigError(f"prompts must be text, got {dict(self.prompts)}")
        if not isinstance(self.noise, Mapping):
            raise ConfigError(f"noise must map settings to values, got {self.noise!r}")
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ConfigError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ConfigError(f"max_pixels must be >= 1, got {self.max_pixels}")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be >= 1, got {self.max_tokens}")


class EmbeddingModel(nn.Module):
    """The trainable module: a collated batch in, L2-normalised embeddings [B, D] out (at least float32)."""

    def __init__(self, backbone: Backbone, pooling: Pooling) -> None:
        super().__init__()
        self.model = backbone.model
        self._backbone = backbone
        self._pooling: Pooling = pooling
        self.normalize = True
        """False gives the pooled rows as they are, for a loss that perturbs them before it normalises."""

    @property
    def has_frozen_images(self) -> bool:
        """Whether no trained weight has a part in `with_features`."""
        return self._backbone.has_frozen_images

    def with_features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with its images as features, for which `forward` gives the same without the image tower."""
        return self._backbone.with_features(batch)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        keep = batch.get(_KEEP)
        pooled = self._backbone.forward({name: value for name, value in batch.items() if name != _KEEP}, self._pooling)
        pooled = pooled if keep is None else pooled[keep]
        # bfloat16 unit rows are off by up to 0.4 %, which temperature 0.02 turns into 0.2 logits
        pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


class Embedder:
    """Text, images, or both, as unit vectors that are compared by their dot product."""

    def __init__(self, backbone: Backbone, spec: EmbedderSpec, *, path: str | Path, device: str | None = None) -> None:
        pooling = spec.pooling or backbone.poolings[0]
        if pooling not in backbone.poolings:
            raise ConfigError(f"{path}: pooling must be one of {', '.join(backbone.poolings)}, got {pooling!r}")
        self.backbone = backbone
        self.prompts = dict(spec.prompts or backbone.prompts)
        """Instruction put before the content, for each role."""
        self.spec = replace(spec, pooling=pooling, prompts=self.prompts)
        self.path = path
        self.module = EmbeddingModel(backbone, pooling).eval()
        if spec.max_pixels is not None:
            backbone.set_max_pixels(spec.max_pixels)
        self.module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        base: str | Path | None = None,
        attention: Attention = "auto",
    ) -> "Embedder":
        """Load a run folder or a checkpoint, ready to encode: a local one, or one of the hub.

        Args:
            path: a folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub.
            dtype: by default bfloat16 on CUDA, float32 elsewhere.
            base: where an adapter's base checkpoint is now, if it has moved.
            attention: implementation of attention; by default what transformers takes for the model.
        Raises: ArtifactError naming what is missing or does not belong together.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        folder = run_folder(path)
        if folder is None:  # transformers fetches it
            backbone, spec = load_backbone(path, dtype=dtype, attention=attention), EmbedderSpec()
            revision = getattr(backbone.model.config, "_commit_hash", None)
        else:
            spec, revision = read_spec(folder), folder.name
            if (folder / ADAPTER_FILE).exists():
                backbone = _load_adapter(folder, spec, dtype, base, attention)
            elif any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
                backbone = load_backbone(folder, dtype=dtype, attention=attention)
            else:
                raise ArtifactError(
                    f"{folder}: no weights (*.safetensors) in this folder; was the training run finished?"
                )
        if not Path(path).is_dir():  # a branch of the hub moves on; what was loaded here is still found
            path = "@".join(filter(None, (split_revision(path)[0], revision)))
        return cls(backbone, spec, path=path, device=device)

    @property
    def dim(self) -> int:
        """Embedding dimension D."""
        return self.backbone.dim

    @property
    def name(self) -> str:
        return Path(split_revision(self.path)[0]).name

    @property
    def noise(self) -> dict[str, Any]:
        """The noise this embedder was trained with, {} if unknown. None of it acts when encoding."""
        return dict(self.spec.noise)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Digest of each part that changes a vector: weights (with their configs), processor, prompts, pooling, dim."""
        return {
            "weights": _weights_digest(self.path, self.spec),
            "processor": _digest([self.backbone.processor_state(), self.spec.max_tokens]),
            "prompts": _digest(self.prompts),
            "pooling": str(self.spec.pooling),
            "dim": str(self.dim),
        }

    def length(self, text: str | None, pixels: int) -> float:
        """About how many tokens an item takes beside its prompt, to put items of like length into one batch.

        Args:
            pixels: of its image; 0 for none.
        """
        tokens = len((text or "").encode("utf-8", "replace")) / _BYTES_A_TOKEN
        return min(tokens, self.spec.max_tokens) + min(pixels, self.backbone.max_pixels) / _PIXELS_A_TOKEN

    def collate(self, items: Sequence[Item], role: Role, *, complete: bool = False) -> dict[str, Tensor]:
        """Open the items' images and build one model batch, on the CPU.

        Args:
            complete: add a row of text and image, which the model drops again, where the items lack one of them. Where
                processes share parameters, all must run the same modules, whatever their rows hold.
        """
        if role not in self.prompts:
            raise ConfigError(f"role must be 'query' or 'item', got {role!r}")
        asks = self.spec.pooling == "prompt"
        examples = [
            Example(
                prompt=self.prompts[role],
                text=item.text or "",
                image=None if item.image is None else open_image(item.image),
                suffix=one_word_prompt(text=bool(item.text), image=item.image is not None) if asks else "",
            )
            for item in items
        ]
        has_text, has_image = any(item.text for item in items), any(item.image is not None for item in items)
        if not complete or (has_text and has_image):
            return self.backbone.collate(examples, max_tokens=self.spec.max_tokens)
        filler = Example(prompt="", text="x", image=Image.new("RGB", (56, 56)))
        batch = self.backbone.collate([*examples, filler], max_tokens=self.spec.max_tokens)
        return {**batch, _KEEP: torch.tensor([True] * len(examples) + [False])}

    @torch.inference_mode()
    def encode(self, items: Sequence[Item], *, role: Role = "item", batch_size: int = 32) -> np.ndarray:
        """Embed items in order: float32 [N, D], L2-normalised rows.

        Raises: ImageError for an image that cannot be read; ConfigError for an unknown role.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be >= 1, got {batch_size}")
        device = next(self.module.parameters()).device
        vectors = np.empty((len(items), self.dim), dtype=np.float32)
        training = [module for module in self.module.modules() if module.training]
        self.module.eval()  # dropout off, whatever mode the model was left in
        try:
            for start in range(0, len(items), batch_size):
                batch = self.collate(items[start : start + batch_size], role)
                batch = {key: value.to(device) for key, value in batch.items()}
                vectors[start : start + batch_size] = self.module(batch).float().cpu().numpy()
        finally:
            for module in training:
                module.training = True
        return vectors

    def save_pretrained(self, folder: str | Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write weights or adapter, processor and `embedder.json`; loads again by `from_pretrained`, wherever moved."""
        folder = Path(folder)
        model = self.backbone.model
        options: dict[str, Any] = {}
        if hasattr(model, "peft_config"):
            model.peft_config["default"].base_model_name_or_path = self.spec.base_model
            options = {"save_embedding_layers": False}  # "auto" would look for the base where it is not
        model.save_pretrained(folder, state_dict=state_dict, **options)
        self.backbone.processor.save_pretrained(folder)
        write_spec(folder, self.spec)


def run_folder(path: str | Path, *, whole: bool = True) -> Path | None:
    """The folder at a path, or the local copy of a run on the hub; none for a plain checkpoint of the hub.

    Args:
        whole: of a run on the hub, else its `embedder.json` alone.
    Raises: ArtifactError when there is neither, or the hub cannot be asked.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    hub_id, revision = split_revision(path)
    try:
        found = Path(snapshot_download(hub_id, revision=revision, allow_patterns=[SPEC_FILE]))
        if not (found / SPEC_FILE).exists():
            return None
        return Path(snapshot_download(hub_id, revision=found.name)) if whole else found
    except Exception as error:  # a dozen unrelated classes: no such repository, no access, no network
        hub = (
            "" if isinstance(error, HFValidationError) else f", and nothing to be had from the hub ({one_line(error)})"
        )
        raise ArtifactError(
            f"{path}: no such folder{hub}; give a folder with config.json and *.safetensors, or a hub id"
        ) from None


def read_spec(folder: Path) -> EmbedderSpec:
    """The `embedder.json` of a folder, or the defaults when it has none."""
    file = folder / SPEC_FILE
    if not file.exists():
        return EmbedderSpec()
    try:
        stored = json.loads(file.read_text())
    except ValueError as error:
        raise ArtifactError(f"{file}: damaged ({error}); train again or restore the file") from None
    if not isinstance(stored, dict):
        raise ArtifactError(f"{file}: damaged (expected an object); train again or restore the file")
    if stored.pop("format_version", None) != SPEC_VERSION:
        raise ArtifactError(
            f"{file}: written by another version of fanoise; expected format_version {SPEC_VERSION}, train again"
        )
    unknown = set(stored) - {item.name for item in fields(EmbedderSpec)}
    if unknown:
        raise ArtifactError(f"{file}: unknown entries {', '.join(sorted(unknown))}")
    try:
        return EmbedderSpec(**stored)
    except (ConfigError, TypeError) as error:
        raise ArtifactError(f"{file}: damaged ({error}); train again or restore the file") from None


def write_spec(folder: Path, spec: EmbedderSpec) -> None:
    content = {
        "format_version": SPEC_VERSION,
        **asdict(replace(spec, prompts=spec.prompts and dict(spec.prompts), noise=dict(spec.noise))),
    }
    write_atomic(folder / SPEC_FILE, json.dumps(content, indent=2) + "\n")


def base_reference(base: str | Path, folder: Path) -> str:
    """How a run folder names its base: a path relative to the folder when local, so both can move together."""
    if not Path(base).is_dir():
        return split_revision(base)[0]
    # ".." is followed on the disk, so both ends must be free of links
    return Path(os.path.relpath(Path(base).resolve(), Path(folder).resolve())).as_posix()


def weights_digest(path: str | Path) -> str | None:
    """Digest over the weights of a local checkpoint or adapter, and what says how they act; none for a hub id."""
    folder = Path(path)
    files = (sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))) if folder.is_dir() else []
    if not files:
        return None
    parts: dict[str, Any] = {file.name: sha256_file(file) for file in files}
    for file in (folder / CONFIG_FILE, folder / ADAPTER_FILE):
        if file.exists():
            try:
                parts[file.name] = _lasting(json.loads(file.read_text()))
            except ValueError as error:
                raise ArtifactError(f"{file}: damaged ({one_line(error)}); fetch or save it again") from None
    return _digest(parts)


def _load_adapter(
    folder: Path, spec: EmbedderSpec, dtype: torch.dtype, base: str | Path | None, attention: Attention
) -> Backbone:
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").exists():
        raise ArtifactError(f"{folder}: no adapter_model.safetensors; was the training run finished?")
    if base is None:
        if spec.base_model is None:
            raise ArtifactError(f"{folder / SPEC_FILE}: names no base model for this adapter; pass base=...")
        base = folder / spec.base_model if (folder / spec.base_model).is_dir() else spec.base_model
        if spec.base_weights is not None and not Path(base).is_dir():
            raise ArtifactError(
                f"{folder}: its base model {spec.base_model!r} is not there (looked in {folder / spec.base_model}); "
                "move it along with the run, or pass base=..."
            )
    if spec.base_weights is not None and (found := weights_digest(base)) != spec.base_weights:
        raise ArtifactError(
            f"{base}: not the base this adapter was trained on (weights {found}, expected {spec.base_weights})"
        )
    if spec.base_revision is not None and not Path(base).is_dir():
        base = f"{base}@{spec.base_revision}"
    backbone = load_backbone(base, dtype=dtype, attention=attention)
    try:
        with warnings.catch_warnings():  # peft reads an attribute that transformers has renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            backbone.model = PeftModel.from_pretrained(backbone.model, folder).eval()
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder}: the adapter is damaged or of another model ({one_line(error)}); train again"
        ) from None
    return backbone


def _weights_digest(path: str | Path, spec: EmbedderSpec) -> str:
    own = weights_digest(path) or str(path)
    # an adapter's vectors depend on its base as well
    return _digest([own, spec.base_weights or f"{spec.base_model}@{spec.base_revision}"])


def _lasting(settings: Any) -> Any:
    """What a config says of the model, without where it came from and who wrote it."""
    if isinstance(settings, list):
        return [_lasting(one) for one in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        name: sorted(value) if name in _SETS and isinstance(value, list) else _lasting(value)
        for name, value in settings.items()
        if name not in _PASSING
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
