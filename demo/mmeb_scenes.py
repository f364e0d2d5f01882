"""Collages for visual grounding: two to four products on one backdrop, each in a known square."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from demo.product_backdrops import backdrop
from demo.products import Product, draw_product, jpeg_noise, scene_of

SIDE = 256
_CELL = SIDE // 2
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Collage:
    """A scene to draw: the products, in any order, and the view that places and lights them."""

    products: tuple[Product, ...]
    view: int

    def __post_init__(self) -> None:
        if not 2 <= len(self.products) <= 4:
            raise ValueError(f"collage.products has {len(self.products)} products, must have 2 to 4")


def boxes_of(collage: Collage) -> list[Box]:
    """(left, top, right, bottom) of each product, in order; no two overlap."""
    rng = random.Random(f"collage/{collage.view}/{len(collage.products)}")
    boxes = []
    for cell in rng.sample(range(4), len(collage.products)):
        side = rng.randint(_CELL * 4 // 5, _CELL)
        left = cell % 2 * _CELL + rng.randint(0, _CELL - side)
        top = cell // 2 * _CELL + rng.randint(0, _CELL - side)
        boxes.append((left, top, left + side, top + side))
    return boxes


def render_collage(collage: Collage) -> Image.Image:
    """The whole scene, `SIDE` pixels square; every product under the same light."""
    frame = scene_of(collage.products[0], collage.view)
    picture = backdrop(frame.style, frame.variant, SIDE, shift=frame.shift, flip=frame.flip).copy()
    for product, (left, top, right, bottom) in zip(collage.products, boxes_of(collage), strict=True):
        own = scene_of(product, collage.view)
        # centred and a little smaller than alone, so that its shadow stays inside the square
        pose = replace(own, light=frame.light, offset=(0.0, 0.0), scale=min(own.scale, 0.78))
        canvas = draw_product(product, pose, size=right - left)
        picture[:, top:bottom, left:right] = canvas.over(picture[:, top:bottom, left:right], shadow=frame.shadow)
    picture *= np.asarray(frame.exposure, np.float32)[:, None, None]
    pixels = np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
    return jpeg_noise(Image.fromarray(pixels), frame.quality)


def crops_of(collage: Collage, picture: Image.Image) -> Sequence[Image.Image]:
    """The portion of the drawn scene that isolates each product, in order."""
    return [picture.crop(box) for box in boxes_of(collage)]
