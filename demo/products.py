"""The generated product catalogue: what a product is, its photograph, its words, and its near-misses.

Everything is a pure function of the product (and of a view, phrasing or seed): the same on every machine and in every
process. A combination of kind, colour, second colour and pattern is either held out or not, whatever else differs.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

import numpy as np
from PIL import Image

from demo.drawing import Canvas, Surface, jpeg_noise
from demo.product_backdrops import STYLES, VARIANTS, backdrop
from demo.product_shapes import COLOURS, LOGOS, Kind, Kit
from demo.product_shapes_gear import GEAR_KINDS
from demo.product_shapes_home import HOME_KINDS
from demo.product_shapes_wear import WEAR_KINDS

KINDS: dict[str, Kind] = HOME_KINDS | WEAR_KINDS | GEAR_KINDS
PATTERNS: dict[str, str] = {
    "plain": "trim",
    "striped": "stripes",
    "dotted": "dots",
    "checked": "checks",
    "zigzag": "zigzags",
    "two-tone": "lower half",
}
"""Pattern -> what of it has the second colour."""
SIZES: dict[str, float] = {"small": 0.96, "medium": 1.0, "large": 1.04}
"""Size -> scale in the photograph."""
LETTERS = ("a", "b", "e", "h", "k", "m", "r", "s", "t", "x")
MARKS = ("none", *LOGOS, *LETTERS)
HELD_OUT_SHARE = 5
"""One combination in this many is held out."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """One article. Its second colour is never its colour: it paints the pattern, and the trim of every pattern."""

    kind: str
    colour: str
    second_colour: str
    pattern: str
    material: str
    size: str
    mark: str
    """A letter, a logo or "none"."""
    detail: str
    """The small thing in which its near-misses differ, as a noun phrase: "three buttons"."""

    def __post_init__(self) -> None:
        _require("kind", self.kind, KINDS)
        _require("colour", self.colour, COLOURS)
        _require("second_colour", self.second_colour, [name for name in COLOURS if name != self.colour])
        _require("pattern", self.pattern, PATTERNS)
        _require("material", self.material, KINDS[self.kind].materials)
        _require("size", self.size, SIZES)
        _require("mark", self.mark, MARKS)
        _require("detail", self.detail, KINDS[self.kind].details)


def _require(field: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"product.{field} is {value!r}, must be one of: {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """How a product is photographed: everything a view may change."""

    angle: float
    scale: float
    offset: tuple[float, float]
    light: tuple[float, float]
    style: str
    variant: int
    shift: tuple[float, float]
    flip: bool
    shadow: float
    exposure: tuple[float, float, float]
    grain: float
    quality: int
    seed: int


def scene_of(product: Product, view: int) -> Scene:
    """The scene of a view: at most 15 degrees of rotation, the object over 70 to 92 % of the frame, any backdrop."""
    rng = random.Random(f"scene/{view}/{_key(product)}")
    slant = rng.uniform(0.45, 0.8) * rng.choice((-1, 1))
    warmth = rng.uniform(-0.025, 0.025)
    brightness = rng.uniform(0.94, 1.05)
    return Scene(
        angle=rng.uniform(-15, 15),
        scale=rng.uniform(0.75, 0.89) * SIZES[product.size],
        offset=(rng.uniform(-0.05, 0.05), rng.uniform(-0.04, 0.04)),
        light=(slant, -((1 - slant * slant) ** 0.5)),
        style=rng.choice(STYLES),
        variant=rng.randrange(VARIANTS),
        shift=(rng.random(), rng.random()),
        flip=rng.random() < 0.5,
        shadow=rng.uniform(0.28, 0.42),
        exposure=(brightness * (1 + warmth), brightness, brightness * (1 - warmth)),
        grain=rng.uniform(0.0, 3.0),
        quality=rng.randint(62, 92),
        seed=rng.getrandbits(32),
    )


def draw_product(product: Product, scene: Scene, *, size: int) -> Canvas:
    """The product alone on a transparent canvas."""
    kind = KINDS[product.kind]
    canvas = Canvas(
        size,
        angle=scene.angle,
        scale=scene.scale * size / 2,
        offset=((1 + scene.offset[0]) * size / 2, (1 + scene.offset[1]) * size / 2),
        light=scene.light,
    )
    second = COLOURS[product.second_colour]
    body = Surface(
        colour=COLOURS[product.colour], second_colour=second, pattern=product.pattern, material=product.material
    )
    trim = Surface(colour=second, material="matte" if product.material == "metallic" else product.material)
    kind.draw(Kit(canvas, body=body, trim=trim, mark=product.mark, variant=kind.details.index(product.detail)))
    return canvas


def photograph(product: Product, scene: Scene, *, size: int) -> Image.Image:
    """The product in a scene, through the camera: exposure, grain, JPEG."""
    behind = backdrop(scene.style, scene.variant, size, shift=scene.shift, flip=scene.flip)
    picture = draw_product(product, scene, size=size).over(behind, shadow=scene.shadow)
    picture *= np.asarray(scene.exposure, np.float32)[:, None, None]
    grain = np.random.default_rng(scene.seed).standard_normal((size, size), np.float32)
    picture += grain * np.float32(scene.grain)
    return jpeg_noise(
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()), scene.quality
    )


def render(product: Product, *, view: int, size: int = 256) -> Image.Image:
    """A photograph of the product. The view chooses the scene, never the product."""
    return photograph(product, scene_of(product, view), size=size)


_PHRASINGS = (
    "{a_look_kind} with {and_list}",
    "{look} {kind}, {comma_list}",
    "i am looking for {a_look_kind} with {and_list}",
    "{kind}, {look}, {comma_list}",
    "show me {a_look_kind} with {and_list}",
    "{comma_list} on {a_look_kind}",
    "photo of {a_look_kind}, {comma_list}",
    "{pattern} {kind} in {colour} with {and_list}",
)
PHRASINGS = len(_PHRASINGS)
_WITHOUT_ARTICLE = ("headphones",)


def describe(product: Product, *, phrasing: int) -> str:
    """What a shopper would type: kind, colour, pattern, second colour, mark. `phrasing` counts modulo `PHRASINGS`."""
    return _phrase(product, phrasing, [_second_part(product), *_mark_parts(product)])


def describe_detail(product: Product, *, phrasing: int = 0) -> str:
    """Like `describe`, and it names the detail as well: "... with four buttons"."""
    return _phrase(product, phrasing, [_second_part(product), *_mark_parts(product), product.detail])


def _phrase(product: Product, phrasing: int, parts: list[str]) -> str:
    look = _look(product)
    article = "" if product.kind in _WITHOUT_ARTICLE else "an " if look[0] in "aeiou" else "a "
    return _PHRASINGS[phrasing % PHRASINGS].format(
        a_look_kind=f"{article}{look} {product.kind}",
        look=look,
        kind=product.kind,
        colour=product.colour,
        pattern=product.pattern,
        and_list=_and_list(parts),
        comma_list=", ".join(parts),
    )


def _look(product: Product) -> str:
    words = (product.pattern, product.colour) if product.pattern == "plain" else (product.colour, product.pattern)
    return " ".join(words)


def _second_part(product: Product) -> str:
    article = "a " if product.pattern == "two-tone" else ""
    return f"{article}{product.second_colour} {PATTERNS[product.pattern]}"


def _mark_parts(product: Product) -> list[str]:
    if product.mark == "none":
        return []
    return [f"the letter {product.mark}" if product.mark in LETTERS else f"a {product.mark}"]


def _and_list(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def title(product: Product) -> str:
    """The headline of its page: "Red striped mug with white stripes"."""
    return f"{_look(product)} {product.kind} with {_second_part(product)}".capitalize()


def catalog_fields(product: Product, rng: random.Random) -> dict[str, str | float]:
    """The columns of its catalogue row: title, description, price, category and every attribute.

    Only the price is drawn from `rng`.
    """
    kind = KINDS[product.kind]
    printed = "".join(f", printed with {part}" for part in _mark_parts(product))
    description = (
        f"{product.material.capitalize()} {product.kind} in {product.colour} with {_second_part(product)}{printed}. "
        f"Comes in {product.size} size, with {product.detail}."
    )
    low, high = kind.price
    price = int(low + (high - low) * rng.random()) + rng.choice((0.0, 0.5, 0.9, 0.95))
    head = {"title": title(product), "description": description, "price": price, "category": kind.category}
    return {**head, **asdict(product)}


def near_misses(product: Product) -> list[Product]:
    """Its family, itself included: equal in everything but `detail`, in the order of the kind's details."""
    return [replace(product, detail=detail) for detail in KINDS[product.kind].details]


def recolour(product: Product, colour: str) -> Product:
    """The same product in another main colour.

    Raises: ValueError if `colour` is the product's second colour.
    """
    if colour == product.second_colour:
        raise ValueError(f"colour is {colour!r}, the product's second colour; choose another of: {', '.join(COLOURS)}")
    return replace(product, colour=colour)


def is_held_out(product: Product) -> bool:
    """Whether the combination of kind, colour, second colour and pattern is kept from training: about 1 in 5 is."""
    return _is_held_out((product.kind, product.colour, product.second_colour, product.pattern))


def _is_held_out(combination: tuple[str, ...]) -> bool:
    digest = hashlib.sha256("|".join(combination).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


@functools.cache
def combinations(*, held_out: bool) -> tuple[tuple[str, str, str, str], ...]:
    """Every (kind, colour, second colour, pattern) on one side of the split."""
    every = itertools.product(KINDS, COLOURS, COLOURS, PATTERNS)
    return tuple(each for each in every if each[1] != each[2] and _is_held_out(each) == held_out)


def sample_products(count: int, *, seed: int, held_out: bool) -> list[Product]:
    """Products with distinct combinations of kind, colour, second colour and pattern from one side of the split.

    Raises: ValueError if there are fewer than `count` combinations.
    """
    pool = combinations(held_out=held_out)
    if count > len(pool):
        side = "held-out" if held_out else "training"
        raise ValueError(f"count is {count}, but there are only {len(pool)} {side} combinations; ask for at most that")
    rng = random.Random(f"products/{seed}/{held_out}")
    return [_complete(combination, rng) for combination in rng.sample(pool, count)]


def _complete(combination: tuple[str, str, str, str], rng: random.Random) -> Product:
    kind, colour, second_colour, pattern = combination
    return Product(
        kind=kind,
        colour=colour,
        second_colour=second_colour,
        pattern=pattern,
        material=rng.choice(KINDS[kind].materials),
        size=rng.choice(list(SIZES)),
        mark=rng.choice(MARKS),
        detail=rng.choice(KINDS[kind].details),
    )


def _key(product: Product) -> str:
    return "|".join(asdict(product).values())
