import random
import subprocess
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.drawing import Canvas
from demo.product_backdrops import STYLES, VARIANTS, backdrop
from demo.products import (
    COLOURS,
    KINDS,
    MARKS,
    PATTERNS,
    PHRASINGS,
    SIZES,
    Product,
    Scene,
    catalog_fields,
    combinations,
    describe,
    describe_detail,
    draw_product,
    is_held_out,
    near_misses,
    recolour,
    render,
    sample_products,
    scene_of,
    title,
)

ROOT = Path(__file__).parents[2]
MUG = Product(
    kind="mug",
    colour="red",
    second_colour="white",
    pattern="striped",
    material="matte",
    size="medium",
    mark="k",
    detail="a round handle",
)


def product_of(kind: str, **changes: str) -> Product:
    spec = KINDS[kind]
    return replace(MUG, kind=kind, material=spec.materials[0], detail=spec.details[0], **changes)


def straight(product: Product) -> Scene:
    """A scene without rotation or shift, for comparing drawings pixel by pixel."""
    return replace(scene_of(product, 0), angle=0.0, scale=0.9, offset=(0.0, 0.0), light=(-0.6, -0.8))


def pixels(canvas: Canvas) -> np.ndarray:
    return np.concatenate([canvas.planes, canvas.alpha[None] * 255]).transpose(1, 2, 0)


def body_colour(product: Product, view: int) -> np.ndarray:
    """Median colour of the drawn product, before backdrop and camera."""
    canvas = draw_product(product, scene_of(product, view), size=96)
    return np.median(canvas.planes[:, canvas.alpha > 0.99], axis=1)


def test_a_render_is_byte_equal_in_a_fresh_process():
    products = sample_products(6, seed=5, held_out=False)
    here = sha256(b"".join(render(p, view=i, size=128).tobytes() for i, p in enumerate(products))).hexdigest()
    program = (
        "from hashlib import sha256\n"
        "from demo.products import render, sample_products\n"
        "products = sample_products(6, seed=5, held_out=False)\n"
        "images = [render(p, view=i, size=128).tobytes() for i, p in enumerate(products)]\n"
        "print(sha256(b''.join(images)).hexdigest())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == here


def test_a_render_does_not_depend_on_what_was_rendered_before():
    first = render(MUG, view=3, size=96).tobytes()
    render(product_of("dress"), view=1, size=96)
    assert render(MUG, view=3, size=96).tobytes() == first


@pytest.mark.parametrize("size", [64, 112, 256])
def test_a_render_is_rgb_of_the_size_asked_for(size: int):
    image = render(MUG, view=0, size=size)
    assert (image.mode, image.size) == ("RGB", (size, size))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_views_change_the_pixels_but_the_body_colour_stays(kind: str, colour: str):
    product = product_of(kind, colour=colour, pattern="plain", mark="none")
    images = [np.asarray(render(product, view=view, size=96), np.float32) for view in range(3)]
    assert all(np.abs(images[0] - other).mean() > 5 for other in images[1:])
    seen = np.stack([body_colour(product, view) for view in range(3)])
    assert np.ptp(seen, axis=0).max() < 25
    assert np.abs(seen.mean(0) - COLOURS[colour]).max() < 45


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_kind_fills_its_frame_and_shows_both_colours(kind: str, pattern: str):
    product = product_of(kind, pattern=pattern, colour="yellow", second_colour="blue", mark="none")
    canvas = draw_product(product, straight(product), size=112)
    rows, columns = np.nonzero(canvas.alpha > 0.5)
    extent = max(np.ptp(rows), np.ptp(columns)) / 112
    assert 0.7 < extent < 0.97
    red, green, blue = canvas.planes[:, canvas.alpha > 0.99]
    assert ((red > blue + 80) & (green > blue + 60)).mean() > 0.2
    assert (blue > red + 60).mean() > 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_every_pattern_of_a_kind_looks_different(kind: str):
    drawn = {}
    for pattern in PATTERNS:
        product = product_of(kind, pattern=pattern, mark="none")
        drawn[pattern] = pixels(draw_product(product, straight(product), size=112))
    for one in PATTERNS:
        for other in PATTERNS:
            if one < other:
                assert np.abs(drawn[one] - drawn[other]).mean() > 2, (one, other)


def test_the_pattern_stays_inside_the_body():
    silhouettes = [
        draw_product(product_of("cushion", pattern=pattern), straight(MUG), size=112).alpha for pattern in PATTERNS
    ]
    assert all(np.array_equal(silhouettes[0], other) for other in silhouettes[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_is_at_least_fourteen_pixels_tall_at_model_size(kind: str):
    bare, marked = (product_of(kind, pattern="plain", colour="yellow", mark=mark) for mark in ("none", "e"))
    scene = replace(straight(bare), scale=0.75)
    before, after = (pixels(draw_product(product, scene, size=112)) for product in (bare, marked))
    rows = np.nonzero((before - after)[..., :3].max(axis=(1, 2)) > 90)[0]
    assert np.ptp(rows) + 1 >= 14


def test_every_mark_looks_different():
    drawn = [pixels(draw_product(replace(MUG, mark=mark), straight(MUG), size=112)) for mark in MARKS]
    for index, one in enumerate(drawn):
        assert all(np.abs(one - other).mean() > 0.3 for other in drawn[:index])


@pytest.mark.parametrize("kind", KINDS)
def test_near_misses_differ_in_the_detail_alone_and_it_shows(kind: str):
    product = product_of(kind)
    family = near_misses(product)
    assert product in family
    assert len(set(family)) == len(family) >= 3
    assert all(replace(member, detail=product.detail) == product for member in family)
    scene = straight(product)
    drawn = [pixels(draw_product(member, scene, size=112)) for member in family]
    for index, one in enumerate(drawn):
        for other in drawn[:index]:
            changed = (np.abs(one - other).max(axis=2) > 40).mean()
            assert 0.0005 < changed < 0.25, "visible, and small"
    assert len({describe(member, phrasing=0) for member in family}) == 1
    assert len({describe_detail(member) for member in family}) == len(family)


@pytest.mark.parametrize("phrasing", range(PHRASINGS))
def test_descriptions_tell_products_apart_by_every_attribute_named(phrasing: int):
    others = [
        replace(MUG, colour="blue"),
        replace(MUG, second_colour="black"),
        *(replace(MUG, pattern=pattern) for pattern in PATTERNS if pattern != MUG.pattern),
        *(replace(MUG, mark=mark) for mark in MARKS if mark != MUG.mark),
        *(product_of(kind) for kind in KINDS if kind != "mug"),
        replace(MUG, colour="white", second_colour="red"),
    ]
    texts = [describe(product, phrasing=phrasing) for product in [MUG, *others]]
    assert len(set(texts)) == len(texts)
    assert all(text == text.lower() for text in texts)


def test_phrasings_differ_and_count_modulo_their_number():
    texts = {describe(MUG, phrasing=phrasing) for phrasing in range(PHRASINGS)}
    assert len(texts) == PHRASINGS
    assert describe(MUG, phrasing=PHRASINGS + 2) == describe(MUG, phrasing=2)


def test_descriptions_read_as_english():
    assert describe(MUG, phrasing=0) == "a red striped mug with white stripes and the letter k"
    assert describe_detail(MUG) == "a red striped mug with white stripes, the letter k and a round handle"
    umbrella = product_of("umbrella", colour="orange", pattern="two-tone", mark="none")
    assert describe(umbrella, phrasing=0) == "an orange two-tone umbrella with a white lower half"
    assert describe(product_of("headphones", pattern="plain", mark="star"), phrasing=4) == (
        "show me plain red headphones with white trim and a star"
    )


def test_catalogue_fields_hold_every_attribute_and_a_price_of_the_kind():
    fields = catalog_fields(MUG, random.Random(0))
    assert list(fields)[:4] == ["title", "description", "price", "category"]
    assert {name: fields[name] for name in asdict(MUG)} == asdict(MUG)
    assert fields["title"] == title(MUG) == "Red striped mug with white stripes"
    low, high = KINDS["mug"].price
    prices = [catalog_fields(MUG, random.Random(seed))["price"] for seed in range(50)]
    assert all(low <= price <= high for price in prices)
    assert len(set(prices)) > 10


def test_a_fifth_of_the_combinations_is_held_out_and_the_space_is_large_enough():
    train, held_out = combinations(held_out=False), combinations(held_out=True)
    assert len(train) + len(held_out) == len(KINDS) * len(COLOURS) * (len(COLOURS) - 1) * len(PATTERNS)
    assert not set(train) & set(held_out)
    assert 0.18 < len(held_out) / (len(train) + len(held_out)) < 0.22
    assert len(train) >= 6000
    assert len(held_out) >= 900
    assert {combination[0] for combination in held_out} == set(KINDS)


def test_the_split_ignores_mark_detail_material_and_size():
    for product in sample_products(40, seed=1, held_out=True) + sample_products(40, seed=1, held_out=False):
        spec = KINDS[product.kind]
        variants = [replace(product, mark=mark) for mark in MARKS] + near_misses(product)
        variants += [replace(product, size=size) for size in SIZES]
        variants += [replace(product, material=material) for material in spec.materials]
        assert {is_held_out(variant) for variant in variants} == {is_held_out(product)}


def test_the_split_is_the_same_on_every_machine():
    keys = ["|".join(combination) for combination in combinations(held_out=True)]
    assert sha256("\n".join(keys).encode()).hexdigest()[:16] == "ae1e8511747d81c1"


@pytest.mark.parametrize("held_out", [True, False])
def test_samples_are_unique_in_their_combination_and_on_their_side_of_the_split(held_out: bool):
    products = sample_products(900, seed=7, held_out=held_out)
    assert len({(p.kind, p.colour, p.second_colour, p.pattern) for p in products}) == 900
    assert all(is_held_out(product) == held_out for product in products)
    assert {product.mark for product in products} == set(MARKS)


def test_samples_follow_the_seed():
    once, again, other = (sample_products(50, seed=seed, held_out=False) for seed in (3, 3, 4))
    assert once == again
    assert once != other


def test_asking_for_more_samples_than_there_are_says_how_many_there_are():
    count = len(combinations(held_out=True))
    assert len(sample_products(count, seed=0, held_out=True)) == count
    with pytest.raises(ValueError, match=f"only {count} held-out combinations"):
        sample_products(count + 1, seed=0, held_out=True)


def test_recolouring_changes_the_main_colour_alone():
    green = recolour(MUG, "green")
    assert green.colour == "green"
    assert replace(green, colour="red") == MUG
    with pytest.raises(ValueError, match="second colour"):
        recolour(MUG, "white")


@pytest.mark.parametrize("field", ["kind", "colour", "pattern", "material", "size", "mark", "detail"])
def test_an_unknown_attribute_is_refused_by_name(field: str):
    known = asdict(MUG)
    if field == "kind":
        with pytest.raises(ValueError, match=r"product\.kind is 'no such'"):
            Product(**{**known, "kind": "no such"})
    else:
        with pytest.raises(ValueError, match=rf"product\.{field} is 'no such', must be one of"):
            Product(**{**known, field: "no such"})


def test_colours_are_well_separated():
    table = np.array(list(COLOURS.values()), float)
    distances = np.linalg.norm(table[:, None] - table[None], axis=2) + np.eye(len(table)) * 999
    assert distances.min() > 70


@pytest.mark.parametrize("style", STYLES)
def test_backdrops_are_muted(style: str):
    for variant in range(VARIANTS):
        image = backdrop(style, variant, 64, shift=(0.3, 0.7), flip=True)
        assert image.shape == (3, 64, 64)
        hsv = np.asarray(Image.fromarray(image.astype(np.uint8).transpose(1, 2, 0).copy()).convert("HSV"), np.float32)
        assert hsv[..., 1].mean() < 90
        assert hsv[..., 2].mean() > 110
