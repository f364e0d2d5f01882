import math

import ir_measures
import numpy as np
import pytest

from eval.metrics import METRICS, break_ties, means, score_run
from fanoise.errors import ArtifactError


def _ranked(*item_ids: str) -> list[tuple[str, float]]:
    return [(item_id, 1.0 - 0.01 * position) for position, item_id in enumerate(item_ids)]


def _values(run: list[tuple[str, float]], positives: list[str]) -> dict[str, float]:
    return {name: values["q"] for name, values in score_run({"q": run}, {"q": positives}).items()}


def test_values_of_a_ranking_worked_out_by_hand() -> None:
    run = _ranked("x", "a", "y", "z", "v", "b", "w")  # positives at positions 2 and 6, a third one not retrieved
    log2 = math.log2
    ideal = 1 / log2(2) + 1 / log2(3) + 1 / log2(4)
    expected = {
        "P@1": 0.0,
        "R@1": 0.0,
        "R@5": 1 / 3,
        "R@10": 2 / 3,
        "RR": 1 / 2,
        "nDCG@10": (1 / log2(3) + 1 / log2(7)) / ideal,
    }
    assert _values(run, ["a", "b", "c"]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("position", [1, 2, 5, 6, 10, 11])
def test_one_positive_has_a_closed_form(position: int) -> None:
    items = [f"x{i}" for i in range(11)]
    items[position - 1] = "a"
    expected = {
        "P@1": float(position == 1),
        "R@1": float(position == 1),
        "R@5": float(position <= 5),
        "R@10": float(position <= 10),
        "RR": 1 / position,
        "nDCG@10": 1 / math.log2(position + 1) if position <= 10 else 0.0,
    }
    assert _values(_ranked(*items), ["a"]) == pytest.approx(expected, abs=1e-12)


def test_values_without_ties_are_those_of_ir_measures() -> None:
    rng = np.random.default_rng(3)
    items = [f"d{i}" for i in range(60)]
    qrels = {f"q{i}": [str(d) for d in rng.choice(items, size=rng.integers(1, 5), replace=False)] for i in range(40)}
    run = {q: [(d, float(s)) for d, s in zip(items[:50], rng.permutation(50), strict=True)] for q in qrels}
    measures = [ir_measures.parse_measure(name) for name in METRICS]
    oracle = ir_measures.calc_aggregate(
        measures, {q: dict.fromkeys(ids, 1) for q, ids in qrels.items()}, {q: dict(hits) for q, hits in run.items()}
    )
    assert means(score_run(run, qrels)) == pytest.approx({str(m): value for m, value in oracle.items()}, abs=1e-12)


@pytest.mark.parametrize("positive", ["a", "m", "z"])
@pytest.mark.parametrize("score", [0.0, 1.0, -0.5])
def test_equal_scores_place_the_positive_last_whatever_its_id(positive: str, score: float) -> None:
    items = [*"abcdefghijklmnopqrstuvwxyz"]
    values = _values([(item_id, score) for item_id in items], [positive])
    assert values == {"P@1": 0.0, "R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "RR": pytest.approx(1 / 26), "nDCG@10": 0.0}


def test_a_tie_costs_a_positive_only_the_items_it_is_tied_with() -> None:
    values = _values([("a", 0.5), ("x", 0.9), ("y", 0.5), ("z", 0.4)], ["a"])
    assert values["RR"] == pytest.approx(1 / 3)  # after x, which is better, and y, which is tied


def test_scores_equal_in_float32_are_a_tie() -> None:
    assert _values([("a", 0.5 + 1e-10), ("x", 0.5)], ["a"])["P@1"] == 0.0
    assert _values([("a", 0.5 + 1e-6), ("x", 0.5)], ["a"])["P@1"] == 1.0


def test_broken_ties_fall_strictly_and_stay_within_a_few_float32_steps() -> None:
    run = {"q": [(f"d{i}", 0.25) for i in range(50)] + [("low", np.nextafter(np.float32(0.25), np.float32(0)))]}
    hits = break_ties(run, {"q": ["d0"]})["q"]
    scores = np.array([score for _, score in hits], dtype=np.float32)
    assert (np.diff(scores) < 0).all()
    assert np.abs(scores - 0.25).max() < 1e-5
    assert [item_id for item_id, _ in hits[-2:]] == ["d0", "low"]


def test_a_query_without_results_scores_zero_and_stays_in_the_mean() -> None:
    per_query = score_run({"hit": _ranked("a"), "empty": []}, {"hit": ["a"], "empty": ["a"], "absent": ["a"]})
    for name in METRICS:
        assert per_query[name] == {"hit": 1.0, "empty": 0.0, "absent": 0.0}
        assert means(per_query)[name] == pytest.approx(1 / 3)


def test_an_empty_run_scores_zero() -> None:
    assert means(score_run({}, {"q": ["a"]})) == dict.fromkeys(METRICS, 0.0)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_an_error(score: float) -> None:
    with pytest.raises(ArtifactError, match=r"query 'q': the score of item 'b' is -?(nan|inf)"):
        score_run({"q": [("a", 1.0), ("b", score)]}, {"q": ["a"]})


def test_a_run_that_contradicts_the_qrels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"qrels lack: \['other'\]"):
        score_run({"other": _ranked("a")}, {"q": ["a"]})
    with pytest.raises(ValueError, match="item 'a' is listed twice"):
        score_run({"q": [("a", 1.0), ("a", 0.5)]}, {"q": ["a"]})
    with pytest.raises(ValueError, match="query 'q' has no positives"):
        score_run({}, {"q": []})


def test_ties_at_zero_are_broken_by_ordinary_numbers() -> None:
    hits = break_ties({"q": [(f"d{i}", 0.0) for i in range(20)]}, {"q": ["d0"]})["q"]
    steps = -np.diff(np.array([score for _, score in hits], dtype=np.float32))
    assert steps.min() > np.finfo(np.float32).tiny  # a program that flushes denormal numbers to 0 would see ties again
    assert abs(hits[-1][1]) < 1e-9
