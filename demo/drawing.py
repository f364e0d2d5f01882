"""Anti-aliased drawing on numpy arrays: outlines, shaded surfaces, patterns, shadow, JPEG noise.

A product is drawn as a stack of parts on a transparent `Canvas`. Parts are given in product units (x right, y down,
the whole object within about [-1, 1]), so a view's rotation and scale are applied to the outlines, never to pixels.
Each part is rasterised at four times the resolution inside its own bounding box; colour and shading are computed at the
final one.
"""

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Points = np.ndarray
Colour = tuple[int, int, int]
Pen = Callable[[ImageDraw.ImageDraw, Points], None]
"""Draws a part's mask, given where in the picture the mask's corner lies."""

SUPERSAMPLE = 4
_SMALL_PART_PX = 20
"""Below this side a part gets no relief: the blur would cost more than it shows."""
_GLYPH_PX = 128


def ellipse(
    cx: float, cy: float, rx: float, ry: float | None = None, *, start: float = 0.0, end: float = 360.0
) -> Points:
    """Points on an ellipse from angle `start` to `end` in degrees; 0 is right, 90 is down."""
    angles = np.radians(np.linspace(start, end, 48))
    return np.stack([cx + rx * np.cos(angles), cy + (rx if ry is None else ry) * np.sin(angles)], axis=1)


def rounded(x0: float, y0: float, x1: float, y1: float, radius: float) -> Points:
    """An upright rectangle with rounded corners."""
    corners = [
        (x1 - radius, y0 + radius, -90),
        (x1 - radius, y1 - radius, 0),
        (x0 + radius, y1 - radius, 90),
        (x0 + radius, y0 + radius, 180),
    ]
    angles = np.linspace(0, 90, 9)
    parts = []
    for cx, cy, start in corners:
        turn = np.radians(angles + start)
        parts.append(np.stack([cx + radius * np.cos(turn), cy + radius * np.sin(turn)], axis=1))
    return np.concatenate(parts)


def curve(*control: tuple[float, float]) -> Points:
    """A cubic Bézier curve through the first and last of four control points."""
    t = np.linspace(0, 1, 20)[:, None]
    p0, p1, p2, p3 = (np.asarray(point, dtype=float) for point in control)
    return (1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3


def smooth(*points: tuple[float, float], closed: bool = True) -> Points:
    """A Catmull-Rom spline through the points."""
    knots = np.asarray(points, dtype=float)
    padded = np.concatenate([knots[-1:], knots, knots[:2]] if closed else [knots[:1], knots, knots[-1:]])
    t = np.linspace(0, 1, 10, endpoint=False)[:, None]
    pieces = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        bend = 2 * p0 - 5 * p1 + 4 * p2 - p3
        pieces.append(0.5 * (2 * p1 + (p2 - p0) * t + bend * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3))
    return np.concatenate(pieces if closed else [*pieces, knots[-1:]])


def join(*parts: Points | tuple[float, float]) -> Points:
    """One outline from curves and single corner points, in order."""
    return np.concatenate([np.atleast_2d(np.asarray(part, dtype=float)) for part in parts])


def mirrored(half: Points, *, axis: float = 0.0) -> Points:
    """A closed outline from its left half, listed from top to bottom, reflected about x = `axis`."""
    return np.concatenate([half, (half * [-1, 1] + [2 * axis, 0])[::-1]])


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What a part is made of: colours in 0..255, an optional two-colour pattern, the look of the material."""

    colour: Colour
    second_colour: Colour | None = None
    pattern: str = "plain"
    period: float = 0.36
    """Repeat of the pattern in product units."""
    split: float = 0.1
    """Where a two-tone surface changes colour (y)."""
    bend: tuple[float, float, float] | None = None
    """(centre x, half width, sag): the pattern's rows hang by `sag` in the middle, as on a cylinder seen from above."""
    material: str = "matte"


def _ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """0 below, 1 above the zero of a signed distance, with a transition of one pixel."""
    return np.clip(distance / width + 0.5, 0, 1)


def _triangle(x: np.ndarray) -> np.ndarray:
    """A wave of period 1 between -1 and 1."""
    return np.abs((x - np.floor(x)) * 4 - 2) - 1


def _pattern_weight(surface: Surface, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
    """Share of the second colour at product coordinates (u, v); `pixel` is the width of one pixel in those units."""
    if surface.bend:
        centre, half_width, sag = surface.bend
        v = v - sag * (1 - np.square((u - centre) / half_width))
    period = surface.period
    edge = pixel / period
    x, y = u / period, v / period
    match surface.pattern:
        case "striped":
            return _ramp(_triangle(y) * 0.25 - 0.03, edge)
        case "dotted":
            row = np.floor(y)
            x = x + 0.5 * (row % 2)
            return _ramp(0.335 - np.hypot(x - np.floor(x) - 0.5, y - row - 0.5), edge)
        case "checked":
            return np.maximum(_ramp(_triangle(x) * 0.25 - 0.13, edge), _ramp(_triangle(y) * 0.25 - 0.13, edge))
        case "zigzag":
            return _ramp(_triangle(y / 1.15 + 0.33 * _triangle(x * 0.8)) * 0.25 - 0.03, edge * 1.3)
        case "two-tone":
            return _ramp(v - surface.split, pixel)
    raise ValueError(f"pattern: {surface.pattern!r} is not one of striped, dotted, checked, zigzag, two-tone")


def _form_shade(form: str, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Light on a form whose bounding box is s, t in [-1, 1], lit from the left and above; about 1 on average."""
    match form:
        case "flat":
            return 1.03 - 0.07 * t - 0.03 * s
        case "tube":
            return 1.10 - 0.30 * np.square(s + 0.3) - 0.03 * t
        case "ball":
            return 1.13 - 0.17 * (np.square(s + 0.3) + np.square(t + 0.35))
        case "cloth":
            folds = _triangle(0.9 * s + 0.45 * t + 0.2) * np.clip(0.6 + 0.5 * t, 0, 1)
            return 1.03 - 0.05 * t - 0.03 * s + 0.035 * folds
    raise ValueError(f"form: {form!r} is not one of flat, tube, ball, cloth")


def _gloss(form: str, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Where a polished form reflects the lamp, 0..1."""
    match form:
        case "tube":
            spot = 1 - np.square((s + 0.55) / 0.17) - 0.6 * np.square(t)
        case "ball":
            spot = 1 - np.square((s + 0.42) / 0.30) - np.square((t + 0.48) / 0.24)
        case "cloth":
            return 0.4 * np.square(np.maximum(1 - np.square((s + 0.35 * t + 0.35) / 0.5), 0))
        case _:
            return 0.6 * np.clip(1.6 - np.abs(s + 0.5 * t + 0.42) / 0.10, 0, 1) * np.clip(0.55 - 0.5 * t, 0, 1)
    return np.square(np.maximum(spot, 0))


class Canvas:
    """A transparent square on which parts are painted; later parts cover earlier ones.

    Args:
        size: side in pixels.
        angle: rotation of the product in degrees, clockwise.
        scale: pixels per product unit.
        offset: where the product's origin lies, in pixels from the top left corner.
        light: unit vector in the image towards the light (y down).
    """

    def __init__(
        self, size: int, *, angle: float, scale: float, offset: tuple[float, float], light: tuple[float, float]
    ) -> None:
        turn = np.radians(angle)
        cos, sin = float(np.cos(turn)), float(np.sin(turn))
        self.size = size
        self._forward = np.array([[cos, sin], [-sin, cos]]) * scale
        self._inverse = np.array([[cos, -sin], [sin, cos]]) / scale
        self._offset = np.asarray(offset, dtype=float)
        self._scale = scale
        self._light = light
        # Colour planes first: arithmetic on [3, H, W] is about twice as fast as on [H, W, 3].
        self.planes = np.zeros((3, size, size), np.float32)
        """Red, green and blue, premultiplied by `alpha`, 0..255."""
        self.alpha = np.zeros((size, size), np.float32)

    def fill(
        self,
        outline: Points,
        surface: Surface,
        *,
        form: str = "flat",
        relief: float = 0.0,
        holes: tuple[Points, ...] = (),
    ) -> None:
        """Paint a closed outline; `relief` is the width of the soft bevel along its edge, in product units."""
        outlines = [(self._to_pixels(outline), 255), *((self._to_pixels(hole), 0) for hole in holes)]

        def draw(pen: ImageDraw.ImageDraw, corner: np.ndarray) -> None:
            for points, value in outlines:
                pen.polygon(((points - corner) * SUPERSAMPLE).ravel().tolist(), fill=value)

        self._paint(draw, outline, 0.0, surface, form, relief)

    def stroke(
        self, line: Points, width: float, surface: Surface, *, form: str = "flat", relief: float | None = None
    ) -> None:
        """Paint a line of the given width with round ends and joints, raised like a cord unless `relief` is 0."""
        pixels = self._to_pixels(line)
        thickness = max(1, round(width * self._scale * SUPERSAMPLE))

        def draw(pen: ImageDraw.ImageDraw, corner: np.ndarray) -> None:
            points = (pixels - corner) * SUPERSAMPLE
            pen.line(points.ravel().tolist(), fill=255, width=thickness, joint="curve")
            for x, y in (points[0], points[-1]):
                pen.ellipse(
                    (x - thickness / 2, y - thickness / 2, x + thickness / 2, y + thickness / 2),
                    fill=255,
                )

        self._paint(draw, line, width / 2, surface, form, width * 0.35 if relief is None else relief)

    def letter(self, character: str, centre: tuple[float, float], height: float, colour: Colour) -> None:
        """Print a capital letter of the given height, upright on the product."""
        glyph = _glyph(character)
        corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * (
            height * glyph.width / glyph.height,
            height,
        )
        box = self._box(self._to_pixels(corners + centre), 1)
        if box is None:
            return
        rows, columns = box
        # The affine map takes a supersampled target pixel back to the glyph's own pixels.
        back = self._inverse * (glyph.height / height)
        start = (np.array([columns.start, rows.start]) - self._offset) @ self._inverse - centre
        start = start * (glyph.height / height) + (glyph.width / 2, glyph.height / 2)
        step = back / SUPERSAMPLE
        size = ((columns.stop - columns.start) * SUPERSAMPLE, (rows.stop - rows.start) * SUPERSAMPLE)
        data = (step[0, 0], step[1, 0], start[0], step[0, 1], step[1, 1], start[1])
        mask = glyph.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR).reduce(SUPERSAMPLE)
        self._blend(box, np.asarray(mask, np.float32) / 255, _plane(colour))

    def _to_pixels(self, points: Points) -> Points:
        return np.asarray(points, dtype=float) @ self._forward + self._offset

    def _box(self, pixels: Points, margin: float) -> tuple[slice, slice] | None:
        low = np.clip(np.floor(pixels.min(0) - margin), 0, self.size).astype(int)
        high = np.clip(np.ceil(pixels.max(0) + margin), 0, self.size).astype(int)
        return None if (high <= low).any() else (slice(low[1], high[1]), slice(low[0], high[0]))

    def _paint(self, draw: Pen, outline: Points, reach: float, surface: Surface, form: str, relief: float) -> None:
        blur = relief * self._scale
        box = self._box(self._to_pixels(outline), reach * self._scale + 1 + 2 * blur)
        if box is None:
            return
        rows, columns = box
        corner = np.array([columns.start, rows.start])
        width, height = columns.stop - columns.start, rows.stop - rows.start
        mask = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE))
        draw(ImageDraw.Draw(mask), corner)
        mask = mask.reduce(SUPERSAMPLE)
        cover = np.asarray(mask, np.float32) / 255

        x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] + np.float32(0.5 - self._offset[0])
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - self._offset[1])
        back = self._inverse.astype(np.float32)
        u, v = x * back[0, 0] + y * back[1, 0], x * back[0, 1] + y * back[1, 1]

        low, high = outline.min(0) - reach, outline.max(0) + reach
        centre, half = (low + high) / 2, np.maximum((high - low) / 2, 1e-3)
        side = -1.0 if self._light[0] > 0 else 1.0
        s = (u - np.float32(centre[0])) * np.float32(side / half[0])
        t = (v - np.float32(centre[1])) * np.float32(1 / half[1])

        shade = _form_shade(form, s, t)
        if surface.material == "metallic":
            shade = shade * (1.0 + 0.20 * _triangle(0.62 * s + (0.0 if form == "tube" else 0.3 * t) + 0.18))
        elif surface.material == "woven":
            shade = shade * (1.0 + 0.055 * _triangle(u * 17) * _triangle(v * 17))
        if blur >= 1 and max(width, height) >= _SMALL_PART_PX:
            shade = shade * self._relief(mask, blur, 0.34 if surface.material == "matte" else 0.42)
        colour = _plane(surface.colour)
        if surface.pattern != "plain" and surface.second_colour is not None:
            weight = _pattern_weight(surface, u, v, 1 / self._scale)
            colour = colour + weight * (_plane(surface.second_colour) - colour)
        rgb = shade * (colour * np.float32(0.96) + np.float32(6.0))
        if surface.material in ("glossy", "metallic"):
            shine = _gloss(form, s, t) * np.float32(0.55 if surface.material == "glossy" else 0.32)
            rgb = rgb + (255 - rgb) * shine
        self._blend(box, cover, np.clip(rgb, 0, 255, out=rgb))

    def _relief(self, mask: Image.Image, blur: float, strength: float) -> np.ndarray:
        """Bevel from the blurred mask taken as a height: edges facing the light brighten, the others darken."""
        blurred = mask.filter(ImageFilter.BoxBlur(blur)).filter(ImageFilter.BoxBlur(blur * 0.6))
        height = np.asarray(blurred, np.float32) / 255
        slope = np.zeros_like(height)
        slope[:, 1:-1] -= (height[:, 2:] - height[:, :-2]) * np.float32(self._light[0])
        slope[1:-1] -= (height[2:] - height[:-2]) * np.float32(self._light[1])
        return np.float32(0.86) + np.float32(0.15) * height + slope * np.float32(strength * blur)

    def _blend(self, box: tuple[slice, slice], cover: np.ndarray, rgb: np.ndarray) -> None:
        keep = 1 - cover
        part = self.planes[:, *box]
        part *= keep
        part += rgb * cover
        self.alpha[box] = self.alpha[box] * keep + cover

    def over(self, backdrop: np.ndarray, *, shadow: float) -> np.ndarray:
        """The canvas on a backdrop [3, size, size], with a soft shadow of the given strength away from the light."""
        solid = Image.fromarray((self.alpha * 255).astype(np.uint8))
        unit = self.size / 256
        near = self._cast(solid, 5 * unit, 4 * unit) * np.float32(shadow)
        far = self._cast(solid, 16 * unit, 13 * unit) * np.float32(shadow * 0.7)
        light = (1 - near) * (1 - far) * (1 - self.alpha)
        return backdrop * light + self.planes

    def _cast(self, solid: Image.Image, blur: float, distance: float) -> np.ndarray:
        small = solid.reduce(4)
        small = small.filter(ImageFilter.BoxBlur(blur / 4)).filter(ImageFilter.BoxBlur(blur / 4))
        soft = small.resize(solid.size, Image.Resampling.BILINEAR)
        shift = round(-self._light[0] * distance), round(-self._light[1] * distance)
        return np.asarray(ImageChops.offset(soft, *shift), np.float32) / 255


def _plane(colour: Colour) -> np.ndarray:
    return np.asarray(colour, np.float32)[:, None, None]


@functools.cache
def _glyph(character: str) -> Image.Image:
    """A bold capital as a mask, cropped to its ink, about `_GLYPH_PX` tall."""
    font = ImageFont.load_default(_GLYPH_PX * 1.35)
    page = Image.new("L", (3 * _GLYPH_PX, 3 * _GLYPH_PX))
    ImageDraw.Draw(page).text(
        (_GLYPH_PX, _GLYPH_PX // 2), character.upper(), fill=255, font=font, stroke_width=_GLYPH_PX // 16
    )
    return page.crop(page.getbbox())


def jpeg_noise(image: Image.Image, quality: int) -> Image.Image:
    """The image after one round of JPEG compression."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")
