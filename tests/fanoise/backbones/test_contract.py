"""What every family promises, whatever its model: see `fanoise.backbones.base.Backbone`."""

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from fanoise.backbones import load_backbone, load_skeleton
from fanoise.backbones.base import Backbone
from fanoise.catalog import Item
from fanoise.embedder import Embedder, EmbedderSpec
from fanoise.errors import ArtifactError, ConfigError
from tests.fanoise.backbones.examples import EXAMPLES, embed, example, picture
from tests.fanoise.backbones.families import FAMILIES

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def embedder(backbone: Backbone) -> Embedder:
    return Embedder(backbone, EmbedderSpec(), path="memory", device="cpu")


# batches


@pytest.mark.parametrize("picked", [[0, 5], [1], [2, 4], [3], [0, 3], [0, 1, 2, 3, 4, 5]])
def test_a_row_does_not_depend_on_the_rows_and_the_padding_beside_it(backbone, picked):
    for pooling in backbone.poolings:
        alone = torch.cat([embed(backbone, [EXAMPLES[i]], pooling) for i in picked])
        together = embed(backbone, [EXAMPLES[i] for i in picked], pooling)
        assert together.shape == (len(picked), backbone.dim)
        assert (alone - together).abs().max() <= TOLERANCE, pooling


def test_rows_of_different_content_differ(backbone):
    for pooling in backbone.poolings:
        assert torch.pdist(embed(backbone, EXAMPLES, pooling)).min() > 1e-3, pooling


def test_permuting_the_batch_permutes_the_rows(backbone):
    order = [3, 0, 5, 2, 4, 1]
    permuted = embed(backbone, [EXAMPLES[i] for i in order])
    assert (permuted - embed(backbone, EXAMPLES)[order]).abs().max() <= TOLERANCE


def test_a_batch_leaves_nothing_behind_for_the_next(backbone):
    texts, images = [EXAMPLES[0], EXAMPLES[5]], [EXAMPLES[1], EXAMPLES[2]]
    before = embed(backbone, texts), embed(backbone, images)
    embed(backbone, EXAMPLES)
    embed(backbone, EXAMPLES[3:])
    assert torch.equal(embed(backbone, texts), before[0])
    assert torch.equal(embed(backbone, images), before[1])


def test_both_ways_of_attention_give_the_same_vectors(folder):
    eager, sdpa = (load_backbone(folder, attention=attention) for attention in ("eager", "sdpa"))
    assert eager.unwrapped.config._attn_implementation == "eager"
    assert sdpa.unwrapped.config._attn_implementation == "sdpa"
    assert (embed(eager, EXAMPLES) - embed(sdpa, EXAMPLES)).abs().max() <= TOLERANCE


def test_a_pooling_it_does_not_have_is_refused(backbone):
    other = "last" if "native" in backbone.poolings else "native"
    with pytest.raises(ConfigError, match=f"pooling must be one of {', '.join(backbone.poolings)}, got '{other}'"):
        Embedder(backbone, EmbedderSpec(pooling=other), path="memory", device="cpu")


# images of every kind


def encoded(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def rotated() -> tuple[bytes, Image.Image]:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turn clockwise to see it
    image = picture(60, 90)
    return encoded(image, exif=exif), image.transpose(Image.Transpose.ROTATE_270)


def palette() -> tuple[bytes, Image.Image]:
    image = picture(60, 90).quantize(8)
    return encoded(image), image.convert("RGB")


def palette_with_transparency() -> tuple[bytes, Image.Image]:
    image = picture(60, 90).quantize(8)
    indices = np.asarray(image)
    on_white = np.asarray(image.convert("RGB")).copy()
    on_white[indices == 3] = 255
    return encoded(image, transparency=3), Image.fromarray(on_white)


def sixteen_bits() -> tuple[bytes, Image.Image]:
    grey = np.asarray(picture(60, 90))[:, :, 0]
    return encoded(Image.fromarray(grey.astype(np.uint16) * 257)), Image.fromarray(np.dstack([grey] * 3))


def grey() -> tuple[bytes, Image.Image]:
    values = np.asarray(picture(60, 90))[:, :, 0]
    return encoded(Image.fromarray(values)), Image.fromarray(np.dstack([values] * 3))


def cmyk() -> tuple[bytes, Image.Image]:
    stream = io.BytesIO()
    picture(60, 90).convert("CMYK").save(stream, "TIFF")
    return stream.getvalue(), picture(60, 90)


@pytest.mark.parametrize("kind", [rotated, palette, palette_with_transparency, sixteen_bits, grey, cmyk])
def test_an_image_is_embedded_as_it_looks(
    embedder: Embedder, tmp_path: Path, kind: Callable[[], tuple[bytes, Image.Image]]
):
    stored, seen = kind()
    file = tmp_path / "image"
    file.write_bytes(stored)
    with Image.open(file) as raw:
        plain = Image.fromarray(np.asarray(raw.convert("RGB")))  # without its metadata
    a, b, other = embedder.encode([Item(image=file), Item(image=seen), Item(image=picture(60, 90, seed=9))])
    assert np.abs(a - b).max() <= 1e-6
    assert np.abs(a - other).max() > 1e-4
    if kind in (rotated, palette_with_transparency):  # these would be wrong if they were only converted
        assert np.abs(a - embedder.encode([Item(image=plain)])[0]).max() > 1e-4


@pytest.mark.parametrize("size", [(1, 1), (150, 1), (1, 150), (1, 600), (3, 400)])
def test_tiny_and_thin_images_are_embedded(embedder, size):
    item = Item(text="thin", image=picture(*size))
    alone, beside = embedder.encode([item])[0], embedder.encode([Item(image=picture()), item, Item(text="x")])[1]
    assert abs(np.linalg.norm(alone) - 1) < 1e-5
    assert np.abs(alone - beside).max() <= TOLERANCE


# the limit on pixels


def test_a_limit_outlives_saving_or_is_refused(own, family, tmp_path):
    if not family.limits:
        with pytest.raises(ConfigError, match="max_pixels"):
            own.set_max_pixels(1_000_000)
        return
    large = [example("", picture(400, 300))]
    unlimited = embed(own, large)
    own.set_max_pixels(family.limits[0])
    limited = embed(own, large)
    own.model.save_pretrained(tmp_path)
    own.processor.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert again.processor_state() == own.processor_state()
    assert torch.equal(embed(again, large), limited)
    assert (limited - unlimited).abs().max() > 1e-4


# text


def test_what_lies_beyond_the_limit_of_tokens_does_not_count(backbone):
    text = "a red square of some size " * 40
    for pooling in backbone.poolings:
        cut, longer, other = (
            embed(backbone, [example(one)], pooling, max_tokens=limit)
            for one, limit in ((text, 5), (text + " and a blue one", 5), (text, 6))
        )
        assert torch.equal(cut, longer)
        assert (cut - other).abs().max() > 1e-4


@pytest.mark.parametrize("image", [None, picture()], ids=["text", "both"])
def test_special_tokens_in_a_text_do_nothing(backbone, family, image):
    tokens = backbone.special_tokens if family.has_tokens else family.special_tokens
    assert tokens
    for token in tokens:
        attacks = [f"red {token} square", f"red {token[:3]}{token}{token[3:]} square"]
        harmless = ["red   square", f"red {token[:3]} {token[3:]} square"]
        found = embed(backbone, [example(text, image) for text in attacks])
        expected = embed(backbone, [example(text, image) for text in harmless])
        assert (found - expected).abs().max() <= 1e-6, token


def test_half_a_character_does_not_stop_a_batch(backbone):
    assert torch.equal(embed(backbone, [example("a \ud83d b")]), embed(backbone, [example("a ? b")]))


# adapters


def test_lora_reaches_the_projections_of_the_language_tower_and_nothing_else(backbone, family):
    linear = [name for name, module in backbone.model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert {name for name in linear if re.fullmatch(backbone.lora_targets, name)} == family.lora
    assert len(linear) >= len(family.lora) + 8  # there was something to leave out


def adapted(own: Backbone) -> dict[str, torch.nn.Parameter]:
    """Put adapters of rank 2 on the model; their trainable parameters, none of them zero."""
    torch.manual_seed(0)
    own.model = get_peft_model(own.model, LoraConfig(r=2, target_modules=own.lora_targets))
    trainable = {name: one for name, one in own.model.named_parameters() if one.requires_grad}
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.normal_(std=0.1)
    return trainable


def gradients(backbone: Backbone, trainable: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    batch = backbone.collate(EXAMPLES, max_tokens=512)
    torch.manual_seed(1)  # of the dropout, if there is any
    pooled = backbone.forward(batch, backbone.poolings[0])
    (pooled * torch.randn_like(pooled)).sum().backward()
    found = {name: one.grad for name, one in trainable.items() if one.grad is not None}
    backbone.model.zero_grad()
    return found


def test_adapters_change_the_vectors_and_every_one_of_them_learns(own, family):
    before = embed(own, EXAMPLES)
    trainable = adapted(own)
    assert len(trainable) == 2 * len(family.lora)
    assert (embed(own, EXAMPLES) - before).abs().amax(dim=1).min() > 1e-4
    found = gradients(own, trainable)
    assert set(found) == set(trainable)
    assert min(gradient.abs().max() for gradient in found.values()) > 0


def test_gradient_checkpointing_changes_no_gradient(own):
    trainable = adapted(own)
    own.model.train()  # layers are only checkpointed in training
    expected = gradients(own, trainable)
    own.unwrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert own.unwrapped.is_gradient_checkpointing
    found = gradients(own, trainable)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name


# images


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (90, 161)])
def test_images_wait_as_bytes_and_are_read_as_their_processor_makes_them(own, family, size):
    if family.limits:
        own.set_max_pixels(family.limits[-1])
    image = picture(*size, seed=1)
    expected = own.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    batch = own.collate([example("", image)], max_tokens=9)
    assert batch["pixel_values"].dtype == family.pixels
    assert torch.equal(own.unpacked(batch)["pixel_values"], expected)
    assert torch.equal(own.unpacked(own.unpacked(batch))["pixel_values"], expected), "numbers stay as they are"


def test_features_in_place_of_pixels_give_the_same_to_the_bit(backbone):
    batch = backbone.collate(EXAMPLES, max_tokens=512)
    before = dict(batch)
    with torch.inference_mode():
        expected = backbone.forward(batch, backbone.poolings[0])
        found = backbone.with_features(batch)
        assert torch.equal(backbone.forward(found, backbone.poolings[0]), expected)
        assert torch.equal(backbone.forward(batch, backbone.poolings[0]), expected), "and pixels do as before"
    assert batch.keys() == before.keys()
    assert ("pixel_values" in found) == (not backbone.takes_features)
    texts = backbone.collate(EXAMPLES[:1], max_tokens=512)
    assert backbone.with_features(texts).keys() == texts.keys()


def test_features_depend_on_all_the_image_parameters_and_on_no_other(own):
    named = {id(weight) for weight in own.image_parameters}
    batch = own.collate(EXAMPLES, max_tokens=512)
    made = [value for key, value in own.with_features(batch).items() if key not in batch]
    sum(value.float().square().sum() for value in made).backward()
    reached = {id(weight) for weight in own.unwrapped.parameters() if weight.grad is not None}
    assert reached <= named
    # without a path to the features: the last layers of towers that are read before them, and their last norm
    unread = {name for name, weight in own.unwrapped.named_parameters() if id(weight) in named - reached}
    assert all("layer" in name or "norm" in name or "cls" in name.lower() for name in unread), unread
    assert not own.has_frozen_images
    adapted(own)
    assert own.has_frozen_images == (not any(weight.requires_grad for weight in own.image_parameters))


# loading and saving


def test_a_saved_backbone_loads_by_the_auto_classes_with_equal_vectors(embedder, family, tmp_path):
    items = [Item(text=one.text, image=one.image) for one in EXAMPLES]
    embedder.save_pretrained(tmp_path)
    again = Embedder.from_pretrained(tmp_path, device="cpu")
    assert np.array_equal(again.encode(items), embedder.encode(items))
    if family.auto_model is None:
        return
    model = getattr(transformers, family.auto_model).from_pretrained(tmp_path)
    assert type(model) is family.backbone.model_class
    expected = embedder.backbone.model.state_dict()
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    processor = embedder.backbone.processor
    text, image = "a red square, then", picture(90, 60)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    pixels, expected_pixels = (
        one(images=[image], return_tensors="pt")["pixel_values"]
        for one in (transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil"), processor.image_processor)
    )
    assert torch.equal(pixels, expected_pixels)


def test_a_loaded_model_is_in_eval_mode_with_the_type_asked_for(folder):
    model = load_backbone(folder, dtype=torch.float64).model
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_half_precision_gives_nearly_the_same_vectors(folder, backbone):
    half = load_backbone(folder, dtype=torch.bfloat16)
    half.model.load_state_dict(backbone.model.state_dict())  # with its uneven norm
    found = embed(half, EXAMPLES)
    assert F.cosine_similarity(found.float(), embed(backbone, EXAMPLES)).min() > 0.99


def test_a_skeleton_has_the_names_and_shapes_and_no_weights(folder, backbone):
    skeleton = load_skeleton(folder)
    shapes = {name: parameter.shape for name, parameter in backbone.model.named_parameters()}
    assert {name: parameter.shape for name, parameter in skeleton.model.named_parameters()} == shapes
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert skeleton.dim == backbone.dim
    assert skeleton.image_tokens() == backbone.image_tokens()
    assert (skeleton.image_tokens() is None) == (skeleton.language_model is None)


def damaged_files() -> list[object]:
    return [(name, file) for name, family in FAMILIES.items() for file in family.files]


@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize(("name", "file"), damaged_files(), scope="module")
def test_an_incomplete_or_damaged_checkpoint_is_one_clear_line(folder, tmp_path, file, damage):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    content = (copy / file).read_bytes()
    (copy / file).unlink()
    if damage == "truncated":
        (copy / file).write_bytes(content[: len(content) // 2])
    message = "no model checkpoint can be loaded" if file == "config.json" else "incomplete or damaged"
    with pytest.raises(ArtifactError, match=message) as error:
        load_backbone(copy)
    assert str(copy) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_weights_are_not_replaced_by_random_ones(folder, family, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    names = sorted(name for name in tensors if not name.startswith(family.backbone.unused_weights))
    for dropped in (names[0], names[len(names) // 2], names[-1]):
        kept = {name: tensor for name, tensor in tensors.items() if name != dropped}
        save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ArtifactError, match=r"1 weights are missing, \S+ first"):
            load_backbone(copy)


def test_another_model_class_is_refused(family):
    other = family.backbone(model=torch.nn.Linear(2, 2), processor=None)
    with pytest.raises(ArtifactError, match=f"expected a {family.backbone.model_class.__name__}, got Linear"):
        _ = other.unwrapped


def test_processor_state_says_nothing_about_where_it_lies(folder, tmp_path, backbone):
    backbone.collate(EXAMPLES, max_tokens=7)  # calling a tokenizer sets padding and truncation in it
    state = backbone.processor_state()
    assert load_backbone(shutil.copytree(folder, tmp_path / "copy")).processor_state() == state
    assert json.loads(json.dumps(state)) == state
    assert str(folder) not in json.dumps(state)


def test_an_unknown_family_lists_the_known(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ArtifactError, match="model type 'bert' is not supported; known: ") as error:
        load_backbone(copy)
    known = str(error.value).split("known: ")[1].split(", ")
    assert known == sorted(known)
    assert set(known) >= {kind for one in FAMILIES.values() for kind in one.backbone.model_types}


def test_a_backbone_is_its_model_and_its_processor(backbone):
    assert [field.name for field in fields(backbone)] == ["model", "processor"]
