"""The A/B report of an evaluation, read for the page and put into plain words."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fanoise.errors import ArtifactError

SIGNIFICANCE = 0.05

Verdict = Literal["fanoise", "baseline", "luck", "unclear"]


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One query set. All values are fractions; `interval` is the 95 % interval of the difference."""

    name: str
    metric: str
    queries: int | None
    baseline: float
    fanoise: float
    difference: float
    interval: tuple[float, float]
    p: float
    spread: float | None
    """Standard deviation of the baseline over seeds; None where it was not measured."""
    seeds: int | None = None

    @property
    def verdict(self) -> Verdict:
        """Who won; "luck" if the difference is no larger than two seeds of the baseline differ anyway."""
        low, high = self.interval
        if low <= 0 <= high or self.p >= SIGNIFICANCE:
            return "unclear"
        if self.spread is not None and abs(self.difference) <= self.spread:
            return "luck"
        return "fanoise" if self.difference > 0 else "baseline"


def read_report(path: str | Path) -> list[ReportRow]:
    """Read `{"sets": [{"name", "metric", "queries", "baseline", "fanoise", "difference", "interval", "p", "spread"}]}`.

    `queries`, `spread` and `seeds` may be missing. Raises: ArtifactError naming file, query set and field.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"report {path} does not exist; the demo writes it with `make demo`") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"report {path} cannot be read as JSON: {error}") from None
    sets = content.get("sets") if isinstance(content, Mapping) else None
    if not isinstance(sets, list) or not sets:
        raise ArtifactError(f'report {path}: expected {{"sets": [one object per query set]}}')
    return [_read_row(f"report {path}: set {number}", entry) for number, entry in enumerate(sets, start=1)]


def _read_row(where: str, entry: Any) -> ReportRow:
    if not isinstance(entry, Mapping):
        raise ArtifactError(f"{where}: expected an object, got {type(entry).__name__}")
    interval = entry.get("interval")
    if not isinstance(interval, list) or len(interval) != 2:
        raise ArtifactError(f"{where}: interval must be [low, high], got {interval!r}")
    spread, queries, seeds = entry.get("spread"), entry.get("queries"), entry.get("seeds")
    return ReportRow(
        name=str(entry.get("name", "")) or "unnamed set",
        metric=str(entry.get("metric", "P@1")),
        queries=None if queries is None else int(_number(where, "queries", queries)),
        baseline=_number(where, "baseline", entry.get("baseline")),
        fanoise=_number(where, "fanoise", entry.get("fanoise")),
        difference=_number(where, "difference", entry.get("difference")),
        interval=(_number(where, "interval", interval[0]), _number(where, "interval", interval[1])),
        p=_number(where, "p", entry.get("p")),
        spread=None if spread is None else _number(where, "spread", spread),
        seeds=None if seeds is None else int(_number(where, "seeds", seeds)),
    )


def _number(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ArtifactError(f"{where}: {name} must be a number, got {value!r}")
    return float(value)
