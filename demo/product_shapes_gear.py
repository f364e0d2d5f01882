"""Drawings of watches, instruments and sound. Coordinates: x right, y down, the thing within about [-1, 1]."""

from demo.drawing import curve, ellipse, join, mirrored, rounded, smooth
from demo.product_shapes import HARD, INK, PAPER, RUBBER, STEEL, WOOD, Kind, Kit


def draw_watch(kit: Kit) -> None:
    strap = kit.patterned(period=0.3, split=0.0)
    for side in (-1, 1):
        y0, y1 = sorted((side * 0.3, side * 1.02))
        kit.fill(rounded(-0.44, y0, 0.44, y1, 0.1), strap, form="tube", relief=0.04)
    kit.fill(rounded(0.5, -0.09, 0.7, 0.09, 0.03), kit.solid(STEEL, "metallic"))
    kit.disc(0, 0, 0.6, kit.trim)
    kit.fill(ellipse(0, 0, 0.49), kit.plain, form="flat")
    ink = kit.solid(kit.ink)
    for angle in range(0, 360, 30):
        hour = ellipse(0, 0, 1, start=angle, end=angle)[:1]
        kit.stroke(join(hour * 0.40, hour * 0.45), 0.03, ink, relief=0)
    for index in range(kit.variant + 1):
        x = (index - kit.variant / 2) * 0.22
        kit.disc(x, 0.27, 0.095, kit.trim, form="flat")
        kit.stroke(join((x, 0.27), (x + 0.03, 0.22)), 0.025, kit.plain, relief=0)
    if not kit.has_mark:
        kit.stroke(join((0, 0), (0, -0.32)), 0.045, ink, relief=0)
        kit.stroke(join((0, 0), (0.22, -0.1)), 0.06, ink, relief=0)
        kit.disc(0, 0, 0.06, kit.trim, form="flat")
    kit.mark(0, -0.1, 0.38)


def draw_guitar(kit: Kit) -> None:
    pairs = kit.variant + 2
    for index in range(pairs):
        y = -0.95 + index * 0.32 / (pairs - 1)
        for side in (-1, 1):
            kit.disc(side * 0.2, y, 0.055, kit.solid(STEEL))
    kit.fill(join((-0.16, -1.02), (0.16, -1.02), (0.12, -0.58), (-0.12, -0.58)), kit.trim, relief=0.02)
    left = smooth(
        (0, -0.34),
        (-0.4, -0.36),
        (-0.54, -0.08),
        (-0.44, 0.18),
        (-0.7, 0.56),
        (-0.5, 0.94),
        (0, 1.02),
        closed=False,
    )
    body = mirrored(left)
    kit.fill(body, kit.patterned(period=0.34, split=0.3), form="flat", relief=0.06)
    kit.stroke(join(body, body[:2]), 0.055, kit.trim)
    kit.fill(rounded(-0.08, -0.62, 0.08, 0.04, 0.02), kit.solid(WOOD), form="tube")
    kit.disc(0, 0.06, 0.17, kit.trim, form="flat")
    kit.disc(0, 0.06, 0.12, kit.solid(INK), form="flat")
    kit.fill(rounded(-0.24, 0.84, 0.24, 0.92, 0.02), kit.solid(INK))
    for x in (-0.03, 0.03):
        kit.stroke(join((x, -0.9), (x, 0.86)), 0.014, kit.solid(PAPER), relief=0)
    kit.mark(0, 0.52, 0.44)


def draw_headphones(kit: Kit) -> None:
    kit.stroke(ellipse(0, -0.04, 0.64, 0.84, start=180, end=360), 0.2, kit.trim)
    for side in (-1, 1):
        kit.fill(rounded(side * 0.3 - 0.07, -0.06, side * 0.3 + 0.07, 0.74, 0.07), kit.solid(RUBBER), form="tube")
        cup = rounded(side * 0.64 - 0.34, -0.2, side * 0.64 + 0.34, 0.88, 0.28)
        kit.fill(cup, kit.patterned(period=0.32, split=0.34), form="tube", relief=0.08)
    if kit.variant < 2:
        end = (-0.1, 0.16)[kit.variant]
        kit.stroke(curve((-0.66, 0.78), (-0.6, 0.98), (-0.3, 0.98), (end - 0.06, 0.93)), 0.06, kit.solid(RUBBER))
        kit.fill(rounded(end - 0.1, 0.83, end + 0.14, 1.0, 0.08), kit.trim, form="ball", relief=0.02)
    kit.mark(0.64, 0.34, 0.42)


GEAR_KINDS = {
    "watch": Kind(
        draw=draw_watch,
        category="accessories",
        details=("one small dial", "two small dials", "three small dials"),
        materials=HARD,
        price=(60, 320),
    ),
    "guitar": Kind(
        draw=draw_guitar,
        category="music",
        details=("four pegs", "six pegs", "eight pegs"),
        materials=HARD,
        price=(90, 500),
    ),
    "headphones": Kind(
        draw=draw_headphones,
        category="music",
        details=("a short microphone", "a long microphone", "no microphone"),
        materials=HARD,
        price=(40, 260),
    ),
}
