"""How far an approximate index looks (nprobe, efSearch, k_factor_rf): as little as reaches the recall asked for.

Names and values are those of FAISS's ParameterSpace. Recall grows with each of them, so the ladder of an inverted or a
graph index is climbed by doubling, and the cheapest rung that reaches the target is then found by halving. A refined
index has two ladders: candidates a hit (k_factor_rf) outside, the inner one inside, from few candidates to many until
more of them no longer pay.

The cheapest rung that reaches the target with these queries owes some of that to them, and misses it as often as not
with others. So it is to reach it with the lower end of its recall's interval of one standard error, and where there are
enough queries, a half of them chooses and the other half says what was reached.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import faiss
import numpy as np

from fanoise.errors import ArtifactError, InputError
from index.faiss_file import faiss_reason
from index.held_out import HeldOut

RECALL = 0.95
"""Asked for by default."""
_ENOUGH = 0.99
_PLATEAU = 0.002
"""More of a parameter that adds less recall than this has reached what the codes allow."""
_TIMED = 32
_TIMED_S = 0.3
_CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
_LEAST = {"nprobe": 1, "efSearch": 16}
_MOST_EF = 4096
_PARAMETERS = ("nprobe", "efSearch", "k_factor_rf")


@dataclass(frozen=True)
class Point:
    """What one setting does."""

    parameters: dict[str, int]
    recall: float
    ms: float
    """A query, searched alone."""
    lower: float
    """The recall that is to be relied on: less by a standard error, where a margin is asked for."""

    def to_json(self) -> dict[str, Any]:
        text = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return {"parameters": text, "recall": round(self.recall, 4), "ms": round(self.ms, 4)}


@dataclass(frozen=True)
class Tuned:
    parameters: dict[str, int] = field(default_factory=dict)
    """As chosen, and set on the index; empty for a type without any, whose recall is measured by all queries."""
    recall: float = 1.0
    """Measured on queries that did not choose the parameters, where there are."""
    lower: float = 1.0
    """What is to be relied on of the recall that those saw that chose."""
    chosen_by: int = 0
    """Number of queries that chose."""
    measured_by: int = 0
    """Number of other queries that the recall was measured with; 0 where the same had to do for both."""
    curve: list[Point] = field(default_factory=list)
    """The points than which none is both better and faster, slowest last; as seen by the queries that chose."""
    is_reached: bool = True
    """Whether the target is."""


def check_recall(recall: float) -> None:
    """Raise InputError unless it is above 0 and at most 1."""
    if not 0 < recall <= 1:
        raise InputError(f"recall must be above 0 and at most 1, got {recall}")


def set_parameters(index: faiss.Index, parameters: dict[str, int]) -> None:
    """Set search parameters as in a manifest. Raises ArtifactError for one that the index does not have."""
    space = faiss.ParameterSpace()
    most = max(_MOST_EF, index.ntotal)  # FAISS takes memory for as many
    for name, value in parameters.items():
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if name not in _PARAMETERS or not is_number or not 1 <= value <= most:
            raise ArtifactError(
                f"search parameter {name}={value!r} must be one of {', '.join(_PARAMETERS)}, from 1 to {most:,}"
            )
        try:
            space.set_index_parameter(index, name, value)
        except RuntimeError as error:
            raise ArtifactError(
                f"search parameter {name}={value} does not suit a {type(index).__name__} ({faiss_reason(error)})"
            ) from error


def tune(index: faiss.Index, queries: HeldOut, *, target: float = RECALL, margin: bool = True) -> Tuned:
    """Set the cheapest parameters with which `index` surely reaches the target, or else those with the best recall.

    Args:
        margin: False for a target that was itself measured with these queries, or such: all of them choose, and the
            recall itself is to reach it, which else would creep up from one time to the next.
    Raises: InputError for a target out of range.
    """
    check_recall(target)
    is_refined, name, most = _ladders(index)
    if name is None and not is_refined:
        recall = queries.recall(index)
        return Tuned(recall=recall, lower=recall, measured_by=len(queries), is_reached=recall >= target)
    choosing, others = queries.halves() if margin else (queries, None)
    measured = _Measured(index, choosing, errors=1.0 if margin else 0.0)
    best: Point | None = None
    for candidates in _CANDIDATES if is_refined else (None,):
        fixed = {} if candidates is None else {"k_factor_rf": candidates}
        found = measured.point(fixed) if name is None else _climb(measured, fixed, name, most, target)
        if found.lower >= target:
            if best is not None and found.ms >= best.ms:
                break
            best = found
    is_reached = best is not None
    if best is None:
        best = max(measured.points.values(), key=lambda point: (point.recall, -point.ms))
    set_parameters(index, best.parameters)
    return Tuned(
        parameters=best.parameters,
        recall=best.recall if others is None else others.recall(index),
        lower=best.lower,
        chosen_by=len(choosing),
        measured_by=0 if others is None else len(others),
        curve=_front(measured.points.values(), best),
        is_reached=is_reached,
    )


class _Measured:
    """Points of an index, each measured once."""

    def __init__(self, index: faiss.Index, queries: HeldOut, errors: float) -> None:
        self._index, self._queries, self._errors = index, queries, errors
        self.points: dict[tuple[tuple[str, int], ...], Point] = {}

    def point(self, parameters: dict[str, int]) -> Point:
        key = tuple(parameters.items())
        if key not in self.points:
            set_parameters(self._index, parameters)
            recalls = self._queries.recalls(self._index)
            recall, error = float(recalls.mean()), float(recalls.std() / sqrt(max(1, len(recalls) - 1)))
            ms = _milliseconds(self._index, self._queries)
            self.points[key] = Point(parameters, recall, ms, recall - self._errors * error)
        return self.points[key]


def _climb(measured: _Measured, fixed: dict[str, int], name: str, most: int, target: float) -> Point:
    """The cheapest rung that reaches the target, else the highest that was tried."""
    enough = max(_ENOUGH, (1 + target) / 2)
    below, reached, flat = 0, None, 0
    last: Point | None = None
    for value in _doubled(_LEAST[name], most):
        point = measured.point({**fixed, name: value})
        if reached is None and point.lower >= target:
            reached = value
        elif reached is None:
            below = value
        flat = flat + 1 if last is not None and point.recall - last.recall < _PLATEAU else 0
        last = point
        if (reached is not None and point.recall >= enough) or flat >= (2 if reached is None else 1):
            break
    assert last is not None
    if reached is None:
        return last
    while reached - below > max(1, below // 8):
        middle = (below + reached) // 2
        if measured.point({**fixed, name: middle}).lower >= target:
            reached = middle
        else:
            below = middle
    return measured.point({**fixed, name: reached})


def _doubled(first: int, most: int) -> Iterator[int]:
    value = min(first, most)
    while value < most:
        yield value
        value *= 2
    yield most


def _ladders(index: faiss.Index) -> tuple[bool, str | None, int]:
    """(has candidates to refine, name of the other parameter or None, its largest useful value)"""
    part = faiss.downcast_index(index)
    if isinstance(part, faiss.IndexPreTransform):
        return _ladders(part.index)
    if isinstance(part, faiss.IndexRefine):
        return (True, *_ladders(part.base_index)[1:])
    if isinstance(part, faiss.IndexIVF):
        return False, "nprobe", part.nlist
    if isinstance(part, faiss.IndexHNSW):
        return False, "efSearch", max(_LEAST["efSearch"], min(_MOST_EF, part.ntotal))
    return False, None, 0


def _milliseconds(index: faiss.Index, queries: HeldOut) -> float:
    """Median over queries that are searched one by one, as a page asks them."""
    seconds: list[float] = []
    start = time.perf_counter()
    for i in range(min(_TIMED, len(queries))):
        before = time.perf_counter()
        index.search(queries.vectors[i : i + 1], max(1, queries.k))
        seconds.append(time.perf_counter() - before)
        if i >= 2 and time.perf_counter() - start > _TIMED_S:
            break
    return 1000 * float(np.median(seconds))


def _front(points: Any, chosen: Point) -> list[Point]:
    """Those that no faster one equals in recall, and the chosen one, by recall."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.ms, -point.recall)):
        if point is chosen or not front or point.recall > max(other.recall for other in front):
            front.append(point)
    return sorted(front, key=lambda point: (point.recall, point.ms))
