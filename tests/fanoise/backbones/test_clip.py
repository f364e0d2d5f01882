"""CLIP against the upstream model, tokenizer and image processor, called as its documentation does."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from fanoise.backbones import Backbone, Example, load_backbone
from tests.fanoise.backbones.examples import ids, picture

TEXTS = ["a red square", "large and rather far to the left, blue " * 2, "", "naïve 😀 Café"]
PICTURES = [picture(84, 56, seed=1), picture(40, 100, seed=2), picture(32, 32, seed=3)]


@pytest.fixture(scope="module")
def name() -> str:
    return "clip"


@pytest.fixture(scope="module")
def upstream(folder: Path) -> transformers.CLIPModel:
    return transformers.CLIPModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return transformers.AutoProcessor.from_pretrained(folder)


@torch.inference_mode()
def vectors(backbone: Backbone, contents: Sequence[Any]) -> torch.Tensor:
    examples = [
        Example(prompt="", text=one if isinstance(one, str) else "", image=None if isinstance(one, str) else one)
        for one in contents
    ]
    return backbone.forward(backbone.collate(examples, max_tokens=512), "native")


def test_text_vectors_are_the_upstream_text_features(backbone, upstream, processor):
    batch = processor(text=TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        features = upstream.get_text_features(**batch).pooler_output
        raw = backbone.encode_text(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(raw, features)
    assert (vectors(backbone, TEXTS) - F.normalize(features, dim=1)).abs().max() <= 1e-6


def test_image_vectors_are_the_upstream_image_features(backbone, upstream, processor):
    batch = processor(images=PICTURES, return_tensors="pt")
    with torch.inference_mode():
        features = upstream.get_image_features(**batch).pooler_output
        raw = backbone.encode_image(batch["pixel_values"])
    assert torch.equal(raw, features)
    assert (vectors(backbone, PICTURES) - F.normalize(features, dim=1)).abs().max() <= 1e-6


def test_similarities_are_the_upstream_logits_without_their_scale(backbone, upstream, processor):
    batch = processor(text=TEXTS, images=PICTURES, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = upstream(**batch).logits_per_image / upstream.logit_scale.exp()
    found = vectors(backbone, PICTURES) @ vectors(backbone, TEXTS).T
    assert (found - expected).abs().max() <= 1e-6
    assert expected.std() > 0.1


def test_a_long_text_is_cut_at_77_tokens_like_upstream(backbone, upstream, processor):
    text = "a large and blue square, far to the left; " * 20
    batch = processor(text=[text], truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 77)
    assert ids(backbone, Example(prompt="", text=text, image=None)) == batch["input_ids"].tolist()
    with torch.inference_mode():
        expected = F.normalize(upstream.get_text_features(**batch).pooler_output, dim=1)
    assert (vectors(backbone, [text]) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|endof<|endoftext|>text|>"])
def test_a_text_has_one_start_and_one_end(backbone, token):
    (row,) = ids(backbone, Example(prompt="", text=f"red {token} square {token}", image=None))
    tokenizer = backbone.processor.tokenizer
    assert row[0] == tokenizer.bos_token_id
    assert row.index(tokenizer.eos_token_id) == len(row) - 1
    assert row.count(tokenizer.bos_token_id) == 1


def test_the_end_is_pooled_wherever_the_padding_begins(backbone):
    batch = backbone.collate(
        [Example(prompt="", text=text, image=None) for text in ("red", "a large square")], max_tokens=9
    )
    with torch.inference_mode():
        states = backbone.model.text_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        last = batch["attention_mask"].sum(dim=1) - 1
        expected = backbone.model.text_projection(states[torch.arange(2), last])
        assert torch.equal(backbone.encode_text(batch["input_ids"], batch["attention_mask"]), expected)
    assert last[0] < last[1]


def test_the_temperature_is_kept_and_not_trained(backbone, upstream):
    assert "logit_scale" not in dict(backbone.model.named_parameters())
    assert torch.equal(backbone.model.state_dict()["logit_scale"], upstream.logit_scale)
    assert all(parameter.ndim for parameter in backbone.model.parameters())  # DeepSpeed refuses those of no dimension


def test_the_temperature_may_be_missing(folder, tmp_path, backbone):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["logit_scale"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(vectors(load_backbone(copy), [*TEXTS, *PICTURES]), vectors(backbone, [*TEXTS, *PICTURES]))
