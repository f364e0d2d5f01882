"""LLaVA-NeXT: which canvas an image lies on, what that costs in tokens, and that model and processor agree on it."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from fanoise.backbones import Backbone, load_backbone
from fanoise.errors import ArtifactError, ConfigError
from tests.fanoise.backbones import tiny_llava_next
from tests.fanoise.backbones.examples import count, embed, example, ids, picture
from tests.fanoise.backbones.tiny_llava_next import GRID, PINPOINTS, SPECIAL, TILE


@pytest.fixture(scope="module")
def name() -> str:
    return "llava_next"


@pytest.fixture(scope="module")
def published_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles as published, 336 × 336 pixels and 24 × 24 tokens, under the narrow model."""
    folder = tmp_path_factory.mktemp("llava_next_336")
    tiny_llava_next.save_with(folder, {"model_type": "llama"}, tile=336, grid=24)
    return folder


def tokens(backbone: Backbone, width: int, height: int) -> int:
    (row,) = ids(backbone, example("", picture(width, height)))
    return count(backbone, row, "<image>")


# what an image costs


@pytest.mark.parametrize(
    ("limit", "size", "expected"),
    [
        (336 * 336, (336, 336), 576 + 24 * 25),  # low resolution: 1176
        (336 * 336, (1000, 1000), 576 + 24 * 25),
        (336 * 336, (336, 224), 576 + 16 * 25),  # 24 × 16 tokens on the canvas, the margin is cut off
        (336 * 336, (112, 336), 576 + 24 * 9),
        (336 * 336, (1, 336), 576 + 24 * 1),  # less than a column is left: newlines only
        (1344 * 1344, (1344, 1344), 576 + 48 * 49),  # high resolution: 2928
        (1344 * 1344, (20, 20), 576 + 24 * 25),  # no larger canvas than the image fills
        (1344 * 1344, (1344, 448), 576 + 24 * 73),
        (1344 * 1344, (448, 1344), 576 + 72 * 25),
        (336 * 672, (1344, 1344), 576 + 24 * 25),  # fits a canvas of two tiles no better than one of one
        (336 * 672, (1344, 672), 576 + 24 * 49),
    ],
)
def test_the_published_tiles_cost_as_many_tokens_as_documented(published_tiles, limit, size, expected):
    backbone = load_backbone(published_tiles)
    backbone.set_max_pixels(limit)
    assert tokens(backbone, *size) == expected
    assert torch.isfinite(embed(backbone, [example("", picture(*size))])).all()  # as many features as tokens


def test_the_largest_of_all_images_is_that_of_the_docstring(published_tiles):
    backbone = load_backbone(published_tiles)
    assert max(tokens(backbone, *size) for size in [(672, 672), (1008, 336), (336, 1008), (1500, 1400)]) == 2928
    assert backbone.image_tokens() == 2928
    backbone.set_max_pixels(336 * 336)
    assert backbone.image_tokens() == 1176


# the canvas


@pytest.mark.parametrize(
    ("tiles", "kept"),
    [
        (1, [[1, 1]]),
        (1.9, [[1, 1]]),
        (2, [[1, 2], [2, 1]]),
        (3, [[1, 2], [2, 1], [3, 1], [1, 3]]),
        (4, [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]),
        (99, [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]),
    ],
)
def test_the_limit_keeps_the_canvases_within_it(own, tiles, kept):
    before = own.processor_state()
    own.set_max_pixels(int(tiles * TILE * TILE))
    assert (own.processor_state() == before) == (tiles >= 4)
    expected = [[rows * TILE, columns * TILE] for rows, columns in kept]
    assert own.processor.image_processor.image_grid_pinpoints == expected
    assert own.model.config.image_grid_pinpoints == expected


def test_a_raised_limit_brings_the_canvases_back(own):
    before = embed(own, [example("", picture(400, 300))])
    own.set_max_pixels(TILE * TILE)
    assert (embed(own, [example("", picture(400, 300))]) - before).abs().max() > 1e-4
    own.set_max_pixels(4 * TILE * TILE)
    assert own.processor.image_processor.image_grid_pinpoints == PINPOINTS
    assert torch.equal(embed(own, [example("", picture(400, 300))]), before)


def test_less_than_a_tile_is_refused(own):
    with pytest.raises(ConfigError, match=rf"max_pixels must be at least {TILE * TILE} .*got {TILE * TILE - 1}"):
        own.set_max_pixels(TILE * TILE - 1)
    assert own.processor.image_processor.image_grid_pinpoints == PINPOINTS


def test_a_single_tile_is_fed_as_overview_and_as_canvas(own):
    own.set_max_pixels(TILE * TILE)
    batches = (own.collate([example("", picture(side, 120))], max_tokens=9) for side in (120, 180))
    square, wide = (own.unpacked(batch)["pixel_values"] for batch in batches)
    assert square.shape == wide.shape == (1, 2, 3, TILE, TILE)
    assert torch.equal(square[0, 0], square[0, 1])
    assert (wide[0, 0] - wide[0, 1]).abs().max() > 0.1  # squeezed, and with its proportions kept


def test_rows_with_different_numbers_of_tiles_do_not_touch_each_other(backbone):
    sizes = [(TILE, TILE), (3 * TILE, TILE), (2 * TILE, 2 * TILE), (TILE, 3 * TILE)]
    examples = [example("red", picture(*size, seed=seed)) for seed, size in enumerate(sizes)] + [example("only text")]
    tiles = [2, 3, 4, 3]
    assert [tokens(backbone, *size) for size in sizes] == [
        GRID**2 + rows * GRID * (columns * GRID + 1) for rows, columns in ((1, 1), (1, 3), (2, 2), (3, 1))
    ]
    batch = backbone.collate(examples, max_tokens=9)
    assert batch["pixel_values"].shape[:2] == (4, 1 + max(tiles))
    alone = torch.cat([embed(backbone, [one]) for one in examples])
    assert (embed(backbone, examples) - alone).abs().max() <= 1e-5


def test_the_features_of_an_image_are_overview_then_rows_of_the_canvas_with_newlines(backbone):
    picked = picture(2 * TILE, TILE, seed=3)
    batch = backbone.unpacked(backbone.collate([example("", picked)], max_tokens=9))
    model = backbone.model.model
    with torch.inference_mode():
        states = model.vision_tower(batch["pixel_values"][0], output_hidden_states=True).hidden_states[-2][:, 1:]
        overview, left, right = model.multi_modal_projector(states)
        expected = list(overview)
        for row in range(GRID):
            for tile in (left, right):
                expected += [tile[row * GRID + column] for column in range(GRID)]
            expected.append(model.image_newline)
        (found,) = model.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)


# the files


def changed(folder: Path, target: Path, file: str, **settings: object) -> Path:
    copy = Path(shutil.copytree(folder, target / "copy"))
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**content, **settings}))
    return copy


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_canvases_that_only_one_file_knows_are_refused(folder, tmp_path, file):
    with pytest.raises(
        ArtifactError, match=r"copy: image_grid_pinpoints of the model and of the image processor differ"
    ):
        load_backbone(changed(folder, tmp_path, file, image_grid_pinpoints=PINPOINTS[:2]))


def test_the_limit_is_in_both_files_after_saving(own, tmp_path):
    own.set_max_pixels(2 * TILE * TILE)
    own.model.save_pretrained(tmp_path)
    own.processor.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert again.model.config.image_grid_pinpoints == PINPOINTS[:2]
    assert tokens(again, 1000, 1000) == tokens(own, 1000, 1000)


def test_a_checkpoint_from_before_processors_had_settings_is_read(folder, backbone, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "processor_config.json").unlink()
    again = load_backbone(copy)
    assert again.processor_state() == backbone.processor_state()
    assert ids(again, example("red", picture(300, 100))) == ids(backbone, example("red", picture(300, 100)))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("image_mean", [0.5, 0.5, 0.5]),
        ("image_std", [0.5, 0.5, 0.5]),
        ("rescale_factor", 1 / 127.5),
        ("resample", 0),
        ("do_normalize", False),
        ("do_rescale", False),
    ],
)
def test_the_state_names_what_changes_the_pixels(folder, backbone, tmp_path, setting, value):
    other = load_backbone(changed(folder, tmp_path, "preprocessor_config.json", **{setting: value}))
    image = [example("", picture(300, 100))]
    pixels, expected = (one.unpacked(one.collate(image, max_tokens=9))["pixel_values"] for one in (other, backbone))
    assert (pixels - expected).abs().max() > 0.01
    assert other.processor_state() != backbone.processor_state()


def test_rows_are_padded_on_the_left_whatever_the_checkpoint_says(folder, tmp_path):
    backbone = load_backbone(changed(folder, tmp_path, "tokenizer_config.json", padding_side="right"))
    mask = backbone.collate([example("red"), example("blue", picture())], max_tokens=9)["attention_mask"]
    assert mask[:, -1].all()
    assert (mask.diff(dim=1) >= 0).all()
    assert mask[0].sum() < mask[1].sum() == mask.shape[1]


# towers


@pytest.mark.parametrize(
    ("text", "special", "end"),
    [
        ({"model_type": "llama"}, SPECIAL, "</s>"),
        (
            {"model_type": "llama", "num_key_value_heads": 1},
            ("<|unknown|>", "<|begin_of_text|>", "<|eot_id|>", "<image>"),
            "<|eot_id|>",
        ),
        (
            {"model_type": "qwen2", "num_key_value_heads": 1},
            ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"),
            "<|im_end|>",
        ),
    ],
    ids=["vicuna", "llama_3", "qwen2"],
)
def test_the_end_and_the_special_tokens_are_the_towers_own(tmp_path, text, special, end):
    tiny_llava_next.save_with(tmp_path / "base", text, special=special, end=end)
    backbone = load_backbone(tmp_path / "base")
    assert backbone.end_of_text == end
    assert set(backbone.special_tokens) == set(special)
    tokenizer = backbone.processor.tokenizer
    attack = example(" ".join(special) + " red", picture())
    for row, images in ((ids(backbone, attack)[0], tokens(backbone, 56, 56)), (ids(backbone, example("red"))[0], 0)):
        found = [tokenizer.convert_ids_to_tokens(i) for i in row if i in tokenizer.all_special_ids]
        assert found == ["<image>"] * images + [end]
    examples = [example("red"), example("blue", picture(300, 100)), example("", picture(100, 300))]
    alone = torch.cat([embed(backbone, [one]) for one in examples])
    assert (embed(backbone, examples) - alone).abs().max() <= 1e-5
    assert math.isclose(float(alone.norm(dim=1).mean()), 1, rel_tol=1e-5)
