"""Drawings of things for the kitchen and the home. Coordinates: x right, y down, the thing within about [-1, 1]."""

import numpy as np

from demo.drawing import curve, ellipse, join, mirrored, rounded, smooth
from demo.product_shapes import BRASS, HARD, INK, SOFT, STEEL, WOOD, Kind, Kit


def draw_mug(kit: Kit) -> None:
    handle = (
        ellipse(0.5, 0.04, 0.36, 0.42, start=-100, end=100),
        join((0.4, -0.38), (0.84, -0.38), (0.84, 0.42), (0.36, 0.42)),
        join((0.4, -0.36), (0.92, 0.04), (0.36, 0.48)),
    )[kit.variant]
    kit.stroke(handle, 0.17, kit.trim)
    body = join((-0.88, -0.68), curve((-0.8, 0.72), (-0.7, 0.96), (0.28, 0.96), (0.38, 0.72)), (0.46, -0.68))
    kit.fill(body, kit.patterned(period=0.4, split=0.2, bend=(-0.21, 0.67, 0.16)), form="tube", relief=0.04)
    kit.fill(ellipse(-0.21, -0.68, 0.67, 0.17), kit.trim)
    kit.fill(ellipse(-0.21, -0.67, 0.58, 0.12), kit.solid((88, 58, 40)))
    kit.mark(-0.2, 0.12, 0.5)


def draw_teapot(kit: Kit) -> None:
    kit.stroke(join(curve((-0.5, -0.32), (-1.0, -0.5), (-1.1, 0.4), (-0.56, 0.4))), 0.13, kit.trim)
    spout = join(
        curve((0.45, 0.42), (0.85, 0.3), (0.7, -0.25), (0.88, -0.44)),
        (1.02, -0.36),
        curve((0.98, -0.2), (0.98, 0.5), (0.8, 0.66), (0.4, 0.66)),
    )
    kit.fill(spout, kit.plain, form="tube", relief=0.05)
    body = smooth(
        (0, -0.5), (0.42, -0.36), (0.66, 0.12), (0.46, 0.66), (0, 0.78), (-0.46, 0.66), (-0.66, 0.12), (-0.42, -0.36)
    )
    kit.fill(body, kit.patterned(period=0.36, split=0.2, bend=(0, 0.66, 0.1)), form="ball", relief=0.06)
    kit.fill(rounded(-0.36, 0.7, 0.36, 0.82, 0.06), kit.trim)
    lid = join(
        curve((-0.44, -0.36), (-0.36, -0.66), (0.36, -0.66), (0.44, -0.36)),
        curve((0.44, -0.36), (0.2, -0.26), (-0.2, -0.26), (-0.44, -0.36)),
    )
    kit.fill(lid, kit.trim, form="ball", relief=0.03)
    if kit.variant == 0:
        kit.disc(0, -0.7, 0.13, kit.plain)
    elif kit.variant == 1:
        kit.stroke(ellipse(0, -0.7, 0.11), 0.07, kit.plain)
    else:
        kit.fill(join((-0.14, -0.56), (0, -0.9), (0.14, -0.56)), kit.plain, form="tube")
    kit.mark(0, 0.18, 0.46)


def draw_bottle(kit: Kit) -> None:
    left = join(
        (-0.2, -0.62),
        curve((-0.2, -0.5), (-0.22, -0.34), (-0.54, -0.34), (-0.54, -0.04)),
        curve((-0.54, 0.8), (-0.54, 0.98), (-0.46, 0.98), (-0.34, 0.98)),
    )
    kit.fill(mirrored(left), kit.patterned(period=0.4, split=0.3, bend=(0, 0.54, 0.06)), form="tube", relief=0.05)
    kit.fill(rounded(-0.26, -0.7, 0.26, -0.54, 0.05), kit.solid(STEEL, "metallic"), form="tube")
    if kit.variant == 0:
        kit.fill(rounded(-0.28, -0.96, 0.28, -0.68, 0.06), kit.trim, form="tube", relief=0.03)
    elif kit.variant == 1:
        kit.fill(
            join(ellipse(0, -0.72, 0.29, 0.27, start=180, end=360), (0.29, -0.68), (-0.29, -0.68)),
            kit.trim,
            form="ball",
            relief=0.03,
        )
    else:
        kit.fill(rounded(-0.28, -0.82, 0.28, -0.68, 0.06), kit.trim, form="tube", relief=0.03)
        kit.stroke(ellipse(0, -0.84, 0.19, 0.17, start=180, end=360), 0.09, kit.trim)
    kit.fill(rounded(-0.54, 0.76, 0.54, 0.88, 0.02), kit.trim, form="tube")
    kit.mark(0, 0.24, 0.46)


def draw_lamp(kit: Kit) -> None:
    kit.fill(rounded(-0.06, 0.1, 0.06, 0.84, 0.03), kit.solid(BRASS, "metallic"), form="tube")
    for index in range(kit.variant + 1):
        y = 0.5 + (index - kit.variant / 2) * 0.17
        kit.fill(rounded(-0.15, y - 0.055, 0.15, y + 0.055, 0.05), kit.trim, form="tube", relief=0.02)
    base = join(
        curve((-0.5, 0.94), (-0.4, 0.76), (0.4, 0.76), (0.5, 0.94)),
        curve((0.5, 0.94), (0.3, 1.02), (-0.3, 1.02), (-0.5, 0.94)),
    )
    kit.fill(base, kit.trim, form="ball", relief=0.04)
    shade = join((-0.46, -0.94), (0.46, -0.94), curve((0.88, 0.1), (0.6, 0.28), (-0.6, 0.28), (-0.88, 0.1)))
    kit.fill(shade, kit.patterned(period=0.38, split=-0.2, bend=(0, 0.8, 0.1)), form="tube", relief=0.04)
    kit.fill(ellipse(0, -0.93, 0.46, 0.06), kit.trim)
    kit.stroke(curve((-0.86, 0.1), (-0.6, 0.28), (0.6, 0.28), (0.86, 0.1)), 0.07, kit.trim)
    kit.mark(0, -0.32, 0.46)


def draw_chair(kit: Kit) -> None:
    legs = kit.solid(WOOD)
    for side in (-1, 1):
        kit.fill(join((side * 0.5, 0.7), (side * 0.68, 0.7), (side * 0.72, 1.0), (side * 0.62, 1.0)), legs, form="tube")
    back = join((-0.62, 0.3), curve((-0.7, -0.6), (-0.7, -1.0), (0.7, -1.0), (0.7, -0.6)), (0.62, 0.3))
    kit.fill(back, kit.patterned(period=0.36, split=-0.26), form="flat", relief=0.1)
    for index in range(kit.variant + 2):
        x = (index - (kit.variant + 1) / 2) * 0.25
        kit.disc(x, -0.73, 0.09, kit.plain)
        kit.disc(x, -0.73, 0.06, kit.solid(kit.ink))
    kit.fill(rounded(-0.66, 0.44, 0.66, 0.8, 0.1), kit.plain, form="flat", relief=0.06)
    kit.fill(rounded(-0.62, 0.2, 0.62, 0.52, 0.14), kit.trim, form="flat", relief=0.08)
    for side in (-1, 1):
        arm = rounded(min(side * 0.92, side * 0.58), -0.06, max(side * 0.92, side * 0.58), 0.82, 0.16)
        kit.fill(arm, kit.plain, form="tube", relief=0.08)
    kit.mark(0, -0.25, 0.46)


def draw_cushion(kit: Kit) -> None:
    corners = [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    if kit.variant == 0:
        for x, y in corners:
            for turn in (-0.1, 0.0, 0.1):
                kit.stroke(join((x * 0.92, y * 0.92), (x * (1.1 - turn), y * (1.1 + turn))), 0.05, kit.trim)
    elif kit.variant == 1:
        threads = [
            point
            for step in range(-8, 9)
            for point in ((step - 0.22, 7.6), (step - 0.22, 10.2), (step + 0.22, 10.2), (step + 0.22, 7.6))
        ]
        side = np.array(threads) * 0.092
        quarter_turn = np.array([[0, 1], [-1, 0]])
        kit.fill(join(*(side @ np.linalg.matrix_power(quarter_turn, turns) for turns in (0, 3, 2, 1))), kit.trim)
    edge = smooth(
        (-0.88, -0.88), (0, -0.79), (0.88, -0.88), (0.79, 0), (0.88, 0.88), (0, 0.79), (-0.88, 0.88), (-0.79, 0)
    )
    kit.fill(edge, kit.patterned(period=0.42, split=0.12), form="cloth", relief=0.2)
    if kit.variant == 2:
        kit.stroke(join(edge, edge[:2]), 0.09, kit.trim)
    else:
        kit.stroke(join(edge, edge[:2]), 0.035, kit.trim)
    kit.mark(0, 0, 0.52)


def draw_umbrella(kit: Kit) -> None:
    kit.fill(rounded(-0.035, -0.96, 0.035, 0.7, 0.03), kit.solid(STEEL, "metallic"), form="tube")
    if kit.variant == 0:
        kit.stroke(join((0, 0.5), (0, 0.74), ellipse(0.15, 0.78, 0.15, start=180, end=0)), 0.1, kit.trim)
    elif kit.variant == 1:
        kit.fill(rounded(-0.08, 0.46, 0.08, 0.98, 0.06), kit.trim, form="tube")
    else:
        kit.fill(rounded(-0.06, 0.46, 0.06, 0.8, 0.03), kit.trim, form="tube")
        kit.disc(0, 0.84, 0.14, kit.trim)
    scallops = [ellipse(x, 0.18, 0.242, 0.12, start=0, end=-180) for x in (0.726, 0.242, -0.242, -0.726)]
    dome = join(
        curve((-0.97, 0.18), (-0.95, -0.55), (-0.45, -0.84), (0, -0.86)),
        curve((0, -0.86), (0.45, -0.84), (0.95, -0.55), (0.97, 0.18)),
        *scallops,
    )
    kit.fill(dome, kit.patterned(period=0.36, split=-0.2, bend=(0, 0.97, -0.24)), form="ball", relief=0.05)
    for x in (-0.484, 0.484):
        kit.stroke(curve((0, -0.84), (x * 0.55, -0.7), (x, -0.35), (x, 0.16)), 0.025, kit.solid(INK), relief=0)
    for scallop in scallops:
        kit.stroke(scallop, 0.075, kit.trim)
    kit.disc(0, -0.88, 0.08, kit.trim)
    kit.mark(0, -0.3, 0.44)


HOME_KINDS = {
    "mug": Kind(
        draw=draw_mug,
        category="kitchen",
        details=("a round handle", "a square handle", "a pointed handle"),
        materials=HARD,
        price=(8, 24),
    ),
    "teapot": Kind(
        draw=draw_teapot,
        category="kitchen",
        details=("a ball knob", "a ring knob", "a pointed knob"),
        materials=HARD,
        price=(22, 60),
    ),
    "bottle": Kind(
        draw=draw_bottle,
        category="kitchen",
        details=("a flat cap", "a domed cap", "a looped cap"),
        materials=HARD,
        price=(12, 35),
    ),
    "lamp": Kind(
        draw=draw_lamp,
        category="home",
        details=("one ring", "two rings", "three rings"),
        materials=SOFT,
        price=(30, 120),
    ),
    "chair": Kind(
        draw=draw_chair,
        category="home",
        details=("two buttons", "three buttons", "four buttons"),
        materials=SOFT,
        price=(90, 400),
    ),
    "cushion": Kind(
        draw=draw_cushion, category="home", details=("tassels", "a fringe", "piping"), materials=SOFT, price=(12, 45)
    ),
    "umbrella": Kind(
        draw=draw_umbrella,
        category="outdoor",
        details=("a hooked handle", "a straight handle", "a ball handle"),
        materials=SOFT,
        price=(14, 50),
    ),
}
