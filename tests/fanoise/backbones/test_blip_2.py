"""BLIP-2 against the upstream model's contrastive path, and against its siblings of the same name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from fanoise.backbones import Backbone, Example, load_backbone, load_skeleton
from fanoise.errors import ArtifactError
from tests.fanoise.backbones import tiny_blip_2
from tests.fanoise.backbones.examples import ids, picture

TEXTS = ["a red square", "large and rather far left, blue", "", "green"]
PICTURES = [picture(84, 56, seed=1), picture(40, 100, seed=2), picture(28, 28, seed=3)]


@pytest.fixture(scope="module")
def name() -> str:
    return "blip_2"


@pytest.fixture(scope="module")
def contrast(folder: Path) -> Any:
    """The upstream output for every text and picture: unit text vectors [T, D] and query vectors [I, 4, D]."""
    model = transformers.Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    batch = processor(text=TEXTS, images=PICTURES, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**batch, use_image_text_matching_head=False)


@torch.inference_mode()
def vectors(backbone: Backbone, contents: list[Any]) -> torch.Tensor:
    examples = [
        Example(prompt="", text=one if isinstance(one, str) else "", image=None if isinstance(one, str) else one)
        for one in contents
    ]
    return backbone.forward(backbone.collate(examples, max_tokens=512), "native")


def test_text_vectors_are_the_upstream_ones(backbone, contrast):
    assert (vectors(backbone, TEXTS) - contrast.text_embeds).abs().max() <= 1e-6


def test_image_vectors_are_the_mean_of_the_upstream_queries(backbone, contrast):
    queries = contrast.image_embeds
    assert queries.shape == (len(PICTURES), tiny_blip_2.QUERIES, backbone.dim)
    assert (vectors(backbone, PICTURES) - F.normalize(queries.mean(dim=1), dim=1)).abs().max() <= 1e-6
    assert (queries[:, 0] @ queries[:, 1].T).diagonal().max() < 0.9  # the queries differ


def test_a_score_is_the_mean_of_the_cosines_upstream_takes_the_largest_of(backbone, contrast):
    cosines = contrast.image_embeds @ contrast.text_embeds.T  # [I, queries, T]
    assert torch.equal(cosines.amax(dim=1), contrast.logits_per_image)
    lengths = contrast.image_embeds.mean(dim=1).norm(dim=1, keepdim=True)
    found = vectors(backbone, PICTURES) @ vectors(backbone, TEXTS).T
    assert (found * lengths - cosines.mean(dim=1)).abs().max() <= 1e-6


def test_a_word_the_vocabulary_lacks_counts_and_a_special_token_does_not(backbone):
    tokenizer = backbone.processor.tokenizer
    (row,) = ids(backbone, Example(prompt="", text="red 😀 [SEP] <image> [DEC] square", image=None))
    assert row == tokenizer.convert_tokens_to_ids(["[CLS]", "red", "[UNK]", "square", "[SEP]"])
    assert max(row) < len(backbone.model.embeddings.word_embeddings.weight)


def test_the_matching_head_is_never_computed_and_may_be_missing(folder, tmp_path, backbone):
    called = []
    hook = backbone.model.itm_head.register_forward_hook(lambda *_: called.append(1))
    expected = vectors(backbone, [*TEXTS, *PICTURES])
    hook.remove()
    assert called == []
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("itm_head")}
    assert len(kept) == len(weights) - 2
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(vectors(load_backbone(copy), [*TEXTS, *PICTURES]), expected)


@pytest.mark.parametrize("architecture", ["Blip2ForConditionalGeneration", "Blip2Model"])
def test_another_architecture_of_the_same_name_is_refused(tmp_path, architecture):
    config = tiny_blip_2.config(155)
    config.text_config = transformers.OPTConfig(
        vocab_size=8, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=1, word_embed_proj_dim=16
    )
    config.qformer_config.use_qformer_text_input = False
    getattr(transformers, architecture)(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "blip-2"
    for load in (load_backbone, load_skeleton):
        with pytest.raises(ArtifactError, match=rf"{architecture}.* give a checkpoint of Blip2ForImageText") as error:
            load(tmp_path)
        assert "\n" not in str(error.value)


def test_a_checkpoint_that_names_no_architecture_needs_all_weights(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    del config["architectures"]
    (copy / "config.json").write_text(json.dumps(config))
    assert load_backbone(copy).dim == 24
    weights = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "text_projection" not in name}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"2 weights are missing, text_projection\.bias first"):
        load_backbone(copy)
