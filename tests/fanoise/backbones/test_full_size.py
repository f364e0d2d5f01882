"""The published models on the meta device: shapes and names from config.json alone, no weights."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fanoise.backbones import Backbone, load_skeleton
from tests.fanoise.backbones.full_size import FULL_SIZES, FullSize

RANK = 8


@pytest.fixture(scope="module", params=FULL_SIZES)
def published(request: pytest.FixtureRequest) -> FullSize:
    return FULL_SIZES[request.param]


@pytest.fixture(scope="module")
def skeleton(published: FullSize, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder: Path = tmp_path_factory.mktemp("full_size")
    (folder / "config.json").write_text(json.dumps(published.config))
    return load_skeleton(folder)


def test_it_has_the_published_number_of_parameters(skeleton, published):
    parameters = list(skeleton.model.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) == published.parameters - published.not_loaded


def test_the_embedding_dimension_is_known_without_weights(skeleton, published):
    assert skeleton.dim == published.dim


def test_lora_reaches_every_layer_of_the_language_tower_and_nothing_else(skeleton, published):
    modules = dict(skeleton.model.named_modules())
    matched = {name for name in modules if re.fullmatch(skeleton.lora_targets, name)}
    assert matched == set(published.lora)
    sizes = {name: (modules[name].in_features, modules[name].out_features) for name in matched}
    assert sizes == published.lora


def test_lora_trains_rank_times_the_sum_of_the_sizes(skeleton, published):
    with torch.device("meta"):
        model = get_peft_model(skeleton.model, LoraConfig(r=RANK, target_modules=skeleton.lora_targets))
    try:
        trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert len(trainable) == 2 * len(published.lora)
        assert sum(parameter.numel() for _, parameter in trainable) == RANK * sum(
            into + out for into, out in published.lora.values()
        )
    finally:
        skeleton.model = model.unload()
