import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from eval.compare import bootstrap_interval, compare, paired_difference, randomisation_p, spread
from eval.metrics import METRICS, means
from eval.result import Result
from fanoise.errors import InputError

Write = Callable[..., Path]


@pytest.fixture
def write_result(tmp_path: Path) -> Write:
    """A result file with the same per-query values for every metric."""

    def write(name: str, values: Mapping[str, float], **changes: object) -> Path:
        per_query = {metric: dict(values) for metric in METRICS}
        result = Result(
            metrics=means(per_query),
            counts={"queries": len(values), "failed": 0, "unreachable": 0, "items": 100},
            k=100,
            where={},
            embedder={"name": name, "fingerprint": {"weights": name}, "noise": {}},
            index={"name": name, "fingerprint": name, "factory": "Flat"},
            gallery={"count": 100, "sha256": "g"},
            queries={"name": "q.jsonl", "sha256": "s"},
            versions={},
            created="2030-01-01T00:00:00+00:00",
            qrels={query_id: [f"item-{query_id}"] for query_id in values},
            per_query=per_query,
        )
        path = tmp_path / f"{name}.json"
        replace(result, **changes).write(path)  # type: ignore[arg-type]
        return path

    return write


def _enumerated_p(differences: list[float]) -> float:
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(value >= observed - 1e-12 for value in sums) / len(patterns)


@pytest.mark.parametrize(
    "differences",
    [
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [0.5, 0.25, -1 / 3, 0.9, 0.1, 0.0, 0.0, -0.05, 0.7],
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, -0.7, -0.8, 0.9],
    ],
)
def test_p_of_a_small_sample_is_that_of_all_sign_patterns(differences: list[float]) -> None:
    assert randomisation_p(np.array(differences)) == pytest.approx(_enumerated_p(differences), abs=1e-12)


def test_p_of_equal_differences_is_that_of_the_sign_test() -> None:
    differences = np.array([1.0] * 19 + [-1.0] * 8 + [0.0] * 200)
    exact = scipy.stats.binomtest(19, 27).pvalue
    assert randomisation_p(differences) == pytest.approx(exact, abs=0.01)  # 9,999 resamples: standard error 0.003


def test_p_is_never_zero_and_one_without_a_difference() -> None:
    assert 0 < randomisation_p(np.ones(1000)) <= 0.001
    assert randomisation_p(np.zeros(1000)) == 1.0
    assert randomisation_p(np.array([1.0])) == 1.0
    assert randomisation_p(np.array([0.0, 0.0, 0.4])) == 1.0


def test_p_does_not_depend_on_the_direction() -> None:
    differences = np.random.default_rng(0).normal(0.2, 1.0, size=11)
    assert randomisation_p(differences) == pytest.approx(randomisation_p(-differences))


def test_the_test_errs_in_five_percent_of_null_samples_and_has_power() -> None:
    rng = np.random.default_rng(20)
    null = [randomisation_p(rng.normal(0.0, 1.0, size=10)) for _ in range(800)]
    assert 0.03 < np.mean(np.array(null) < 0.05) < 0.07
    shifted = [randomisation_p(rng.normal(1.5, 1.0, size=10)) for _ in range(50)]
    assert np.mean(np.array(shifted) < 0.05) > 0.9


def test_the_resampled_test_errs_in_five_percent_of_null_samples() -> None:
    rng = np.random.default_rng(21)
    null = [randomisation_p(rng.normal(0.0, 1.0, size=20)) for _ in range(400)]
    assert 0.025 < np.mean(np.array(null) < 0.05) < 0.08


def test_the_interval_covers_a_known_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(22)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.choice([-1.0, 0.0, 1.0], size=80, p=[0.1, 0.6, 0.3]))
        covered += low <= 0.2 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_interval_agrees_with_the_normal_one_on_a_large_sample() -> None:
    differences = np.random.default_rng(23).normal(0.1, 1.0, size=2000)
    half = 1.96 * differences.std(ddof=1) / np.sqrt(2000)
    low, high = bootstrap_interval(differences)
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.004)


@pytest.mark.parametrize("differences", [[0.0, 1.0], [0.0] * 499 + [1.0], [1.0] * 499 + [0.5], [0.0, 0.0, -1 / 3]])
def test_the_interval_of_a_nearly_constant_sample_is_finite_and_holds_the_mean(differences: list[float]) -> None:
    low, high = bootstrap_interval(np.array(differences))
    assert min(differences) <= low <= np.mean(differences) <= high <= max(differences)
    assert low < high


@pytest.mark.parametrize(
    ("differences", "interval"), [([0.0] * 5, (0, 0)), ([0.25] * 5, (0.25, 0.25)), ([1.0], (1, 1))]
)
def test_differences_without_variation_have_an_interval_of_no_width(
    differences: list[float], interval: tuple[float, float]
) -> None:
    assert bootstrap_interval(np.array(differences)) == interval


def test_wins_ties_and_losses_are_counted_from_the_side_of_b() -> None:
    row = paired_difference("RR", np.array([0.1, 0.5, 0.5, 1 / 3, 0.9]), np.array([0.2, 1.0, 0.5, 1 / 3 + 1e-15, 0.1]))
    assert (row.wins, row.ties, row.losses) == (2, 2, 1)
    assert row.difference == pytest.approx((0.1 + 0.5 - 0.8) / 5) == pytest.approx(row.b - row.a)


def test_queries_are_paired_by_id_not_by_order(write_result: Write) -> None:
    values = {f"q{i}": i / 30 for i in range(30)}
    a = write_result("a", values)
    b = write_result("b", dict(reversed(values.items())))
    row = compare(a, b).headline
    assert (row.difference, row.low, row.high, row.p, row.ties) == (0.0, 0.0, 0.0, 1.0, 30)


def test_a_clear_gain_is_called_better_and_its_mirror_worse(write_result: Write) -> None:
    a = write_result("a", {f"q{i}": 0.0 for i in range(200)})
    b = write_result("b", {f"q{i}": float(i % 10 == 0) for i in range(200)})
    gain, loss = compare(a, b), compare(b, a)
    assert gain.is_better and not loss.is_better
    assert re.fullmatch(
        r"B is better by 10\.0 points of R@1 \(95 % interval \d\.\d to 1\d\.\d, p < 0\.001\)", gain.verdict
    )
    assert loss.verdict.startswith("B is worse by 10.0 points of R@1")
    row = gain.headline
    assert (row.a, row.b, row.difference) == (0.0, 0.1, pytest.approx(0.1)) and row.low > 0.05 and row.high < 0.16
    assert loss.headline.low == pytest.approx(-row.high, abs=0.01)
    assert (row.wins, row.ties, row.losses) == (20, 180, 0)


def test_a_small_difference_is_not_called_one(write_result: Write) -> None:
    a = write_result("a", {f"q{i}": float(i < 10) for i in range(20)})
    b = write_result("b", {f"q{i}": float(i < 12) for i in range(20)})
    comparison = compare(a, b)
    assert not comparison.is_better and comparison.headline.p == 0.5  # two flips: 2 of 4 patterns are as far
    assert comparison.verdict.startswith("no difference can be told at this size: B minus A is +10.0 points of R@1")
    assert "over 20 queries" in comparison.verdict and "p = 0.500" in comparison.verdict


def test_other_queries_are_refused_by_name(write_result: Write) -> None:
    a = write_result("a", {f"q{i}": 0.5 for i in range(9)})
    b = write_result("b", {"q0": 0.5, "new": 0.5})
    with pytest.raises(InputError, match=r"only in .*a\.json: 'q1', 'q2', .* and 3 more; only in .*b\.json: 'new'"):
        compare(a, b)


def test_other_positives_are_refused_by_name(write_result: Write) -> None:
    a = write_result("a", {"q0": 0.5, "q1": 0.5})
    b = write_result("b", {"q0": 0.5, "q1": 0.5}, qrels={"q0": ["item-q0"], "q1": ["other"]})
    with pytest.raises(InputError, match=r"different positives for queries 'q1'; evaluate both with the same"):
        compare(a, b)


def test_another_gallery_or_depth_is_refused(write_result: Write) -> None:
    a = write_result("a", {"q": 0.5})
    filtered = write_result("b", {"q": 0.5}, gallery={"count": 7, "sha256": "h"}, where={"kind": "mug"})
    with pytest.raises(
        InputError, match=r"over 100 items, .*b\.json over 7 items with kind=mug, which are not the same"
    ):
        compare(a, filtered)
    with pytest.raises(InputError, match=r"retrieved 100 items a query and .*c\.json 50"):
        compare(a, write_result("c", {"q": 0.5}, k=50))


def test_an_unknown_metric_is_refused(write_result: Write) -> None:
    a = write_result("a", {"q": 0.5})
    with pytest.raises(InputError, match=r"metric is 'R@3', but a result file holds P@1, R@1"):
        compare(a, a, metric="R@3")


def test_the_same_embedder_on_both_sides_is_pointed_out(write_result: Write) -> None:
    a, b = write_result("a", {"q": 0.5}), write_result("b", {"q": 0.5})
    assert compare(a, b).warnings == []
    assert "same embedder" in compare(a, a).warnings[0]


def test_a_metric_that_many_right_items_keep_low_is_pointed_out(write_result: Write) -> None:
    several = {"q": [f"i{number}" for number in range(8)], "r": ["a", "b"]}
    a, b = (write_result(name, {"q": 0.1, "r": 0.5}, qrels=several) for name in "ab")
    [warning] = compare(a, b).warnings
    assert warning.startswith("a query has 5.0 right items on average") and "stays below 20; --metric P@1" in warning
    assert compare(a, b, metric="P@1").warnings == compare(a, b, metric="R@5").warnings == []


def test_changed_query_texts_and_broken_images_are_pointed_out(write_result: Write) -> None:
    a = write_result("a", {"q": 0.5})
    b = write_result("b", {"q": 0.5}, queries={"name": "q.jsonl", "sha256": "t"}, failed={"q": "gone"})
    first, second = compare(a, b).warnings
    assert "query files differ" in first and second == "B: query images that could not be read, scored 0: 1"


def test_a_comparison_is_reproducible_and_json(write_result: Write) -> None:
    rng = np.random.default_rng(5)
    a = write_result("a", {f"q{i}": float(v) for i, v in enumerate(rng.uniform(size=60))})
    b = write_result("b", {f"q{i}": float(v) for i, v in enumerate(rng.uniform(size=60))})
    first, second = compare(a, b, metric="nDCG@10"), compare(a, b, metric="nDCG@10")
    content = json.loads(json.dumps(first.to_json(), allow_nan=False))
    assert content == json.loads(json.dumps(second.to_json()))
    assert content["metric"] == "nDCG@10" and list(content["differences"]) == list(METRICS)
    row = content["differences"]["nDCG@10"]
    assert row["low"] < row["difference"] < row["high"] and 0 < row["p"] <= 1
    assert row["wins"] + row["ties"] + row["losses"] == content["queries"] == 60


def test_the_table_is_aligned(write_result: Write) -> None:
    a = write_result("a", {f"q{i}": float(i % 2) for i in range(40)})
    b = write_result("b", {f"q{i}": float(i % 3 == 0) for i in range(40)})
    lines = compare(a, b).table().splitlines()
    assert len(lines) == 1 + len(METRICS) and len({len(line) for line in lines}) == 1
    assert lines[2].split()[:4] == ["R@1", "50.0", "35.0", "-15.0"]


def test_the_spread_over_seeds_is_that_of_the_sample() -> None:
    values = [0.80, 0.84, 0.82, 0.90]
    found = spread(values)
    assert found.mean == pytest.approx(0.84)
    assert found.standard_deviation == pytest.approx((sum((v - 0.84) ** 2 for v in values) / 3) ** 0.5)
    assert (found.minimum, found.maximum, found.count) == (0.80, 0.90, 4)
    assert str(found) == "84.0 ± 4.3 over 4 seeds (80.0 to 90.0)"


def test_one_seed_has_no_spread_and_none_is_an_error() -> None:
    assert spread([0.5]).standard_deviation is None and str(spread([0.5])) == "50.0 (one seed)"
    for values in ([], [0.5, float("nan")]):
        with pytest.raises(InputError, match="one finite value per seed"):
            spread(values)
