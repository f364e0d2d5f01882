"""Bar, line and pie charts of a report: four things to tell apart, one of them picked out in the accent colour."""

import math

from PIL import Image, ImageDraw

from demo.document_ink import FAINT, RGB, RULE, WHITE, Box, mix, write

_SUPERSAMPLE = 3
_QUARTERS = ("Q1", "Q2", "Q3", "Q4")


def draw_chart(
    image: Image.Image, box: Box, chart: str, series: tuple[int, ...], *, highlight: int, colour: RGB, accent: RGB
) -> None:
    """Draw `series` into `box` as a "bar", "line" or "pie" chart; `highlight` counts from 1."""
    x0, y0, x1, y1 = box
    canvas = Image.new("RGB", ((x1 - x0) * _SUPERSAMPLE, (y1 - y0) * _SUPERSAMPLE), WHITE)
    drawing = {"bar": _bars, "line": _line, "pie": _pie}[chart]
    labels = drawing(ImageDraw.Draw(canvas), canvas.size, series, highlight - 1, colour, accent)
    image.paste(canvas.reduce(_SUPERSAMPLE), (x0, y0))
    for (x, y), text, align in labels:
        write(image, (x0 + x / _SUPERSAMPLE, y0 + y / _SUPERSAMPLE), text, 9, FAINT, align=align)


_Labels = list[tuple[tuple[float, float], str, float]]


def _axes(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], top: int
) -> tuple[tuple[float, float, float, float], _Labels]:
    """Grid lines and value labels; returns the plot's rectangle."""
    unit = _SUPERSAMPLE
    left, right, upper, lower = 26 * unit, size[0] - 4 * unit, 8 * unit, size[1] - 18 * unit
    labels: _Labels = []
    for step in range(5):
        y = lower - (lower - upper) * step / 4
        draw.line((left, y, right, y), fill=FAINT if step == 0 else RULE, width=unit * 2 if step == 0 else unit)
        labels.append(((left - 5 * unit, y + 3 * unit), str(top * step // 4), 1.0))
    return (left, upper, right, lower), labels


def _bars(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], series: tuple[int, ...], chosen: int, colour: RGB, accent: RGB
) -> _Labels:
    (left, upper, right, lower), labels = _axes(draw, size, 120)
    step = (right - left) / len(series)
    for index, value in enumerate(series):
        x = left + step * (index + 0.5)
        top = lower - (lower - upper) * value / 120
        fill = accent if index == chosen else mix(colour, WHITE, 0.35)
        draw.rectangle((x - step * 0.3, top, x + step * 0.3, lower - _SUPERSAMPLE), fill=fill)
        labels.append(((x, top - 4 * _SUPERSAMPLE), str(value), 0.5))
        labels.append(((x, lower + 13 * _SUPERSAMPLE), _QUARTERS[index], 0.5))
    return labels


def _line(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], series: tuple[int, ...], chosen: int, colour: RGB, accent: RGB
) -> _Labels:
    (left, upper, right, lower), labels = _axes(draw, size, 120)
    step = (right - left) / (len(series) - 1)
    points = [(left + step * index, lower - (lower - upper) * value / 120) for index, value in enumerate(series)]
    draw.polygon([(left, lower), *points, (right, lower)], fill=mix(colour, WHITE, 0.82))
    draw.line(points, fill=colour, width=5 * _SUPERSAMPLE, joint="curve")
    for quarter, index in enumerate(range(1, len(series), 2)):
        x, y = points[index]
        radius = (11 if quarter == chosen else 5) * _SUPERSAMPLE
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=accent if quarter == chosen else colour)
        labels.append(((x, lower + 13 * _SUPERSAMPLE), _QUARTERS[quarter], 0.5))
    return labels


def _pie(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], series: tuple[int, ...], chosen: int, colour: RGB, accent: RGB
) -> _Labels:
    unit = _SUPERSAMPLE
    radius = size[1] / 2 - 12 * unit
    x, y = size[0] * 0.36, size[1] / 2
    shades = [mix(colour, WHITE, share) for share in (0.1, 0.35, 0.55, 0.75)]
    start, labels = -90.0, []
    for index, value in enumerate(series):
        end, middle = start + 3.6 * value, math.radians(start + 1.8 * value)
        pull = 9 * unit if index == chosen else 0
        at_x, at_y = x + pull * math.cos(middle), y + pull * math.sin(middle)
        fill = accent if index == chosen else shades[index]
        slice_box = (at_x - radius, at_y - radius, at_x + radius, at_y + radius)
        draw.pieslice(slice_box, start, end, fill=fill, outline=WHITE, width=unit * 2)
        key_x, key_y = size[0] * 0.72, y + (index - 1.5) * 24 * unit
        draw.rectangle((key_x, key_y - 5 * unit, key_x + 10 * unit, key_y + 5 * unit), fill=fill)
        labels.append(((key_x + 16 * unit, key_y + 3 * unit), f"{_QUARTERS[index]}  {value}%", 0.0))
        start = end
    return labels
