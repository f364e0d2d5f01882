"""Ink for the drawn pages: colours, cached text, justified paragraphs, company marks, stamps and the scanner's traces.

Text is drawn once a string, kept as a mask and pasted: drawing it anew on every page would take most of the time.
Random numbers are integers throughout, so that pages are equal on every machine.
"""

import math
import random
import re
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]

PALETTE: dict[str, RGB] = {
    "red": (204, 32, 40),
    "orange": (240, 122, 20),
    "yellow": (246, 202, 24),
    "green": (38, 140, 66),
    "blue": (30, 86, 190),
    "purple": (120, 56, 172),
    "pink": (238, 112, 168),
    "black": (38, 40, 46),
}
TEXT: RGB = (52, 54, 60)
FAINT: RGB = (128, 131, 138)
RULE: RGB = (196, 199, 205)
WHITE: RGB = (255, 255, 255)
_SUPERSAMPLE = 4
_PIECES = re.compile(r"[A-Za-z]+|.")


def mix(colour: RGB, other: RGB, share: float) -> RGB:
    """`colour` with `share` of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def readable_on(colour: RGB) -> RGB:
    """White or dark, whichever reads on `colour`."""
    return WHITE if 299 * colour[0] + 587 * colour[1] + 114 * colour[2] < 165_000 else TEXT


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size given, Pillow returns its bundled scalable font
    return font


@lru_cache(maxsize=4096)
def _piece(text: str, size: float, bold: bool) -> tuple[Image.Image, int, int, float]:
    """A word or a single digit, drawn large: mask, its offset from (left, baseline), its advance."""
    font, stroke = _font(size), size / (30 if bold else 90)
    left, top, right, bottom = font.getbbox(text, stroke_width=stroke, anchor="ls")
    left, top = math.floor(left) - 1, math.floor(top) - 1
    mask = Image.new("L", (math.ceil(right) + 1 - left, math.ceil(bottom) + 1 - top))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font, anchor="ls", stroke_width=stroke)
    return mask, left, top, font.getlength(text)


@lru_cache(maxsize=8192)
def _strip(text: str, size: float, bold: bool) -> tuple[Image.Image, int, int, float]:
    """Mask of the text, its offset from (left, baseline), its advance in pixels."""
    # Drawn large and reduced: hinting at 9 pixels would swallow spaces and make the letters uneven. Put together from
    # words and digits, because numbers are new on every page and drawing glyphs is what takes long.
    scale = _SUPERSAMPLE
    pieces = [_piece(part, size * scale, bold) for part in _PIECES.findall(text)]
    above, below = math.ceil(size * 1.1), math.ceil(size * 0.4)
    advance = sum(piece[3] for piece in pieces)
    mask = Image.new("L", ((math.ceil(advance / scale) + 4) * scale, (above + below) * scale))
    x = 2.0 * scale
    for glyphs, left, top, step in pieces:
        mask.paste(255, (round(x) + left, above * scale + top), glyphs)
        x += step
    # The scan's rotation softens small type; inking it a little heavier keeps it readable.
    mask = mask.reduce(scale).point([min(255, value * 4 // 3) for value in range(256)])
    return mask, -2, -above, advance / scale


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    return _strip(text, size, bold)[3]


def write(
    image: Image.Image,
    at: tuple[float, float],
    text: str,
    size: float,
    colour: RGB = TEXT,
    *,
    bold: bool = False,
    align: float = 0.0,
    fit: float | None = None,
) -> None:
    """Write one line with its baseline at `at`; `align` 0 left, 0.5 centred, 1 right; shrunk to `fit` pixels."""
    while fit is not None and size > 7 and text_width(text, size, bold=bold) > fit:
        size -= 1
    mask, left, top, advance = _strip(text, size, bold)
    image.paste(colour, (round(at[0] - align * advance) + left, round(at[1]) + top), mask)


def write_paragraph(
    image: Image.Image,
    at: tuple[float, float],
    sentences: tuple[str, ...],
    *,
    width: float,
    max_lines: int,
    size: float = 9,
    leading: float = 12.5,
    colour: RGB = TEXT,
) -> float:
    """Write as many whole sentences as fit, justified; returns the baseline that would come next."""
    lines: list[list[str]] = []
    for count in range(1, len(sentences) + 1):
        candidate = _wrap(" ".join(sentences[:count]), size, width)
        if len(candidate) > max_lines and lines:
            break
        lines = candidate
    space = text_width("n", size) * 0.5
    x0, y = at
    for index, words in enumerate(lines):
        gap = space
        if index < len(lines) - 1 and len(words) > 1:
            gap = (width - sum(text_width(word, size) for word in words)) / (len(words) - 1)
        x = x0
        for word in words:
            write(image, (x, y), word, size, colour)
            x += text_width(word, size) + gap
        y += leading
    return y


@lru_cache(maxsize=2048)
def _wrap(text: str, size: float, width: float) -> list[list[str]]:
    lines: list[list[str]] = [[]]
    used, space = 0.0, text_width("n", size) * 0.5
    for word in text.split():
        advance = text_width(word, size)
        if lines[-1] and used + space + advance > width:
            lines.append([])
            used = 0.0
        used += advance + (space if lines[-1] else 0)
        lines[-1].append(word)
    return lines


def _polygon(shape: str, centre: float, radius: float) -> list[tuple[float, float]]:
    def ring(count: int, start: float, radii: tuple[float, ...]) -> list[tuple[float, float]]:
        angles = [math.radians(start + 360 * index / count) for index in range(count)]
        return [
            (
                centre + radius * radii[i % len(radii)] * math.cos(a),
                centre + radius * radii[i % len(radii)] * math.sin(a),
            )
            for i, a in enumerate(angles)
        ]

    if shape == "triangle":
        return [(x, y + radius * 0.2) for x, y in ring(3, -90, (1.12,))]
    if shape == "diamond":
        return ring(4, -90, (1.08, 0.78))
    if shape == "square":
        return ring(4, -45, (1.2,))
    if shape == "star":
        return ring(10, -90, (1.08, 0.45))
    if shape == "cross":
        thin, wide = radius * 0.36, radius
        corners = [(-thin, -wide), (thin, -wide), (thin, -thin), (wide, -thin), (wide, thin), (thin, thin)]
        return [(centre + x, centre + y) for x, y in corners + [(-x, -y) for x, y in corners]]
    if shape == "heart":
        steps = [2 * math.pi * index / 60 for index in range(60)]
        return [
            (
                centre + radius * math.sin(t) ** 3,
                centre
                - radius
                * (0.08 + (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16),
            )
            for t in steps
        ]
    return ring(72, 0, (1.0,))


def _shape(shape: str, canvas: int, radius: float) -> Image.Image:
    mask, centre = Image.new("L", (canvas, canvas)), canvas / 2
    draw = ImageDraw.Draw(mask)
    draw.polygon(_polygon(shape, centre, radius), fill=255)
    if shape == "moon":
        shift = radius * 0.62
        bite = [(x + shift, y - shift * 0.35) for x, y in _polygon("circle", centre, radius * 0.86)]
        draw.polygon(bite, fill=0)
    return mask


@lru_cache(maxsize=256)
def mark_mask(shape: str, style: str, size: int) -> Image.Image:
    """The company mark as a mask of `size` x `size` pixels."""
    canvas = size * _SUPERSAMPLE
    radius, stroke = canvas * 0.44, canvas * 0.085
    if style == "ringed":
        mask = _shape(shape, canvas, radius * 0.6)
        ImageDraw.Draw(mask).ellipse((2, 2, canvas - 3, canvas - 3), outline=255, width=round(stroke * 0.9))
    else:
        mask = _shape(shape, canvas, radius)
    if style == "hollow":
        inner = mask.filter(ImageFilter.GaussianBlur(stroke * 1.1)).point(lambda value: 255 * (value > 215))
        mask = ImageChops.subtract(mask, inner)
    elif style == "split":
        middle = canvas // 2
        ImageDraw.Draw(mask).rectangle((0, middle - stroke * 0.75, canvas, middle + stroke * 0.75), fill=0)
    return mask.reduce(_SUPERSAMPLE)


def draw_mark(image: Image.Image, at: tuple[float, float], shape: str, style: str, colour: RGB, size: int) -> None:
    """Draw the mark centred at `at`."""
    image.paste(colour, (round(at[0] - size / 2), round(at[1] - size / 2)), mark_mask(shape, style, size))


@lru_cache(maxsize=256)
def _stamp_mask(word: str, tilt: str, wear: int) -> Image.Image:
    """A stamp's ink: each word has a border of its own, as rubber stamps do."""
    scale = 3
    width, height = (124 * scale, 92 * scale) if word == "void" else (156 * scale, 60 * scale)
    mask = Image.new("L", (width, height))
    draw, edge, line = ImageDraw.Draw(mask), 2 * scale, 5 * scale
    frame = (edge, edge, width - edge, height - edge)
    if word == "paid":
        draw.rounded_rectangle(frame, radius=9 * scale, outline=255, width=line)
    elif word == "urgent":
        draw.rounded_rectangle(frame, radius=5 * scale, fill=255)
    elif word == "copy":
        draw.ellipse(frame, outline=255, width=line)
    elif word == "draft":
        draw.rectangle((edge, edge, width - edge, edge + line), fill=255)
        draw.rectangle((edge, height - edge - line, width - edge, height - edge), fill=255)
    else:
        side, half = (width - height) / 2, 20 * scale
        draw.ellipse((side + edge, edge, width - side - edge, height - edge), outline=255, width=line)
        draw.rectangle((0, height / 2 - half, width, height / 2 + half), fill=255)
    sizes = {"urgent": 38, "copy": 38, "draft": 44, "void": 36}
    font = _font(sizes.get(word, 46) * scale)
    ink = 0 if word in ("urgent", "void") else 255
    middle = (width / 2, height / 2)
    draw.text(middle, word.upper(), fill=ink, font=font, anchor="mm", stroke_width=scale * 1.2, stroke_fill=ink)
    angle = {"up": 14, "level": 0, "down": -14}[tilt]
    mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True).reduce(scale)
    rng = np.random.default_rng(wear)
    coarse = Image.fromarray(rng.integers(185, 256, (12, 20), dtype=np.uint8)).resize(
        mask.size, Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.integers(215, 256, (mask.height, mask.width), dtype=np.uint8))
    return ImageChops.multiply(ImageChops.multiply(mask, coarse), fine)


def draw_stamp(image: Image.Image, at: tuple[float, float], word: str, tilt: str, colour: RGB, wear: int) -> None:
    """Press the stamp with its centre at `at`; `wear` picks one of four patterns of worn ink."""
    mask = _stamp_mask(word, tilt, wear % 4)
    image.paste(colour, (round(at[0] - mask.width / 2), round(at[1] - mask.height / 2)), mask)


_GRAIN_DEPTH = 14


@cache
def _grain(index: int, width: int, height: int) -> Image.Image:
    """Fine noise and soft uneven light, as a picture of values around `_GRAIN_DEPTH`."""
    rng = np.random.default_rng(7000 + index)
    light = Image.fromarray(rng.integers(0, 256, (4, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = rng.integers(-4, 5, (height, width)) + rng.integers(-2, 3, (height, width))
    values = _GRAIN_DEPTH - 8 + np.asarray(light, dtype=np.int64) // 28 + fine
    return Image.merge("RGB", [Image.fromarray(values.clip(0, 255).astype(np.uint8))] * 3)


def scan(image: Image.Image, rng: random.Random) -> Image.Image:
    """The page as a scanner returns it: a little askew (at most 1.5 degrees), toned paper, grain."""
    backdrop = rng.randint(196, 226)
    angle = rng.randint(-150, 150) / 100
    shift = rng.randint(-4, 4), rng.randint(-4, 4)
    image = image.rotate(
        angle, Image.Resampling.BILINEAR, translate=shift, fillcolor=(backdrop, backdrop, backdrop + 3)
    )
    tone = rng.randint(240, 254)
    tones = (tone + 1, tone, tone - rng.randint(0, 12))
    black = rng.randint(0, 14)
    table = [black + value * (top - black) // 255 for top in tones for value in range(256)]
    image = image.point(table)
    return ImageChops.add(image, _grain(rng.randrange(6), *image.size), 1, -_GRAIN_DEPTH)
