"""Checkpoints and loaded backbones of the families, made once. A test module parametrises `name` over families."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fanoise.backbones import Backbone, load_backbone
from tests.fanoise.backbones.families import FAMILIES, Family


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny checkpoint, by name; not to be changed."""
    saved: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in saved:
            saved[name] = tmp_path_factory.mktemp("backbones") / name
            FAMILIES[name].save(saved[name])
        return saved[name]

    return folder


@pytest.fixture(scope="module")
def family(name: str) -> Family:
    return FAMILIES[name]


@pytest.fixture(scope="module")
def folder(name: str, checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint(name)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    """Loaded once; a test leaves its settings alone."""
    loaded = load_backbone(folder)
    if loaded.language_model is not None:
        torch.manual_seed(0)
        norm = loaded.language_model.norm
        with torch.no_grad():  # a fresh norm only divides; an uneven one shows where it was applied
            norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
    return loaded


@pytest.fixture
def own(folder: Path) -> Backbone:
    """A backbone whose settings a test may change."""
    return load_backbone(folder)
