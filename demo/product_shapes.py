"""The kinds of things the demo catalogue sells: how each is drawn, and in which small detail its near-misses differ.

A drawing function receives a `Kit` (the canvas and the product's surfaces) and paints parts from back to front. Every
kind shows the main colour with its pattern on a large body, the second colour on its trim, the mark on a calm patch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from demo.drawing import Canvas, Colour, Points, Surface, curve, ellipse, join

COLOURS: dict[str, Colour] = {
    "red": (208, 32, 38),
    "orange": (246, 132, 24),
    "yellow": (252, 214, 42),
    "green": (36, 150, 66),
    "blue": (30, 84, 206),
    "purple": (124, 52, 170),
    "pink": (246, 142, 190),
    "brown": (116, 70, 38),
    "black": (34, 34, 40),
    "white": (246, 246, 242),
}
STEEL: Colour = (176, 180, 188)
BRASS: Colour = (204, 168, 92)
WOOD: Colour = (178, 128, 82)
RUBBER: Colour = (62, 62, 68)
INK: Colour = (28, 28, 34)
PAPER: Colour = (250, 249, 244)

HARD = ("matte", "glossy", "metallic")
SOFT = ("matte", "woven", "glossy")


class Kit:
    """What a drawing function paints with: the canvas, the product's surfaces and its detail's place in the family."""

    def __init__(self, canvas: Canvas, *, body: Surface, trim: Surface, mark: str, variant: int) -> None:
        self.canvas = canvas
        self.body = body
        """Main colour with the pattern."""
        self.plain = replace(body, pattern="plain")
        """Main colour without the pattern."""
        self.trim = trim
        """Second colour."""
        self.variant = variant
        """0, 1, 2, ...: which of the kind's details."""
        self.ink = _ink_on(self.body.colour)
        """What prints legibly on the main colour."""
        self.has_mark = mark != "none"
        self._mark = mark
        self.fill = canvas.fill
        self.stroke = canvas.stroke

    def patterned(
        self, *, period: float = 0.36, split: float = 0.1, bend: tuple[float, float, float] | None = None
    ) -> Surface:
        return replace(self.body, period=period, split=split, bend=bend)

    def solid(self, colour: Colour, material: str = "matte") -> Surface:
        return Surface(colour=colour, material=material)

    def disc(self, x: float, y: float, radius: float, surface: Surface, *, form: str = "ball") -> None:
        self.fill(ellipse(x, y, radius), surface, form=form)

    def mark(self, x: float, y: float, height: float) -> None:
        """Print the product's mark, if any, in ink that stands out; on a pattern it gets a patch of the main colour."""
        if not self.has_mark:
            return
        if self.body.pattern != "plain":
            self.fill(ellipse(x, y, height * 0.72), self.plain)
        if self._mark in LOGOS:
            self.fill(LOGOS[self._mark] * (height / 2) + (x, y), self.solid(self.ink))
        else:
            self.canvas.letter(self._mark, (x, y), height * 0.92, self.ink)


def _ink_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return INK if 0.30 * red + 0.59 * green + 0.11 * blue > 120 else PAPER


def _star() -> Points:
    angles = np.radians(np.arange(10) * 36 - 90)
    reach = np.where(np.arange(10) % 2 == 0, 1.12, 0.47)
    return np.stack([reach * np.cos(angles), reach * np.sin(angles) + 0.08], axis=1)


LOGOS: dict[str, Points] = {
    "star": _star(),
    "heart": join(
        curve((0, -0.45), (0.25, -1.1), (1.15, -1.0), (1.02, -0.22)),
        curve((1.02, -0.22), (0.9, 0.25), (0.35, 0.6), (0, 0.98)),
        curve((0, 0.98), (-0.35, 0.6), (-0.9, 0.25), (-1.02, -0.22)),
        curve((-1.02, -0.22), (-1.15, -1.0), (-0.25, -1.1), (0, -0.45)),
    ),
    "bolt": join((0.25, -1.05), (-0.72, 0.2), (-0.08, 0.2), (-0.3, 1.05), (0.72, -0.3), (0.08, -0.3)),
    "moon": join(ellipse(0.05, 0, 1, start=55, end=305), ellipse(0.42, 0, 0.84, start=283, end=77)),
    "crown": join((-0.95, 0.8), (-1.05, -0.55), (-0.48, 0.0), (0, -0.95), (0.48, 0.0), (1.05, -0.55), (0.95, 0.8)),
    "drop": join(
        curve((0, -1.1), (0.25, -0.5), (0.8, 0.0), (0.72, 0.45)),
        curve((0.72, 0.45), (0.6, 1.2), (-0.6, 1.2), (-0.72, 0.45)),
        curve((-0.72, 0.45), (-0.8, 0.0), (-0.25, -0.5), (0, -1.1)),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of product: its drawing, its shop department and what can vary in it."""

    draw: Callable[[Kit], None]
    category: str
    details: tuple[str, ...]
    """The near-miss family: noun phrases for the one small thing that differs."""
    materials: tuple[str, ...]
    price: tuple[int, int]
    """Lowest and highest price of the kind."""
