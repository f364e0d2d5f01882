"""FANoise: train image-text embedders with spectral noise, and use them without it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanoise.catalog import Item, read_catalog
    from fanoise.embedder import Embedder
    from fanoise.errors import FANoiseError
    from fanoise.loss import info_nce
    from fanoise.noise import FANoise, NoiseConfig, suggest_strength

__all__ = ["Embedder", "FANoise", "FANoiseError", "Item", "NoiseConfig", "info_nce", "read_catalog", "suggest_strength"]
__version__ = "0.1.0"

_HOME = {
    "Embedder": "embedder",
    "FANoise": "noise",
    "FANoiseError": "errors",
    "Item": "catalog",
    "NoiseConfig": "noise",
    "info_nce": "loss",
    "read_catalog": "catalog",
    "suggest_strength": "noise",
}


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; `--help` and reading a catalogue need neither
    if name in _HOME:
        return getattr(import_module(f"fanoise.{_HOME[name]}"), name)
    raise AttributeError(f"module 'fanoise' has no attribute {name!r}")
