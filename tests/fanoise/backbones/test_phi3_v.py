"""Phi-3.5-vision: the tiles, the arrangement of their features, the rope, the names of tensors, the tokens."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from fanoise.backbones import load_backbone
from fanoise.backbones.phi3_v import Phi3VImageProcessor
from fanoise.backbones.phi3_v_model import Phi3VConfig, Phi3VForCausalLM, RowRotaryEmbedding
from fanoise.errors import ArtifactError, ConfigError
from tests.fanoise.backbones.examples import count, embed, example, ids, picture
from tests.fanoise.backbones.tiny_phi3_v import GRID, TILE

WHITE = (255, 255, 255)


@pytest.fixture(scope="module")
def name() -> str:
    return "phi3_v"


# tiles


@pytest.mark.parametrize(
    ("num_crops", "size", "tiles", "content"),  # rows and columns of tiles; width and height of the image on them
    [
        (4, (336, 336), (2, 2), (672, 672)),
        (4, (5000, 5000), (2, 2), (672, 672)),
        (4, (1, 1), (2, 2), (672, 672)),
        (4, (640, 480), (2, 2), (672, 504)),  # 3 columns of 4 : 3 would need 3 rows
        (4, (1000, 500), (1, 2), (672, 336)),
        (4, (500, 1000), (2, 1), (336, 672)),
        (4, (900, 200), (1, 4), (1344, 298)),
        (4, (150, 1), (1, 4), (1344, 8)),
        (4, (1, 150), (4, 1), (8, 1344)),
        (1, (640, 480), (1, 1), (336, 252)),
        (16, (1344, 1344), (4, 4), (1344, 1344)),
        (16, (640, 480), (3, 4), (1344, 1008)),
        (16, (1000, 90), (1, 11), (3696, 332)),
        (16, (90, 1000), (11, 1), (332, 3696)),
    ],
)
def test_an_image_fills_the_longer_side_of_as_many_tiles_as_there_may_be(num_crops, size, tiles, content):
    black = Image.new("RGB", size)
    canvas = np.asarray(Phi3VImageProcessor(num_crops=num_crops).fit(black))
    assert canvas.shape == (336 * tiles[0], 336 * tiles[1], 3)
    dark = (canvas == 0).all(axis=2)
    assert ((canvas == 255).all(axis=2) == ~dark).all()
    (top, bottom), (left, right) = ((found.min(), found.max()) for found in dark.nonzero())
    assert (right - left + 1, bottom - top + 1) == content
    assert (left, top) == ((canvas.shape[1] - content[0]) // 2, (canvas.shape[0] - content[1]) // 2)


@pytest.mark.parametrize("num_crops", [1, 2, 3, 5, 9, 16])
def test_no_other_number_of_columns_would_fit(num_crops):
    images = Phi3VImageProcessor(num_crops=num_crops, tile_size=8)
    for width, height in np.random.default_rng(0).integers(1, 100, (60, 2)).tolist():
        longer, shorter = max(width, height), min(width, height)
        fitting = [columns for columns in range(1, 17) if columns * math.ceil(columns * shorter / longer) <= num_crops]
        assert max(images.fit(picture(width, height)).size) == 8 * max(fitting), (width, height)


def test_an_upright_image_is_treated_like_a_lying_one():
    images = Phi3VImageProcessor(num_crops=6, tile_size=TILE)
    lying = picture(90, 50)
    upright = Image.fromarray(np.asarray(lying).transpose(1, 0, 2).copy())
    assert (np.asarray(images.fit(upright)) == np.asarray(images.fit(lying)).transpose(1, 0, 2)).all()


def test_the_image_is_resized_bilinearly_and_padded_with_white():
    fitted = Phi3VImageProcessor(num_crops=2, tile_size=8).fit(picture(30, 10))
    assert fitted.size == (16, 8)
    middle = picture(30, 10).resize((16, 5), Image.Resampling.BILINEAR)
    assert (np.asarray(fitted)[1:6] == np.asarray(middle)).all()
    assert (np.asarray(fitted)[[0, 6, 7]] == 255).all()


def cubic(x: float, a: float = -0.75) -> float:
    """Keys' kernel (1981)."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_tiles_and_overview_hold_the_normalised_pixels():
    side = 4
    images = Phi3VImageProcessor(num_crops=6, tile_size=side, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    picked = picture(12, 8)
    tiles, (height, width) = images.tile(picked)
    assert (height, width) == (8, 12)
    pixels = np.asarray(picked, dtype=np.float64) / 255
    pixels = (pixels - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    assert tiles.shape == (1 + 6, 3, side, side)
    for row in range(8):
        for column in range(12):
            number = 1 + row // side * 3 + column // side
            found = tiles[number, :, row % side, column % side].numpy()
            assert np.allclose(found, pixels[row, column], atol=1e-6)
    for row in range(side):
        for column in range(side):
            y, x = (row + 0.5) * 2 - 0.5, (column + 0.5) * 3 - 0.5
            expected = np.zeros(3)
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    at = pixels[min(max(i, 0), 7), min(max(j, 0), 11)]
                    expected += cubic(y - i) * cubic(x - j) * at
            assert np.allclose(tiles[0, :, row, column].numpy(), expected, atol=1e-5)


def test_the_pixels_are_normalised_as_published():
    tiles, _ = Phi3VImageProcessor(num_crops=1).tile(Image.new("RGB", (9, 9), WHITE))
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    assert np.allclose(tiles.amax(dim=(0, 2, 3)).numpy(), (1 - mean) / std, atol=1e-5)


# what an image costs


@pytest.mark.parametrize(
    ("num_crops", "size", "expected"),
    [
        (4, (500, 500), 757),
        (16, (500, 500), 2509),
        (4, (900, 200), 745),
        (4, (200, 900), 781),
        (1, (50, 50), 313),
        (4, (1280, 640), 457),  # this and the next are also in the tests of transformers.js
        (16, (1280, 640), 2353),
    ],
)
def test_the_published_tiles_cost_as_many_tokens_as_documented(num_crops, size, expected):
    images = Phi3VImageProcessor(num_crops=num_crops)
    batch = images([picture(*size)])
    assert images.count_tokens(batch["image_sizes"][0].tolist()) == expected


@pytest.mark.parametrize("size", [(100, 100), (300, 90), (90, 300), (1, 150), (57, 40)])
@pytest.mark.parametrize("tiles", [1, 2, 4, 7])
def test_there_are_as_many_tokens_as_embeddings(own, size, tiles):
    own.set_max_pixels(tiles * TILE * TILE)
    batch = own.collate([example("", picture(*size))], max_tokens=9)
    rows, columns = (batch["image_sizes"][0] // TILE).tolist()
    assert len(batch["pixel_values"]) == 1 + rows * columns <= 1 + tiles
    features = own.model.model.vision_embed_tokens(batch["pixel_values"], batch["image_sizes"])
    expected = rows * GRID * (columns * GRID + 1) + 1 + GRID * (GRID + 1)
    (row,) = ids(own, example("", picture(*size)))
    assert len(features) == expected == count(own, row, "<|image|>")
    if size == (100, 100):
        assert own.image_tokens() == expected + 1, "with the space that begins the text behind it"


@pytest.mark.parametrize(("tiles", "num_crops"), [(1, 1), (1.9, 1), (4, 4), (16.5, 16)])
def test_the_limit_is_the_number_of_crops(own, tiles, num_crops):
    before = own.processor_state()
    own.set_max_pixels(int(tiles * TILE * TILE))
    assert own.processor.image_processor.num_crops == num_crops
    assert (own.processor_state() == before) == (num_crops == 4)


def test_less_than_a_tile_is_refused(own):
    with pytest.raises(ConfigError, match=rf"max_pixels must be at least {TILE * TILE} .*got {TILE * TILE - 1}"):
        own.set_max_pixels(TILE * TILE - 1)
    assert own.processor.image_processor.num_crops == 4


# the arrangement of the features


def test_the_features_are_arranged_as_by_hand(backbone):
    embedding = backbone.model.model.vision_embed_tokens
    side, channels = 6, embedding.sub_GN.shape[-1] // 4  # patches along the side of a tile
    layouts = [(2, 3), (1, 1), (3, 1)]
    total = sum(1 + rows * columns for rows, columns in layouts)
    patches = torch.randn(total, side * side, channels, generator=torch.Generator().manual_seed(0))

    def token(tile: torch.Tensor, row: int, column: int) -> torch.Tensor:
        corners = [(2 * row, 2 * column), (2 * row, 2 * column + 1), (2 * row + 1, 2 * column)]
        corners.append((2 * row + 1, 2 * column + 1))
        return torch.cat([tile[y * side + x] for y, x in corners])

    expected, start, half = [], 0, side // 2
    for rows, columns in layouts:
        for row in range(rows * half):
            for column in range(columns * half):
                tile = patches[start + 1 + row // half * columns + column // half]
                expected.append(token(tile, row % half, column % half))
            expected.append(embedding.sub_GN[0, 0, 0])
        expected.append(embedding.glb_GN[0, 0])
        for row in range(half):
            expected += [token(patches[start], row, column) for column in range(half)]
            expected.append(embedding.sub_GN[0, 0, 0])
        start += 1 + rows * columns
    assert embedding.sub_GN.abs().min() > 0 < embedding.glb_GN.abs().min()
    assert torch.equal(embedding.arrange(patches, layouts), torch.stack(expected))


def test_the_features_are_those_of_the_last_layer_but_one_without_the_class_token(own):
    embedding = own.model.model.vision_embed_tokens
    tower = embedding.img_processor["vision_model"]
    batch = own.collate([example("", picture(60, 60))], max_tokens=9)
    seen = {}
    hook = tower.encoder.layers[-1].register_forward_pre_hook(lambda _, args: seen.update(states=args[0]))
    with torch.inference_mode():
        found = embedding(batch["pixel_values"], batch["image_sizes"])
        hook.remove()
        layouts = (batch["image_sizes"] // TILE).tolist()
        arranged = embedding.arrange(seen["states"][:, 1:], layouts)
        first, _, second = embedding.img_projection
        hidden = arranged @ first.weight.T + first.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        assert torch.allclose(found, hidden @ second.weight.T + second.bias, atol=1e-6)


def test_images_come_where_their_tokens_are_and_text_keeps_its_embeddings(backbone):
    examples = [example("red"), example("blue", picture(60, 60)), example("", picture(90, 300))]
    batch = backbone.collate(examples, max_tokens=9)
    model = backbone.model.model
    with torch.inference_mode():
        embedded = model.embed(batch["input_ids"], batch["pixel_values"], batch["image_sizes"])
        features = model.vision_embed_tokens(batch["pixel_values"], batch["image_sizes"])
        is_image = batch["input_ids"] == model.config.image_token_id
        assert torch.equal(embedded[is_image], features)
        assert torch.equal(embedded[~is_image], model.embed_tokens(batch["input_ids"])[~is_image])
    with pytest.raises(ValueError, match=r"\d+ image tokens for \d+ image embeddings"):
        model.embed(batch["input_ids"][:2], batch["pixel_values"], batch["image_sizes"])


# the language tower


def test_a_row_is_what_transformers_phi_3_makes_of_it(backbone):
    config = backbone.model.config
    upstream = transformers.Phi3Model(transformers.Phi3Config(**{**config.to_dict(), "model_type": "phi3"})).eval()
    left_out = upstream.load_state_dict(backbone.model.model.state_dict(), strict=False)
    assert left_out.missing_keys == []
    examples = [example("a red square", picture(90, 60)), example("blue " * 300), example("green")]
    lengths = [len(row) for row in ids(backbone, *examples)]
    limit = config.original_max_position_embeddings
    assert lengths[0] < limit < lengths[1]
    batch = backbone.collate(examples, max_tokens=512)
    with torch.inference_mode():
        found = backbone.hidden_states(batch)
        embedded = backbone.model.model.embed(batch["input_ids"], batch["pixel_values"], batch["image_sizes"])
        for row, length in enumerate(lengths):
            alone = upstream(inputs_embeds=embedded[row : row + 1, -length:]).last_hidden_state
            assert torch.allclose(found[row, -length:], alone[0], atol=2e-5)


def test_each_row_has_the_rope_factors_for_its_own_length(backbone):
    config = backbone.model.config
    rope, limit = config.rope_parameters, config.original_max_position_embeddings
    positions = torch.stack([torch.arange(limit + 1), torch.arange(limit + 1).clamp_max(limit - 1)])
    rotary = RowRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), positions)
    scale = math.sqrt(1 + math.log(config.max_position_embeddings / limit) / math.log(limit))
    for row, factors in enumerate((rope["long_factor"], rope["short_factor"])):
        for index, factor in enumerate(factors):
            angle = positions[row].double() / (factor * 10_000 ** (2 * index / (2 * len(factors))))
            for half in (index, index + len(factors)):
                assert torch.allclose(cos[row, :, half].double(), angle.cos() * scale, atol=1e-4)
                assert torch.allclose(sin[row, :, half].double(), angle.sin() * scale, atol=1e-4)
        upstream = Phi3RotaryEmbedding(config)
        for found, expected in zip((cos, sin), upstream(torch.zeros(1), positions[row : row + 1]), strict=True):
            assert torch.allclose(found[row], expected[0], atol=1e-6)


def test_a_short_row_does_not_depend_on_a_long_one_beside_it(backbone):
    long, short = example("blue " * 300, picture(60, 60)), example("a red square", picture(90, 60))
    limit = backbone.model.config.original_max_position_embeddings
    assert [len(row) > limit for row in ids(backbone, long, short)] == [True, False]
    alone = torch.cat([embed(backbone, [one]) for one in (long, short)])
    assert (embed(backbone, [long, short]) - alone).abs().max() <= 1e-5


def test_rope_without_scaling_is_upstreams():
    config = Phi3VConfig(hidden_size=32, num_attention_heads=2, pad_token_id=0)
    positions = torch.arange(9)[None]
    found, expected = (one(config)(torch.zeros(1), positions) for one in (RowRotaryEmbedding, Phi3RotaryEmbedding))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_every_part_learns(own):
    batch = own.collate([example("red", picture(60, 60)), example("blue")], max_tokens=9)
    own.model.train()
    own.forward(batch, "last").square().sum().backward()
    unused = ("lm_head", "post_layernorm", "encoder.layers.2")  # CLIP's last layer is not looked at
    for name, parameter in own.model.named_parameters():
        assert (parameter.grad is None) == any(part in name for part in unused), name
    checkpointed = {name: parameter.grad.clone() for name, parameter in own.model.named_parameters() if "GN" in name}
    own.model.zero_grad()
    own.model.gradient_checkpointing_enable({"use_reentrant": False})
    own.forward(batch, "last").square().sum().backward()
    for name, gradient in checkpointed.items():
        assert torch.allclose(own.model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-7)


# the checkpoint


def original_names(layers: int, vision_layers: int) -> set[str]:
    """As in the weight maps of the published checkpoints."""
    names = {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}
    for layer in range(layers):
        parts = ("input_layernorm", "post_attention_layernorm", "self_attn.qkv_proj", "self_attn.o_proj")
        parts += ("mlp.gate_up_proj", "mlp.down_proj")
        names |= {f"model.layers.{layer}.{part}.weight" for part in parts}
    image = "model.vision_embed_tokens"
    names |= {f"{image}.sub_GN", f"{image}.glb_GN"}
    vision = f"{image}.img_processor.vision_model"
    names |= {f"{vision}.embeddings.{part}" for part in ("class_embedding", "patch_embedding.weight")}
    names.add(f"{vision}.embeddings.position_embedding.weight")
    biased = [f"{image}.img_projection.0", f"{image}.img_projection.2"]
    biased += [f"{vision}.pre_layrnorm", f"{vision}.post_layernorm"]
    parts = (*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
    for layer in range(vision_layers):
        biased += [f"{vision}.encoder.layers.{layer}.{part}" for part in (*parts, "layer_norm1", "layer_norm2")]
    return names | {f"{name}.{kind}" for name in biased for kind in ("weight", "bias")}


def test_tensors_have_their_original_names_before_and_after_loading(folder, own, tmp_path):
    own.model.save_pretrained(tmp_path)
    for where in (folder, tmp_path):
        tensors = load_file(where / "model.safetensors")
        assert set(tensors) == original_names(layers=2, vision_layers=3)
    assert tensors["model.vision_embed_tokens.sub_GN"].shape == (1, 1, 1, 4 * 32)
    assert tensors["model.vision_embed_tokens.glb_GN"].shape == (1, 1, 4 * 32)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Phi3VForCausalLM"]


def test_a_second_copy_of_the_token_embedding_is_passed_over(folder, backbone, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.vision_embed_tokens.wte.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    model, report = Phi3VForCausalLM.from_pretrained(copy, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    assert set(model.state_dict()) == set(backbone.model.state_dict())
    assert torch.equal(model.model.embed_tokens.weight, tensors["model.embed_tokens.weight"])


def test_the_published_settings_are_read_and_the_unpublished_filled_in():
    published = {
        "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
        "img_processor": {"name": "clip_vision_model", "model_name": "openai/clip-vit-large-patch14-336"},
        "embd_layer": {"embedding_cls": "image", "hd_transform_order": "sub_glb"},
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10_000.0,
        "rope_scaling": {"type": "su", "short_factor": [1.08] * 48, "long_factor": [64.0] * 48},
    }
    config = Phi3VConfig(**published)
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["long_factor"] == [64.0] * 48
    assert published["rope_scaling"].keys() == {"type", "short_factor", "long_factor"}
    assert RowRotaryEmbedding(config).attention_scaling == math.sqrt(1 + math.log(32) / math.log(4096))
    vision = config.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1024, 24, 16)
    assert (vision.image_size, vision.patch_size, vision.hidden_act) == (336, 14, "quick_gelu")
    assert config.image_token_id == 32_044
    again = Phi3VConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert "auto_map" not in again.to_dict()


def test_another_arrangement_of_features_is_refused(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "embd_layer": {"hd_transform_order": "glb_sub"}}))
    with pytest.raises(ArtifactError, match="hd_transform_order must be 'sub_glb', got 'glb_sub'"):
        load_backbone(copy)


@pytest.mark.parametrize(("setting", "value"), [("num_crops", 2), ("image_mean", [0.5] * 3), ("image_std", [0.5] * 3)])
def test_the_state_names_what_changes_the_pixels(folder, backbone, tmp_path, setting, value):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    content = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**content, setting: value}))
    other = load_backbone(copy)
    pixels, expected = (
        one.collate([example("", picture())], max_tokens=9)["pixel_values"] for one in (other, backbone)
    )
    assert pixels.shape != expected.shape or (pixels - expected).abs().max() > 0.01
    assert other.processor_state() != backbone.processor_state()


# tokens


def test_rows_are_padded_on_the_left(backbone):
    mask = backbone.collate([example("red"), example("blue", picture())], max_tokens=9)["attention_mask"]
    assert mask[:, -1].all()
    assert (mask.diff(dim=1) >= 0).all()
    assert mask[0].sum() < mask[1].sum() == mask.shape[1]


def test_what_is_before_and_after_an_image_is_tokenized_by_itself(backbone):
    tokenizer = backbone.processor.tokenizer
    (row,) = ids(backbone, example("red", picture(60, 60)))
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    before, after = row[: row.index(image)], row[len(row) - row[::-1].index(image) :]
    assert before == tokenizer("Find: ")["input_ids"]
    assert after == tokenizer("red<|endoftext|>")["input_ids"]
    assert before[0] == after[0] == tokenizer.convert_tokens_to_ids("<s>")


@pytest.mark.parametrize("tag", ["<|image_1|>", "<|image_2|>", "<|image_17|>", "<|image_<|image_1|>1|>", "<|image|>"])
@pytest.mark.parametrize("image", [None, picture()], ids=["text", "both"])
def test_an_image_tag_of_any_number_in_a_text_is_no_image(backbone, tag, image):
    special = set(backbone.processor.tokenizer.all_special_ids)
    attacked, plain = ids(backbone, example(f"red {tag} square", image), example("red square", image))
    assert [i for i in attacked if i in special] == [i for i in plain if i in special]


def test_a_prompt_with_an_image_tag_is_refused(backbone):
    prompted = type(example())(prompt="<|image_1|> Find: ", text="red", image=None)
    with pytest.raises(ConfigError, match=r"a batch of 0 images has 1 times <\|image_1\|>; leave it out"):
        backbone.collate([prompted], max_tokens=9)
