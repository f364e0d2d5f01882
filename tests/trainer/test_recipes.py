"""Every recipe, as far as it goes without its weights: on a tiny random checkpoint of its base's family."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fanoise.catalog import Item
from fanoise.embedder import Embedder
from fanoise.images import open_image
from tests.fanoise.backbones.families import FAMILIES
from trainer.batches import load_plan
from trainer.command_line import parse
from trainer.config import RunConfig
from trainer.model import build_embedder

RECIPES = sorted((Path(__file__).parents[2] / "trainer/recipes").glob("*.yaml"))
_FAMILY = {"Qwen/Qwen2-VL": "qwen2_vl", "llava-hf/llava-v1.6": "llava_next", "microsoft/Phi-3.5-vision": "phi3_v"}
_IMAGE = Image.new("RGB", (120, 80), (200, 30, 30))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of the family that a base is of; what is no hub id is the demo's, a Qwen2-VL."""
    saved: dict[str, Path] = {}

    def folder(base: str) -> Path:
        name = next((family for start, family in _FAMILY.items() if base.startswith(start)), None)
        if name is None:
            assert base in ("demo/checkpoint", "runs/base/start"), f"{base}: name its family above"
            name = "qwen2_vl"
        if name not in saved:
            saved[name] = tmp_path_factory.mktemp("bases") / name
            FAMILIES[name].save(saved[name])
        return saved[name]

    return folder


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.stem)
def recipe(request) -> RunConfig:
    return parse([f"--config={request.param}"])


def test_model_section_of_every_recipe_makes_an_embedder_that_learns(recipe, checkpoint, tmp_path):
    base = checkpoint(recipe.model.base)
    config = replace(recipe, model=replace(recipe.model, base=str(base)), output_dir=tmp_path / "run")
    embedder = build_embedder(config, torch.device("cpu"))
    _check_trained(embedder, config, FAMILIES[embedder.backbone.unwrapped.config.model_type].lora)
    for role, prompt in (("query", config.model.query_prompt), ("item", config.model.item_prompt)):
        assert embedder.prompts[role] == (embedder.backbone.prompts[role] if prompt is None else prompt)
    assert embedder.spec.pooling == (config.model.pooling or embedder.backbone.poolings[0])
    assert embedder.spec.max_pixels == config.model.max_pixels
    assert config.model.max_tokens in (None, embedder.spec.max_tokens)
    items = [Item(text="a red square"), Item(image=_IMAGE), Item(text="in green", image=_IMAGE)]
    batch = embedder.collate(items, "query")
    rows = embedder.module(batch)
    assert rows.shape == (3, embedder.dim) and rows.isfinite().all()
    (rows @ rows.T).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in embedder.module.parameters())


def test_data_section_of_the_papers_recipes_finds_mmeb_train_as_the_docs_lay_it_out(recipe, tmp_path, monkeypatch):
    """docs/training.md: one folder a set with original-*.parquet, and `images` beside them, in data/MMEB-train."""
    if recipe.model.base.startswith(("demo", "runs")):
        return
    root = tmp_path / "data/MMEB-train"
    for name in ("SetA", "SetB"):
        (root / name).mkdir(parents=True)
        (root / "images" / name).mkdir(parents=True)
        rows = []
        for number in range(recipe.batch_size):
            image = f"images/{name}/{number % 3}.jpg"
            query = {"qry": f"<|image_1|>\nwhat is shown, {number}?", "qry_image_path": image}
            rows.append({**query, "pos_text": f"thing {number}", "pos_image_path": ""})
        for number in range(3):
            _IMAGE.save(root / "images" / name / f"{number}.jpg")
        pq.write_table(pa.Table.from_pylist(rows), root / name / "original-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    plan = load_plan(recipe)
    assert sorted(count for _, count in plan.files) == [recipe.batch_size] * 2
    pairs = plan.pairs(recipe.max_steps)
    assert len(pairs) == recipe.batch_size
    assert all(open_image(pair.query.image).size == _IMAGE.size for pair in pairs[:3])


def _check_trained(embedder: Embedder, config: RunConfig, expected: frozenset[str]) -> None:
    named = embedder.backbone.model.named_parameters()
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not config.lora.enabled:
        assert len(trained) == len(list(embedder.backbone.model.parameters()))
        return
    adapters = {name: p for name, p in trained if "lora_A" in name}
    found = {re.sub(r"^base_model\.model\.|\.lora_A\..*$", "", name) for name in adapters}
    assert found == expected
    assert {min(p.shape) for p in adapters.values()} == {config.lora.rank}
    assert any("magnitude" in name for name, _ in trained) == config.lora.dora
