"""Recall against latency, drawn as a picture."""

from collections.abc import Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fanoise.errors import InputError
from index.manifest import Manifest

_WIDTH, _HEIGHT = 960, 600
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 40, 90, 80
_SCALE = 2
"""Drawn at twice the size, then reduced, which smooths the lines."""
_INK, _FAINT, _LINE, _MARK = "#222222", "#dddddd", "#2563a8", "#c2410c"


def plot_curve(manifest: Manifest, file: Path) -> None:
    """Draw the curve of an index, with its chosen point and its target. Raises InputError if it has none."""
    if not manifest.curve:
        raise InputError(f"--plot: factory {manifest.factory} has no recall-latency curve: there is nothing to tune")
    if file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--plot {file}: must end in .png, .jpg or .webp")
    _Plot(manifest).draw().resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).save(file)


class _Plot:
    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._points = sorted(((p["ms"], p["recall"], p["parameters"]) for p in manifest.curve), key=lambda p: p[1])
        times = [max(ms, 1e-4) for ms, _, _ in self._points]
        # whole steps of 1, 2, 5 around all points, at least a factor of ten apart
        self._times = _ticks(min(times), max(max(times), 10 * min(times)))
        low = min(recall for _, recall, _ in self._points)
        step = 0.1 if low < 0.7 else 0.05 if low < 0.9 else 0.01
        first = min(floor(low / step) * step, 1 - step)
        self._recalls = [first + step * i for i in range(round((1 - first) / step) + 1)]

    def draw(self) -> Image.Image:
        image = Image.new("RGB", (_SCALE * _WIDTH, _SCALE * _HEIGHT), "white")
        self._draw = ImageDraw.Draw(image)
        self._axes()
        target = self._manifest.tuning.get("target")
        if target is not None and self._recalls[0] <= target <= 1:
            y = self._y(target)
            for dash in range(_LEFT, _WIDTH - _RIGHT, 14):
                self._line([(dash, y), (dash + 7, y)], _MARK, 1.5)
            self._text((_LEFT + 8, y - 6), f"target {target:g}", 15, _MARK, "lb")
        places = [(self._x(ms), self._y(recall)) for ms, recall, _ in self._points]
        self._line(places, _LINE, 2.5)
        chosen = ",".join(f"{name}={value}" for name, value in self._manifest.search.items())
        taken: list[tuple[float, float]] = []
        labelled = zip(places, self._points, strict=True)
        for (x, y), (ms, recall, parameters) in sorted(labelled, key=lambda one: one[1][2] != chosen):
            is_chosen = parameters == chosen
            self._dot((x, y), 8 if is_chosen else 5, _MARK if is_chosen else _LINE)
            if is_chosen or all(abs(x - other) > 150 or abs(y - at) > 22 for other, at in taken):
                self._label((x, y), f"{parameters} ({recall:.3f}, {_number(ms)} ms)" if is_chosen else parameters)
                taken.append((x, y))
        return image

    def _axes(self) -> None:
        manifest = self._manifest
        self._text((_LEFT, 18), f"{manifest.factory}: {manifest.live:,} items of dim {manifest.dim}", 21, _INK, "lt")
        source = manifest.tuning.get("source")
        how = f"{manifest.tuning['queries']} queries: {source}" if source else ""
        self._text((_LEFT, 48), how, 15, "#555555", "lt")
        for recall in self._recalls:
            y = self._y(recall)
            self._line([(_LEFT, y), (_WIDTH - _RIGHT, y)], _FAINT, 1)
            self._text((_LEFT - 10, y), f"{recall:.2f}", 15, _INK, "rm")
        for ms in self._times:
            x = self._x(ms)
            self._line([(x, _TOP), (x, _HEIGHT - _BOTTOM)], _FAINT, 1)
            self._text((x, _HEIGHT - _BOTTOM + 10), _number(ms), 15, _INK, "mt")
        self._text((_WIDTH - _RIGHT, _HEIGHT - 36), "milliseconds a query, searched alone", 16, _INK, "rt")
        self._text((12, _TOP - 14), "recall@10", 16, _INK, "lb")

    def _x(self, ms: float) -> float:
        first, last = log10(self._times[0]), log10(self._times[-1])
        return _LEFT + (log10(max(ms, 1e-4)) - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, recall: float) -> float:
        low = self._recalls[0]
        return _TOP + (1 - recall) / (1 - low) * (_HEIGHT - _TOP - _BOTTOM)

    def _label(self, at: tuple[float, float], text: str) -> None:
        """To the right below the point, or to its left above where there is no room."""
        x, y = at
        width = self._draw.textlength(text, _font(14)) / _SCALE
        if x + 12 + width < _WIDTH:
            self._text((x + 10, y + 6), text, 14, _INK, "lt")
        else:
            self._text((x - 10, y - 6), text, 14, _INK, "rb")

    def _line(self, places: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        self._draw.line([(_SCALE * x, _SCALE * y) for x, y in places], colour, round(_SCALE * width))

    def _dot(self, at: tuple[float, float], radius: float, colour: str) -> None:
        x, y, r = (_SCALE * value for value in (*at, radius))
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def _text(self, at: tuple[float, float], text: str, size: int, colour: str, anchor: str) -> None:
        self._draw.text((_SCALE * at[0], _SCALE * at[1]), text, colour, _font(size), anchor)


def _font(size: int) -> Any:
    return ImageFont.load_default(_SCALE * size)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last that is at most `low` to the first that is at least `high`."""
    steps = [m * 10.0**e for e in range(floor(log10(low)), ceil(log10(high)) + 1) for m in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= low * (1 + 1e-9))
    last = min(i for i, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return steps[first : last + 1]


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"
