"""What CLIP and BLIP-2 share: score fusion, the prompt as text, the limits of a text, and a batch of two parts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers.image_utils import SizeDict

from fanoise.backbones import Backbone, Example, load_backbone
from fanoise.backbones.dual_encoder import unit
from fanoise.catalog import Item
from fanoise.embedder import Embedder, EmbedderSpec
from fanoise.errors import ConfigError
from tests.fanoise.backbones.examples import EXAMPLES, ids, picture

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["clip", "blip_2"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def plain(text: str = "", image: object = None, prompt: str = "") -> Example:
    return Example(prompt=prompt, text=text, image=image)  # type: ignore[arg-type]


@torch.inference_mode()
def rows(backbone: Backbone, *examples: Example, max_tokens: int = 512) -> torch.Tensor:
    return backbone.forward(backbone.collate(examples, max_tokens=max_tokens), "native")


@torch.inference_mode()
def text_features(backbone: Backbone, text: str) -> torch.Tensor:
    """The text tower's output for one text, tokenised by the upstream tokenizer alone."""
    batch = backbone.processor.tokenizer([text], return_tensors="pt")
    return backbone.encode_text(batch["input_ids"], batch["attention_mask"])[0]


@torch.inference_mode()
def image_features(backbone: Backbone, image: object) -> torch.Tensor:
    return backbone.encode_image(backbone.processor.image_processor([image], return_tensors="pt")["pixel_values"])[0]


# images


def test_pixels_are_those_of_the_image_processor_whatever_the_size(backbone):
    sizes = [(84, 56), (300, 200), (20, 31), (32, 32), (33, 32), (1, 1), (1, 150), (500, 7), (224, 999)]
    images = [picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    expected = backbone.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    found = backbone.unpacked(backbone.collate([plain(image=image) for image in images], max_tokens=9))["pixel_values"]
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_resize": False},
        {"size": SizeDict(height=40, width=50)},
        {"size": SizeDict(shortest_edge=40, longest_edge=41)},
        {"resample": 0},
        {"rescale_factor": 0.0039},
    ],
)
def test_pixels_follow_the_settings_of_the_image_processor(own, settings):
    processor = own.processor.image_processor
    for name, value in settings.items():
        setattr(processor, name, value)
    image = picture(50, 40, seed=1)
    expected = processor([image], return_tensors="pt")["pixel_values"]
    found = own.unpacked(own.collate([plain(image=image)], max_tokens=9))["pixel_values"]
    assert torch.equal(found, expected)


# fusion


def test_two_items_of_both_score_the_mean_of_the_four_cosines_up_to_their_norms(backbone):
    texts, images = ["a red square", "large and blue"], [picture(seed=1), picture(seed=2)]
    t = [F.normalize(text_features(backbone, text), dim=0) for text in texts]
    i = [F.normalize(image_features(backbone, image), dim=0) for image in images]
    four = torch.stack([t[0] @ t[1], t[0] @ i[1], i[0] @ t[1], i[0] @ i[1]])
    norms = [(2 + 2 * t[n] @ i[n]).sqrt() for n in (0, 1)]
    first, second = F.normalize(rows(backbone, *(plain(*both) for both in zip(texts, images, strict=True))), dim=1)
    assert abs(first @ second - 4 * four.mean() / (norms[0] * norms[1])) <= TOLERANCE
    assert four.std() > 0.1  # four different numbers, none of which alone would do


def test_a_text_and_an_item_of_both_score_the_mean_of_two_cosines_up_to_one_norm(backbone):
    query, text, image = "far to the left", "a red square", picture(seed=1)
    t, i = (F.normalize(one, dim=0) for one in (text_features(backbone, text), image_features(backbone, image)))
    q = F.normalize(text_features(backbone, query), dim=0)
    first, second = F.normalize(rows(backbone, plain(query), plain(text, image)), dim=1)
    assert abs(first @ second - (q @ t + q @ i) / (2 + 2 * t @ i).sqrt()) <= TOLERANCE


def test_the_length_of_a_towers_features_does_not_weigh_its_part(own):
    both = plain("a red square", picture(seed=1))
    before = rows(own, both)
    with torch.no_grad():
        own.model.text_projection.weight *= 7
        if own.model.text_projection.bias is not None:
            own.model.text_projection.bias *= 7
    assert text_features(own, "a red square").norm() > 3  # it did grow
    assert (rows(own, both) - before).abs().max() <= TOLERANCE


def test_one_part_gives_a_unit_row_and_both_give_the_sum(backbone):
    text, image = plain("a red square"), plain("", picture(seed=1))
    alone = rows(backbone, text, image)
    assert (alone.norm(dim=1) - 1).abs().max() <= TOLERANCE
    assert (rows(backbone, plain("a red square", picture(seed=1)))[0] - alone.sum(dim=0)).abs().max() <= TOLERANCE


# prompt and text


def test_by_default_there_is_no_prompt_and_no_language_model(backbone):
    embedder = Embedder(backbone, EmbedderSpec(), path="memory", device="cpu")
    assert embedder.prompts == {"query": "", "item": ""}
    assert backbone.language_model is None
    items = [Item(text="a red square"), Item(image=picture(seed=1))]
    expected = [text_features(backbone, "a red square"), image_features(backbone, picture(seed=1))]
    for role in ("query", "item"):
        found = torch.from_numpy(embedder.encode(items, role=role))
        assert (found - F.normalize(torch.stack(expected), dim=1)).abs().max() <= TOLERANCE


def test_a_prompt_is_text_for_an_image_too(backbone):
    image = picture(seed=1)
    prompted, joined = rows(backbone, plain("", image, "find a"), plain("find a", image))
    assert torch.equal(prompted, joined)
    text, words = rows(backbone, plain("red square", prompt="find a "), plain("find a red square"))
    assert torch.equal(text, words)


def test_neither_text_nor_image_is_the_empty_text(backbone):
    assert (rows(backbone, plain())[0] - F.normalize(text_features(backbone, ""), dim=0)).abs().max() <= TOLERANCE


def test_the_text_gives_way_to_the_prompt_in_the_context(backbone):
    text, prompt = "a red square " * 40, "find a large and blue square "
    (row,) = ids(backbone, plain(text, prompt=prompt))
    assert len(row) == backbone.context
    tokenizer = backbone.processor.tokenizer
    assert row == tokenizer(prompt + text, truncation=True, max_length=backbone.context)["input_ids"]
    (cut,) = ids(backbone, plain(text, prompt=prompt), max_tokens=3)
    assert cut == tokenizer(prompt + "a red square")["input_ids"]


def test_a_text_that_fills_the_context_is_whole_and_one_more_token_is_cut(backbone):
    fits = "a" + " red" * (backbone.context - 3)
    assert ids(backbone, plain(fits)) == [backbone.processor.tokenizer(fits)["input_ids"]]
    assert ids(backbone, plain(fits + " square")) == ids(backbone, plain(fits))
    assert torch.isfinite(rows(backbone, plain(fits + " square"))).all()


def test_a_prompt_longer_than_the_context_is_refused(backbone):
    most = backbone.context - 2
    (row,) = ids(backbone, plain("red", prompt="a" + " red" * (most - 1)))
    assert len(row) == backbone.context
    message = rf"prompt 'a red .*' is {most + 1} tokens long, and the model reads at most {most}"
    with pytest.raises(ConfigError, match=message):
        backbone.collate([plain("red", prompt="a" + " red" * most)], max_tokens=8)


def test_a_limit_on_pixels_is_refused_with_the_size_images_have(folder):
    backbone = load_backbone(folder)
    side = backbone.model.config.vision_config.image_size
    with pytest.raises(ConfigError, match=rf"max_pixels is 50176, but \S+ always resizes images to {side}×{side}"):
        Embedder(backbone, EmbedderSpec(max_pixels=224 * 224), path="memory", device="cpu")


# batches


def called(backbone: Backbone, examples: list[Example]) -> set[str]:
    seen = set()
    towers = {"text": backbone.model.text_projection, "image": backbone.model.vision_model}
    hooks = [tower.register_forward_hook(lambda *_, name=name: seen.add(name)) for name, tower in towers.items()]
    rows(backbone, *examples)
    for hook in hooks:
        hook.remove()
    return seen


def test_a_batch_is_tensors_with_a_row_only_for_what_is_there(backbone):
    examples = [plain("red"), plain("", picture()), plain("blue", picture(seed=1)), plain()]
    batch = backbone.collate(examples, max_tokens=512)
    assert all(isinstance(value, torch.Tensor) for value in batch.values())
    assert batch["has_text"].tolist() == [True, False, True, True]
    assert batch["has_image"].tolist() == [False, True, True, False]
    assert len(batch["input_ids"]) == len(batch["attention_mask"]) == 3
    assert len(batch["pixel_values"]) == 2
    assert called(backbone, examples) == {"text", "image"}


def test_a_batch_of_one_kind_runs_one_tower(backbone):
    assert called(backbone, [plain("red"), plain()]) == {"text"}
    assert called(backbone, [plain("", picture())]) == {"image"}


def test_padding_is_on_the_right_whatever_the_tokenizer_says(own):
    own.processor.tokenizer.padding_side = "left"
    mask = own.collate([plain("red"), plain("a large and blue square")], max_tokens=512)["attention_mask"]
    assert mask[:, 0].all()
    assert (mask.diff(dim=1) <= 0).all()
    assert not mask.all()


@pytest.mark.parametrize("item", [Item(text="red"), Item(image=picture(seed=1))], ids=["text", "image"])
def test_a_complete_batch_runs_both_towers_and_gives_the_same_rows(backbone, item):
    embedder = Embedder(backbone, EmbedderSpec(), path="memory", device="cpu")
    batch = embedder.collate([item, item], "item", complete=True)
    assert {"input_ids", "pixel_values"} < set(batch)
    with torch.inference_mode():
        found = embedder.module(batch)
    assert np.abs(found.numpy() - embedder.encode([item, item])).max() <= TOLERANCE


def test_images_of_a_complete_batch_have_a_graph_though_only_text_is_adapted(folder):
    backbone = load_backbone(folder)
    backbone.model = get_peft_model(backbone.model, LoraConfig(r=2, target_modules=backbone.lora_targets))
    embedder = Embedder(backbone, EmbedderSpec(), path="memory", device="cpu")
    found = embedder.module(embedder.collate([Item(image=picture())], "item", complete=True))
    assert found.shape == (1, backbone.dim)
    found.sum().backward()
    gradients = [parameter.grad for parameter in backbone.model.parameters() if parameter.requires_grad]
    assert gradients
    assert any(gradient is not None for gradient in gradients)


def test_an_item_of_both_gives_its_gradient_to_both_towers(own):
    batch = own.collate([plain("red"), plain("blue", picture()), plain("", picture(seed=1))], max_tokens=512)
    weights = torch.linspace(-1, 1, own.dim)
    for number, (text, image) in enumerate([(True, False), (True, True), (False, True)]):
        own.model.zero_grad()
        (own.forward(batch, "native")[number] @ weights).backward()
        for tower, expected in ((own.model.text_projection, text), (own.model.vision_model, image)):
            found = [one.grad is not None and bool(one.grad.abs().sum() > 0) for one in tower.parameters()]
            assert any(found) == expected


# number formats


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_rows_of_unit_length(folder, backbone, dtype):
    half = load_backbone(folder, dtype=dtype)
    examples = [plain("a red square"), plain("", picture()), plain("green", picture(seed=3)), *EXAMPLES]
    found, expected = (F.normalize(rows(one, *examples), dim=1) for one in (half, backbone))
    assert found.dtype == torch.float32
    assert (rows(half, *examples[:2]).norm(dim=1) - 1).abs().max() <= 1e-6
    assert (found * expected).sum(dim=1).min() > 0.995


def test_unit_keeps_double_precision_and_takes_any_length():
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert unit(features).dtype == torch.float64
    assert unit(features).tolist() == [[0.6, 0.8], [0.0, 0.0]]
