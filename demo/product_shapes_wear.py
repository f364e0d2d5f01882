"""Drawings of clothes, shoes and bags. Coordinates: x right, y down, the thing within about [-1, 1]."""

from demo.drawing import curve, ellipse, join, mirrored, rounded
from demo.product_shapes import BRASS, HARD, INK, PAPER, RUBBER, SOFT, STEEL, Kind, Kit


def draw_tshirt(kit: Kit) -> None:
    cloth = kit.patterned(period=0.36, split=0.16)
    left = join(
        curve((-0.28, -0.86), (-0.4, -0.84), (-0.5, -0.8), (-0.58, -0.74)),
        (-1.0, -0.28),
        (-0.78, -0.06),
        (-0.54, -0.3),
        curve((-0.54, 0.1), (-0.54, 0.5), (-0.56, 0.7), (-0.57, 0.9)),
        curve((-0.57, 0.9), (-0.4, 0.95), (-0.2, 0.95), (0, 0.95)),
    )
    kit.fill(ellipse(0, -0.84, 0.3, 0.1), kit.solid(INK))
    kit.fill(mirrored(left), cloth, form="cloth", relief=0.05)
    for side in (-1, 1):
        kit.stroke(join((side * 0.97, -0.24), (side * 0.79, -0.07)), 0.11, kit.trim)
    neck = (
        join(ellipse(0, -0.86, 0.29, 0.24, start=180, end=0)),
        join((-0.3, -0.87), (0, -0.46), (0.3, -0.87)),
        join((-0.29, -0.87), (-0.24, -0.56), (0.24, -0.56), (0.29, -0.87)),
    )[kit.variant]
    kit.fill(neck, kit.solid((70, 68, 70)))
    kit.stroke(neck, 0.1, kit.trim)
    kit.mark(0, 0.06, 0.48)


def draw_cardigan(kit: Kit) -> None:
    cloth = kit.patterned(period=0.36, split=0.2)
    for side in (-1, 1):
        sleeve = join(
            curve((side * 0.5, -0.78), (side * 0.76, -0.72), (side * 0.84, -0.2), (side * 0.98, 0.56)),
            (side * 0.7, 0.66),
            curve((side * 0.66, 0.4), (side * 0.58, 0.0), (side * 0.5, -0.3), (side * 0.4, -0.4)),
        )
        kit.fill(sleeve, cloth, form="cloth", relief=0.06)
        kit.stroke(join((side * 0.95, 0.58), (side * 0.74, 0.65)), 0.13, kit.trim)
    left = join(
        curve((-0.2, -0.88), (-0.35, -0.86), (-0.5, -0.84), (-0.56, -0.72)),
        curve((-0.56, 0.0), (-0.56, 0.4), (-0.58, 0.7), (-0.58, 0.92)),
    )
    kit.fill(mirrored(left), cloth, form="cloth", relief=0.06)
    kit.fill(join((-0.24, -0.9), (0, -0.28), (0.24, -0.9)), kit.solid((70, 68, 70)))
    kit.stroke(join((-0.25, -0.88), (0, -0.24), (0, 0.9)), 0.15, kit.trim)
    kit.stroke(join((0.25, -0.88), (0, -0.24)), 0.15, kit.trim)
    kit.fill(rounded(-0.58, 0.82, 0.58, 0.98, 0.04), kit.trim)
    count = kit.variant + 3
    for index in range(count):
        kit.disc(0, -0.16 + index * 0.86 / (count - 1), 0.05, kit.plain)
    kit.mark(0.31, 0.0, 0.38)


def draw_dress(kit: Kit) -> None:
    skirt = join(
        curve((-0.26, 0.0), (-0.4, 0.3), (-0.62, 0.6), (-0.74, 0.9)),
        curve((-0.74, 0.9), (-0.4, 1.02), (0.4, 1.02), (0.74, 0.9)),
        curve((0.74, 0.9), (0.62, 0.6), (0.4, 0.3), (0.26, 0.0)),
    )
    cloth = kit.patterned(period=0.34, split=0.42)
    kit.fill(skirt, cloth, form="cloth", relief=0.06)
    for x in (-0.3, 0.02, 0.32):
        kit.stroke(
            curve((x * 0.6, 0.1), (x * 0.9, 0.4), (x * 1.1, 0.6), (x * 1.3, 0.88)),
            0.018,
            kit.solid((60, 60, 66)),
            relief=0,
        )
    top = join(
        curve((-0.2, -0.9), (-0.18, -0.6), (0.18, -0.6), (0.2, -0.9)),
        (0.38, -0.9),
        curve((0.38, -0.6), (0.36, -0.3), (0.28, -0.2), (0.28, 0.06)),
        curve((-0.28, 0.06), (-0.28, -0.2), (-0.36, -0.3), (-0.38, -0.6)),
        (-0.38, -0.9),
    )
    kit.fill(top, cloth, form="cloth", relief=0.05)
    kit.stroke(curve((-0.2, -0.9), (-0.18, -0.6), (0.18, -0.6), (0.2, -0.9)), 0.07, kit.trim)
    kit.stroke(curve((-0.7, 0.9), (-0.4, 1.0), (0.4, 1.0), (0.7, 0.9)), 0.09, kit.trim)
    width = (0.08, 0.2, 0.08)[kit.variant]
    kit.fill(rounded(-0.29, 0.02 - width / 2, 0.29, 0.02 + width / 2, 0.03), kit.trim)
    if kit.variant == 2:
        for side in (-1, 1):
            kit.fill(join((0, 0.02), (side * 0.24, -0.1), (side * 0.24, 0.14)), kit.trim, relief=0.02)
            kit.stroke(join((0, 0.04), (side * 0.1, 0.3)), 0.05, kit.trim)
    kit.mark(0, 0.5, 0.42)


def draw_cap(kit: Kit) -> None:
    length = (0.34, 0.48, 0.62)[kit.variant]
    crown = join(
        curve((-0.92, 0.36), (-0.92, -0.6), (-0.5, -0.84), (-0.12, -0.84)),
        curve((-0.12, -0.84), (0.4, -0.84), (0.54, -0.24), (0.5, 0.32)),
        curve((0.5, 0.32), (0.1, 0.48), (-0.5, 0.5), (-0.92, 0.36)),
    )
    kit.fill(crown, kit.patterned(period=0.36, split=-0.04), form="ball", relief=0.07)
    kit.stroke(curve((-0.14, -0.84), (0.2, -0.6), (0.28, 0.0), (0.24, 0.4)), 0.024, kit.solid((50, 50, 56)), relief=0)
    tip = 0.38 + length
    brim = join(
        curve((-0.12, 0.44), (0.1, 0.22), (0.3, 0.15), (0.48, 0.15)),
        curve((0.48, 0.15), (0.62 + length * 0.3, 0.2), (tip, 0.34), (tip, 0.54)),
        curve((tip, 0.54), (tip - 0.2, 0.68), (0.2, 0.4), (-0.12, 0.44)),
    )
    kit.fill(brim, kit.trim, form="flat", relief=0.05)
    kit.disc(-0.12, -0.86, 0.09, kit.trim)
    kit.mark(-0.3, -0.16, 0.5)


def draw_sneaker(kit: Kit) -> None:
    kit.fill(ellipse(-0.46, -0.68, 0.36, 0.13), kit.solid(INK))
    upper = join(
        curve((-0.88, 0.5), (-0.9, 0.1), (-0.84, -0.3), (-0.84, -0.68)),
        curve((-0.84, -0.68), (-0.6, -0.56), (-0.4, -0.56), (-0.1, -0.7)),
        curve((-0.1, -0.7), (0.0, -0.3), (0.2, -0.1), (0.5, -0.02)),
        curve((0.5, -0.02), (0.86, 0.04), (0.96, 0.2), (0.96, 0.5)),
    )
    kit.fill(upper, kit.patterned(period=0.34, split=0.08), form="flat", relief=0.09)
    toe = join(
        curve((0.96, 0.5), (0.96, 0.2), (0.84, 0.06), (0.66, 0.02)),
        curve((0.66, 0.02), (0.56, 0.16), (0.54, 0.36), (0.56, 0.5)),
    )
    kit.fill(toe, kit.trim, relief=0.05)
    kit.stroke(curve((-0.84, -0.68), (-0.6, -0.56), (-0.4, -0.56), (-0.1, -0.7)), 0.08, kit.trim)
    for step in range(5):
        x, y = -0.05 + step * 0.125, -0.48 + step * 0.125
        kit.stroke(join((x - 0.13, y + 0.13), (x + 0.07, y - 0.02)), 0.055, kit.solid(PAPER))
    sole = join(
        curve((-0.94, 0.46), (-0.96, 0.8), (-0.94, 0.8), (-0.8, 0.8)),
        curve((0.7, 0.8), (0.98, 0.8), (1.02, 0.66), (1.0, 0.44)),
    )
    kit.fill(sole, kit.trim, relief=0.05)
    for index in range(kit.variant + 2):
        x = -0.7 + index * 0.16
        kit.stroke(join((x - 0.03, 0.7), (x + 0.05, 0.56)), 0.065, kit.plain, relief=0)
    kit.mark(-0.42, -0.04, 0.44)


def draw_boot(kit: Kit) -> None:
    heel = (0.12, 0.26, 0.42)[kit.variant]
    floor, arch = 0.96, 0.96 - heel
    leg = join(
        (-0.56, -0.94),
        (0.16, -0.94),
        curve((0.16, -0.94), (0.14, -0.4), (0.1, -0.1), (0.3, 0.1 + (0.42 - heel) * 0.3)),
        curve((0.3, 0.1 + (0.42 - heel) * 0.3), (0.7, 0.3), (0.9, 0.6), (0.9, floor - 0.08)),
        curve((0.9, floor - 0.08), (0.5, floor - 0.06), (0.2, arch + 0.1), (0.0, arch)),
        (-0.6, arch),
        curve((-0.6, arch), (-0.66, 0.1), (-0.54, -0.4), (-0.56, -0.94)),
    )
    kit.fill(
        join((-0.6, arch - 0.04), (-0.12, arch - 0.04), (-0.22, floor), (-0.56, floor)),
        kit.trim,
        form="tube",
        relief=0.03,
    )
    kit.fill(leg, kit.patterned(period=0.34, split=0.12), form="tube", relief=0.09)
    kit.stroke(curve((0.9, floor - 0.04), (0.5, floor - 0.02), (0.2, arch + 0.1), (0.0, arch)), 0.08, kit.solid(RUBBER))
    kit.stroke(join((0.0, arch), (-0.6, arch)), 0.07, kit.solid(RUBBER))
    kit.fill(rounded(-0.6, -1.0, 0.2, -0.8, 0.08), kit.trim, form="tube", relief=0.04)
    kit.mark(-0.2, -0.3, 0.42)


def draw_backpack(kit: Kit) -> None:
    kit.stroke(ellipse(0, -0.82, 0.2, 0.16, start=180, end=360), 0.09, kit.trim)
    for side in (-1, 1):
        kit.fill(
            rounded(min(side * 0.9, side * 0.6), 0.2, max(side * 0.9, side * 0.6), 0.86, 0.14),
            kit.trim,
            form="tube",
            relief=0.05,
        )
    body = join(
        curve((-0.72, 0.8), (-0.76, -0.2), (-0.74, -0.86), (-0.36, -0.86)),
        curve((0.36, -0.86), (0.74, -0.86), (0.76, -0.2), (0.72, 0.8)),
        curve((0.72, 0.8), (0.7, 1.0), (-0.7, 1.0), (-0.72, 0.8)),
    )
    kit.fill(body, kit.patterned(period=0.36, split=0.06), form="flat", relief=0.1)
    kit.stroke(curve((-0.66, -0.3), (-0.6, -0.74), (0.6, -0.74), (0.66, -0.3)), 0.045, kit.trim, relief=0)
    count = kit.variant + 1
    width = 1.16 / count - 0.06
    for index in range(count):
        x = -0.58 + index * 1.16 / count + 0.03
        kit.fill(rounded(x, 0.44, x + width, 0.88, 0.08), kit.trim, form="flat", relief=0.05)
        kit.stroke(join((x + 0.08, 0.54), (x + width - 0.08, 0.54)), 0.03, kit.plain, relief=0)
    kit.mark(0, -0.1, 0.48)


def draw_suitcase(kit: Kit) -> None:
    for side in (-1, 1):
        kit.stroke(join((side * 0.22, -0.6), (side * 0.22, -0.94)), 0.05, kit.solid(STEEL))
        kit.disc(side * 0.46, 0.92, 0.09, kit.solid(RUBBER))
    kit.stroke(join((-0.24, -0.94), (0.24, -0.94)), 0.1, kit.solid(RUBBER))
    kit.fill(rounded(-0.76, -0.66, 0.76, 0.88, 0.16), kit.patterned(period=0.4, split=0.1), form="flat", relief=0.09)
    width = (0.08, 0.15, 0.23)[kit.variant]
    for side in (-1, 1):
        kit.fill(rounded(side * 0.53 - width / 2, -0.66, side * 0.53 + width / 2, 0.88, 0.01), kit.trim, form="flat")
        kit.fill(rounded(side * 0.53 - 0.07, -0.08, side * 0.53 + 0.07, 0.06, 0.02), kit.solid(BRASS, "metallic"))
    for x, y in ((-0.68, -0.58), (0.68, -0.58), (-0.68, 0.8), (0.68, 0.8)):
        kit.disc(x, y, 0.11, kit.trim)
    kit.mark(0, 0.1, 0.48)


WEAR_KINDS = {
    "t-shirt": Kind(
        draw=draw_tshirt,
        category="clothing",
        details=("a round neck", "a v neck", "a square neck"),
        materials=SOFT,
        price=(12, 35),
    ),
    "cardigan": Kind(
        draw=draw_cardigan,
        category="clothing",
        details=("three buttons", "four buttons", "five buttons"),
        materials=SOFT,
        price=(30, 90),
    ),
    "dress": Kind(
        draw=draw_dress,
        category="clothing",
        details=("a thin belt", "a wide belt", "a bow"),
        materials=SOFT,
        price=(35, 140),
    ),
    "cap": Kind(
        draw=draw_cap,
        category="clothing",
        details=("a short brim", "a medium brim", "a long brim"),
        materials=SOFT,
        price=(10, 30),
    ),
    "sneaker": Kind(
        draw=draw_sneaker,
        category="shoes",
        details=("two bars", "three bars", "four bars"),
        materials=SOFT,
        price=(45, 130),
    ),
    "boot": Kind(
        draw=draw_boot,
        category="shoes",
        details=("a low heel", "a medium heel", "a high heel"),
        materials=SOFT,
        price=(60, 190),
    ),
    "backpack": Kind(
        draw=draw_backpack,
        category="bags",
        details=("one pocket", "two pockets", "three pockets"),
        materials=SOFT,
        price=(35, 120),
    ),
    "suitcase": Kind(
        draw=draw_suitcase,
        category="bags",
        details=("thin straps", "medium straps", "wide straps"),
        materials=HARD,
        price=(60, 220),
    ),
}
