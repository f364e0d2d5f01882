"""Is B better than A? Two result files, paired by query, with an interval and a test for every metric.

The test is Fisher's randomisation test on paired differences (Smucker, Allan, Carterette 2007, CIKM): if A and B are
alike, each query's difference could as well have the other sign. The interval is the BCa bootstrap of the mean
difference (Efron 1987, "Better bootstrap confidence intervals"). Both are scipy's, resampled with a fixed seed.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from eval.metrics import METRICS
from eval.result import Result
from fanoise.errors import InputError
from index.where import written_where

SIGNIFICANCE = 0.05
CONFIDENCE = 0.95
RESAMPLES = 9_999
_SEED = 0
_SMALLEST_P_SHOWN = 0.001
_TIE = 1e-12
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """B minus A in one metric."""

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    """95 % bootstrap interval of the difference."""
    p: float
    """Two-sided, paired randomisation test; never 0."""
    wins: int
    ties: int
    losses: int
    """Queries where B scores more than, as much as, less than A."""

    @property
    def is_significant(self) -> bool:
        return self.p < SIGNIFICANCE

    @property
    def verdict(self) -> str:
        """One sentence in plain words; differences in points, that is hundredths."""
        p = "p < 0.001" if self.p < _SMALLEST_P_SHOWN else f"p = {self.p:.3f}"
        interval = f"95 % interval {100 * self.low:z.1f} to {100 * self.high:z.1f}, {p}"
        if self.is_significant:
            better = "better" if self.difference > 0 else "worse"
            return f"B is {better} by {100 * abs(self.difference):.1f} points of {self.metric} ({interval})"
        count = self.wins + self.ties + self.losses
        return (
            "no difference can be told at this size: "
            f"B minus A is {100 * self.difference:+z.1f} points of {self.metric} over {count} queries ({interval})"
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """B minus A in every metric; `metric` is the one the verdict is about."""

    a: dict[str, Any]
    b: dict[str, Any]
    """file, embedder, seed of each side."""
    metric: str
    queries: int
    differences: dict[str, Difference]
    warnings: list[str] = field(default_factory=list)

    @property
    def headline(self) -> Difference:
        return self.differences[self.metric]

    @property
    def verdict(self) -> str:
        return self.headline.verdict

    @property
    def is_better(self) -> bool:
        """B beats A in the headline metric, by more than chance explains."""
        return self.headline.is_significant and self.headline.difference > 0

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, for `json.dumps`."""
        return asdict(self) | {"is_better": self.is_better, "verdict": self.verdict}

    def table(self) -> str:
        """Aligned text: one row per metric, values and differences in points."""
        rows = [("metric", "A", "B", "B - A", "95 % interval", "p", "win/tie/loss")]
        for row in self.differences.values():
            rows.append(
                (
                    row.metric,
                    f"{100 * row.a:.1f}",
                    f"{100 * row.b:.1f}",
                    f"{100 * row.difference:+z.1f}",
                    f"{100 * row.low:+z.1f} to {100 * row.high:+z.1f}",
                    "< 0.001" if row.p < _SMALLEST_P_SHOWN else f"{row.p:.3f}",
                    f"{row.wins}/{row.ties}/{row.losses}",
                )
            )
        return align(rows)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A value over several seeds: how far apart equal recipes end up, to be read beside a difference."""

    count: int
    mean: float
    standard_deviation: float | None
    """Of the sample (n - 1); None for a single value, which tells nothing about it."""
    minimum: float
    maximum: float

    def __str__(self) -> str:
        if self.standard_deviation is None:
            return f"{100 * self.mean:.1f} (one seed)"
        return (
            f"{100 * self.mean:.1f} ± {100 * self.standard_deviation:.1f} over {self.count} seeds "
            f"({100 * self.minimum:.1f} to {100 * self.maximum:.1f})"
        )


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and range of one metric over seeds.

    Raises: InputError without values, or with one that is not finite.
    """
    if len(values) == 0 or not all(math.isfinite(value) for value in values):
        raise InputError(f"the spread over seeds needs one finite value per seed, got {list(values)}")
    return Spread(
        count=len(values),
        mean=float(np.mean(values)),
        standard_deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        minimum=float(min(values)),
        maximum=float(max(values)),
    )


def compare(a: Path | str, b: Path | str, *, metric: str = "R@1", seed: int = _SEED) -> Comparison:
    """B minus A, paired by query id.

    Args:
        a, b: result files of the same queries over the same gallery.
        metric: the one the verdict is about.
        seed: of the resampling; the same seed gives the same numbers.
    Raises: InputError if the files cannot be paired, naming what differs; ArtifactError if one is damaged.
    """
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}, but a result file holds {', '.join(METRICS)}; choose one of them")
    left, right = Result.load(a), Result.load(b)
    _check_pairing(Path(a), left, Path(b), right)
    differences = {}
    for name in METRICS:
        values_a, values_b = left.per_query[name], right.per_query[name]
        pairs = np.array([(values_a[query_id], values_b[query_id]) for query_id in left.qrels], dtype=np.float64)
        differences[name] = paired_difference(name, pairs[:, 0], pairs[:, 1], seed=seed)
    return Comparison(
        a={"file": str(a), "embedder": left.embedder.get("name"), "seed": left.seed},
        b={"file": str(b), "embedder": right.embedder.get("name"), "seed": right.seed},
        metric=metric,
        queries=len(left.qrels),
        differences=differences,
        warnings=_warnings(left, right, metric),
    )


def paired_difference(metric: str, a: np.ndarray, b: np.ndarray, *, seed: int = _SEED) -> Difference:
    """Statistics of b - a; row i of both is the same query."""
    paired = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    paired[np.abs(paired) <= _TIE] = 0.0
    low, high = bootstrap_interval(paired, seed=seed)
    return Difference(
        metric=metric,
        a=float(np.mean(a)),
        b=float(np.mean(b)),
        difference=float(paired.mean()),
        low=low,
        high=high,
        p=randomisation_p(paired, seed=seed),
        wins=int((paired > 0).sum()),
        ties=int((paired == 0).sum()),
        losses=int((paired < 0).sum()),
    )


def bootstrap_interval(differences: np.ndarray, *, seed: int = _SEED) -> tuple[float, float]:
    """95 % BCa bootstrap interval of the mean.

    Where all differences are equal there is nothing to resample: the interval is that value, twice, which is [0, 0] for
    two equal results. Trust it as little as a sample without variation deserves.
    """
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    interval = scipy.stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        batch=_batch(differences),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def randomisation_p(differences: np.ndarray, *, seed: int = _SEED) -> float:
    """Two-sided p of the paired randomisation test of the mean: flip the sign of every difference at random.

    Exact, over all 2^m sign patterns, when few (m < 14) differences are not 0. Else (b + 1) / (n + 1), doubled for the
    two sides, where b of n resamples are as extreme as the data: a valid p that is never 0 (Phipson, Smyth 2010).
    """
    flipped = differences[differences != 0]  # the sign of 0 changes nothing
    if len(flipped) < 2:
        return 1.0
    test = scipy.stats.permutation_test(
        (flipped,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=_batch(flipped),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _batch(differences: np.ndarray) -> int:
    """Resamples to hold in memory at once: 16 MB of them."""
    return max(1, 2_000_000 // len(differences))


def align(rows: Sequence[Sequence[str]]) -> str:
    """The rows as text columns, the first flush left, the others flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _check_pairing(path_a: Path, a: Result, path_b: Path, b: Result) -> None:
    remedy = "evaluate both with the same query file, index catalogue and options"
    only_a, only_b = sorted(a.qrels.keys() - b.qrels.keys()), sorted(b.qrels.keys() - a.qrels.keys())
    if only_a or only_b:
        parts = [f"only in {path}: {_some(ids)}" for path, ids in ((path_a, only_a), (path_b, only_b)) if ids]
        raise InputError(f"the results are of different queries ({'; '.join(parts)}); {remedy}")
    changed = [query_id for query_id in a.qrels if set(a.qrels[query_id]) != set(b.qrels[query_id])]
    if changed:
        raise InputError(f"{path_a} and {path_b} have different positives for queries {_some(changed)}; {remedy}")
    if a.gallery != b.gallery:
        raise InputError(
            f"{path_a} was ranked over {_gallery(a)}, {path_b} over {_gallery(b)}, which are not the same; {remedy}"
        )
    if a.k != b.k:
        raise InputError(f"{path_a} retrieved {a.k} items a query and {path_b} {b.k}; {remedy}")


def _warnings(a: Result, b: Result, metric: str) -> list[str]:
    warnings = []
    right = sum(map(len, a.qrels.values())) / len(a.qrels)
    if metric.startswith("R@") and right > (found := int(metric.removeprefix("R@"))):
        warnings.append(
            f"a query has {right:.1f} right items on average, of which {metric} counts the share that is found, so it "
            f"stays below {100 * found / right:.0f}; --metric P@1 asks whether the first is one of them"
        )
    if a.embedder.get("fingerprint") == b.embedder.get("fingerprint"):
        warnings.append("both results are of the same embedder (equal fingerprints): any difference is not the model's")
    if a.queries.get("sha256") != b.queries.get("sha256"):
        warnings.append("the query files differ, though ids and positives are the same: texts or images were changed")
    for name, result in (("A", a), ("B", b)):
        if result.failed:
            warnings.append(f"{name}: query images that could not be read, scored 0: {len(result.failed)}")
    return warnings


def _gallery(result: Result) -> str:
    filters = ", ".join(written_where(result.where))
    return f"{result.gallery.get('count')} items" + (f" with {filters}" if filters else "")


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(repr(query_id) for query_id in ids[:_SHOWN]) + more
