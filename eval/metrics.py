"""Measures of a ranking, per query, computed by ir_measures (trec_eval underneath).

Ties are broken against the model: among items with the same score, every positive is placed after every other item.
So a measure is the worst case over all orders a tie allows, and a collapsed model, for which all items score the same,
gets P@1 = 0 whatever the order of rows or ids. (trec_eval breaks ties by descending item id, which rewards a
catalogue whose positives happen to have late ids.) `break_ties` writes the order into the scores, as a strictly falling
sequence of float32 (trec_eval's type), so any trec_eval reproduces our numbers from the run file.

A tie that reaches past the last retrieved item is broken among the retrieved ones only: with 100 retrieved items that
can change RR by at most 0.01 and the other measures not at all.
"""

import math
from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np

from fanoise.errors import ArtifactError

METRICS = ("P@1", "R@1", "R@5", "R@10", "RR", "nDCG@10")
"""Names as ir_measures spells them; the keys of a result file."""

DEEPEST_CUTOFF = 10
"""A ranking must be at least this deep for every measure to mean what its name says."""

Run = Mapping[str, Sequence[tuple[str, float]]]
"""Query id -> (item id, score) of the retrieved items, in any order."""
Qrels = Mapping[str, Sequence[str]]
"""Query id -> ids of its positives; relevance is binary."""
PerQuery = dict[str, dict[str, float]]
"""Metric -> query id -> value."""


def break_ties(run: Run, qrels: Qrels) -> dict[str, list[tuple[str, float]]]:
    """The run in its final order, best first, with strictly falling float32 scores.

    Equal scores (as float32) are ordered non-positives first, then by id; the second and later of them are lowered to
    the next smaller float32. Unequal scores keep their order.
    Raises: ArtifactError if a score is not finite; ValueError if a query lists an item twice or is not in the qrels.
    """
    unknown = run.keys() - qrels.keys()
    if unknown:
        raise ValueError(f"the run has queries that the qrels lack: {sorted(unknown)[:5]}")
    return {query_id: _strictly_falling(query_id, hits, set(qrels[query_id])) for query_id, hits in run.items()}


def score_run(run: Run, qrels: Qrels) -> PerQuery:
    """Every metric for every query of the qrels; a query that the run lacks, or that found nothing, scores 0.

    Raises: ArtifactError if a score is not finite; ValueError if a query lists an item twice, has no positives, or is
        not in the qrels.
    """
    for query_id, positives in qrels.items():
        if not positives:
            raise ValueError(f"query {query_id!r} has no positives")
    measures = {name: ir_measures.parse_measure(name) for name in METRICS}
    per_query: PerQuery = {name: dict.fromkeys(qrels, 0.0) for name in METRICS}
    graded = {query_id: dict.fromkeys(positives, 1) for query_id, positives in qrels.items()}
    scored = {query_id: dict(hits) for query_id, hits in break_ties(run, qrels).items() if hits}
    for metric in ir_measures.iter_calc(list(measures.values()), graded, scored):
        per_query[str(metric.measure)][metric.query_id] = float(metric.value)
    return per_query


def means(per_query: PerQuery) -> dict[str, float]:
    """The mean over queries of each metric; exact summation, so it does not depend on the order of queries."""
    return {name: math.fsum(values.values()) / len(values) for name, values in per_query.items()}


def _strictly_falling(query_id: str, hits: Sequence[tuple[str, float]], positives: set[str]) -> list[tuple[str, float]]:
    seen: set[str] = set()
    for item_id, score in hits:
        if not math.isfinite(score):
            raise ArtifactError(
                f"query {query_id!r}: the score of item {item_id!r} is {score}; "
                "the embedder or the index is damaged: run `python -m index verify`, then build the index again"
            )
        if item_id in seen:
            raise ValueError(f"query {query_id!r}: item {item_id!r} is listed twice")
        seen.add(item_id)
    ordered = sorted(
        ((item_id, np.float32(score)) for item_id, score in hits),
        key=lambda hit: (-hit[1], hit[0] in positives, hit[0]),
    )
    falling: list[tuple[str, float]] = []
    ceiling = np.float32(np.inf)
    for item_id, rounded in ordered:
        lowered = np.minimum(rounded, ceiling)
        falling.append((item_id, float(lowered)))
        # The subtraction matters only around 0: it avoids the denormal numbers, which some programs flush to 0.
        ceiling = np.nextafter(lowered - np.float32(1e-12), np.float32(-np.inf))
    return falling
