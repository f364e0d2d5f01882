"""Backdrops for the product photographs: muted, so that the product owns the saturated colours of the picture."""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

TONES = (
    (226, 223, 217),
    (205, 211, 216),
    (216, 206, 192),
    (196, 206, 196),
    (214, 202, 206),
    (172, 182, 194),
    (150, 160, 168),
    (198, 172, 154),
)
VARIANTS = 4
_SEED = 20_240_607


def backdrop(style: str, variant: int, size: int, *, shift: tuple[float, float], flip: bool) -> np.ndarray:
    """A [3, size, size] float32 view (0..255) into the style's larger, cached texture; `shift` in [0, 1] moves it."""
    texture = _texture(style, variant % VARIANTS, size)
    room = texture.shape[1] - size
    top, left = round(shift[1] * room), round(shift[0] * room)
    view = texture[:, top : top + size, left : left + size]
    return (view[:, :, ::-1] if flip else view).astype(np.float32)


@functools.cache
def _texture(style: str, variant: int, size: int) -> np.ndarray:
    side = size + size // 4
    rng = np.random.default_rng([_SEED, STYLES.index(style), variant])
    tone = np.array(TONES[int(rng.integers(len(TONES)))], np.float32)
    drawn = _PAINTERS[style](rng, tone, side)
    return np.clip(drawn, 0, 255).astype(np.uint8).transpose(2, 0, 1).copy()


def _axes(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Column x and row y coordinates in [0, 1]."""
    line = np.linspace(0, 1, side, dtype=np.float32)
    return line[None, :], line[:, None]


def _clouds(rng: np.random.Generator, side: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise in about [-1, 1] with the given number of cells down and across."""
    coarse = Image.fromarray(rng.uniform(-1, 1, cells).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def _sweep(rng: np.random.Generator, tone: np.ndarray, side: int) -> np.ndarray:
    x, y = _axes(side)
    horizon = 0.6 + 0.1 * float(rng.uniform(-1, 1))
    floor = np.clip((y - horizon) / 0.1 + 0.5, 0, 1)
    light = 1.05 - 0.20 * np.square(x - 0.4) - 0.16 * np.square(y - 0.35) - 0.07 * floor
    return light[..., None] * tone


def _gradient(rng: np.random.Generator, tone: np.ndarray, side: int) -> np.ndarray:
    x, y = _axes(side)
    other = np.array(TONES[int(rng.integers(len(TONES)))], np.float32) * 0.88
    mix = np.clip(0.5 + (x - 0.5) * float(rng.uniform(-0.6, 0.6)) + (y - 0.5) * 0.9, 0, 1)[..., None]
    return tone * 1.06 * (1 - mix) + other * mix


def _wood(rng: np.random.Generator, tone: np.ndarray, side: int) -> np.ndarray:
    base = np.array([(206, 180, 148), (186, 178, 168), (168, 142, 116), (222, 204, 178)][int(rng.integers(4))])
    planks = int(rng.integers(4, 6))
    _, y = _axes(side)
    plank = np.floor(y * planks).astype(int)
    grain = _clouds(rng, side, (70, 5)) * 0.035 + _clouds(rng, side, (26, 3)) * 0.03
    tint = rng.uniform(-0.055, 0.055, planks + 1).astype(np.float32)[plank]
    gap = np.abs(y * planks - np.round(y * planks))
    groove = np.clip(1 - gap / 0.02, 0, 1) * 0.28
    return (1 + grain + tint - groove)[..., None] * base


def _tiles(rng: np.random.Generator, tone: np.ndarray, side: int) -> np.ndarray:
    x, y = _axes(side)
    count = int(rng.integers(4, 6))
    column, row = np.floor(x * count).astype(int), np.floor(y * count).astype(int)
    tint = rng.uniform(-0.03, 0.03, (count + 1, count + 1)).astype(np.float32)[row, column]
    fx, fy = x * count - column, y * count - row
    edge = np.minimum(np.minimum(fx, 1 - fx), np.minimum(fy, 1 - fy))
    grout = np.clip(1.6 - edge / 0.022, 0, 1)[..., None]
    glaze = (1.02 + tint + 0.05 * (0.5 - fy) + 0.03 * (0.5 - fx))[..., None]
    return tone * glaze * (1 - grout) + (tone * 0.78 + 8) * grout


def _bokeh(rng: np.random.Generator, tone: np.ndarray, side: int) -> np.ndarray:
    x, y = _axes(side)
    base = ((0.80 - 0.15 * y + 0.06 * x)[..., None] * tone).astype(np.uint8)
    page = Image.fromarray(base)
    lights = Image.new("L", (side, side))
    pen = ImageDraw.Draw(lights)
    for _ in range(16):
        cx, cy = (rng.uniform(0, 1, 2) * side).tolist()
        radius = float(rng.uniform(0.04, 0.11)) * side
        pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=int(rng.integers(50, 130)))
    lights = lights.filter(ImageFilter.GaussianBlur(side / 90))
    page.paste((255, 248, 232), mask=lights)
    return np.asarray(page.filter(ImageFilter.GaussianBlur(side / 110)), np.float32)


def _marble(rng: np.random.Generator, tone: np.ndarray, side: int) -> np.ndarray:
    x, y = _axes(side)
    warp = _clouds(rng, side, (4, 4)) * 0.32 + _clouds(rng, side, (16, 16)) * 0.05
    wave = x * 1.9 + y * 1.3 + warp
    distance = np.abs(wave - np.round(wave))
    fade = 0.6 + 0.4 * _clouds(rng, side, (6, 6))
    vein = (np.clip(1 - distance / 0.025, 0, 1) + 0.6 * np.clip(1 - distance / 0.16, 0, 1) ** 2) * fade
    body = 1 - 0.10 * vein - 0.03 * _clouds(rng, side, (7, 7))
    return body[..., None] * (tone * 0.4 + 138)


def _plaster(rng: np.random.Generator, tone: np.ndarray, side: int) -> np.ndarray:
    grain = (
        _clouds(rng, side, (8, 8)) * 0.03 + _clouds(rng, side, (40, 40)) * 0.02 + _clouds(rng, side, (130, 130)) * 0.015
    )
    x, y = _axes(side)
    return (0.96 + grain + 0.06 * (0.5 - x) + 0.05 * (0.5 - y))[..., None] * tone


def _linen(rng: np.random.Generator, tone: np.ndarray, side: int) -> np.ndarray:
    threads = 0.022 * _clouds(rng, side, (side // 3, 12)) + 0.022 * _clouds(rng, side, (12, side // 3))
    soft = 0.05 * _clouds(rng, side, (4, 4))
    return (0.98 + threads + soft)[..., None] * tone


_PAINTERS = {
    "sweep": _sweep,
    "gradient": _gradient,
    "wood": _wood,
    "tiles": _tiles,
    "bokeh": _bokeh,
    "marble": _marble,
    "plaster": _plaster,
    "linen": _linen,
}
STYLES = tuple(_PAINTERS)
