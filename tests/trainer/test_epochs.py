"""Properties of an epoch's order, each counted by brute force."""

from collections import Counter

import numpy as np
import pytest

import trainer.epochs
from trainer.epochs import Epochs

ALONE = np.arange(10_000)
"""A batch for every draw."""


def keys(query, positive=None, group=None) -> np.ndarray:
    count = len(query)
    # hashes have no order that means anything, and 0 is no group
    columns = [1000 + np.arange(count) if column is None else np.asarray(column) for column in (query, positive)]
    return np.stack([*columns, np.zeros(count, dtype=int) if group is None else np.asarray(group)], axis=1)


def epoch(keys: np.ndarray, size: int, number: int = 0, *, seed: int = 0, batches=ALONE) -> list[np.ndarray]:
    """Rows of each batch of an epoch."""
    epochs = Epochs(keys, size, (seed,))
    draws = range(number * epochs.draws, (number + 1) * epochs.draws)
    found: dict[int, list[np.ndarray]] = {}
    for draw in draws:
        found.setdefault(int(batches[draw]), []).append(epochs.rows(draw, batches))
    return [np.concatenate(rows) for rows in found.values()]


def repeated(keys: np.ndarray, rows: np.ndarray) -> int:
    """Rows of a batch that are like an earlier one in query, positive or group."""
    seen: set[tuple[int, int]] = set()
    count = 0
    for row in rows.tolist():
        own = {(column, int(value)) for column, value in enumerate(keys[row]) if column < 2 or value}
        count += bool(own & seen)
        seen |= own
    return count


@pytest.mark.parametrize("number", [0, 1, 7])
@pytest.mark.parametrize(("count", "size"), [(24, 4), (25, 4), (27, 4), (4, 4), (7, 4), (5, 1)])
def test_an_epoch_has_every_row_once_but_for_the_remainder(count, size, number):
    batches = epoch(keys(np.arange(count), np.arange(count) // 3), size, number)
    drawn = np.concatenate(batches)
    assert [len(rows) for rows in batches] == [size] * (count // size)
    assert len(set(drawn.tolist())) == len(drawn)
    assert set(drawn.tolist()) <= set(range(count))


def test_the_remainder_changes_so_that_every_row_is_drawn_as_often():
    drawn = Counter(
        row for number in range(300) for rows in epoch(keys(np.arange(11)), 4, number) for row in rows.tolist()
    )
    assert max(drawn.values()) - min(drawn.values()) < 60, "8 of 11 rows in each of 300 epochs, 218 +- 8 a row"


def test_without_anything_alike_an_order_is_a_uniform_shuffle():
    together = np.zeros((12, 12))
    for number in range(2000):
        for rows in epoch(keys(np.arange(12)), 4, number):
            together[np.ix_(rows, rows)] += 1
    expected = 2000 * 3 / 11  # chance that two given rows of 12 share one of three batches of 4
    others = together[~np.eye(12, dtype=bool)]
    assert abs(others - expected).max() < 4.5 * np.sqrt(expected)


@pytest.mark.parametrize(
    "column", [{"query": np.arange(120) % 15}, {"positive": np.arange(120) % 15}, {"group": 1 + np.arange(120) % 15}]
)
def test_what_is_as_frequent_as_there_are_batches_is_once_in_each(column):
    file = keys(**{"query": np.arange(120), **column})
    batches = epoch(file, 15)
    assert len(batches) == 8
    assert all(repeated(file, rows) == 0 for rows in batches)


@pytest.fixture
def dealing_alone(monkeypatch):
    """Without the exchanges, which are for rows of several clusters."""
    monkeypatch.setattr(trainer.epochs, "_exchange", lambda *_: None)


def test_dealing_needs_no_exchange_to_keep_like_apart(dealing_alone):
    rng = np.random.default_rng(0)
    for number in range(20):
        batches = np.sort(rng.integers(0, 30, 80))
        most = len(np.unique(batches))
        # clusters as large as there are batches, or hardly smaller; then pairs; then rows that are alone
        positive = np.concatenate([np.repeat(np.arange(5), most - np.arange(5)), 100 + np.arange(80) // 2])
        file = keys(np.arange(400), np.concatenate([positive, 1000 + np.arange(400 - len(positive))]))
        assert all(repeated(file, rows) == 0 for rows in epoch(file, 5, seed=number, batches=batches))


def test_a_row_is_dealt_with_the_largest_of_its_clusters(dealing_alone):
    file = keys(np.arange(120) % 15, 1000 + np.arange(120) // 2, 1 + np.arange(120) // 3)
    for rows in epoch(file, 15):
        assert len(set(file[rows, 0].tolist())) == 15


def test_like_rows_are_in_batches_far_apart_and_with_others_each_time():
    file = keys(np.arange(300), np.arange(300) // 5)
    held = np.zeros((20, 60), dtype=int)
    for number, rows in enumerate(epoch(file, 15)):
        held[number, file[rows, 1] - file[:, 1].min()] += 1
    assert held.max() == 1
    distance = np.mean([np.diff(np.flatnonzero(column)).mean() for column in held.T])
    assert distance == pytest.approx(21 / 6, abs=0.6), "of five of twenty places at random"
    together = (held.T @ held)[np.triu_indices(60, 1)]
    assert np.bincount(together, minlength=6)[4:].sum() < 40, "0.5 % of 1,770 by chance"


def test_places_in_a_batch_have_nothing_to_do_with_clusters():
    file = keys(np.arange(200), [*np.arange(100) // 10, *range(1000, 1100)])
    places = [place for n in range(20) for rows in epoch(file, 20, n) for place in np.flatnonzero(rows < 100)]
    assert np.mean(places) == pytest.approx(9.5, abs=4 * 5.8 / len(places) ** 0.5)


def test_what_cannot_be_avoided_is_not_tried():
    order, batch = np.arange(12), np.repeat(np.arange(3), 4)
    trainer.epochs._exchange(order, batch, [np.arange(12) % 2, np.arange(12) // 4 * 0 - 1], rng=None)
    assert order.tolist() == list(range(12))


def test_rows_without_a_group_are_not_alike():
    file = keys(np.arange(60), group=[0] * 40 + list(range(1, 21)))
    assert Epochs(file, 6, (0,)).largest == [1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_pairs_alike_in_several_ways_are_kept_apart_too(seed):
    rng = np.random.default_rng(seed)
    file = keys(rng.integers(0, 400, 1200), 1000 + rng.integers(0, 500, 1200), rng.integers(1, 300, 1200))
    batches = epoch(file, 20, seed=seed)
    assert sum(repeated(file, rows) for rows in batches) == 0
    shuffled = np.random.default_rng(seed).permutation(1200).reshape(-1, 20)
    assert sum(repeated(file, rows) for rows in shuffled) > 20, "it would not be so by chance"


def test_what_must_repeat_is_spread_as_evenly_as_can_be():
    file = keys(np.arange(90), [0] * 45 + [1] * 30 + list(range(2, 17)))
    for rows in epoch(file, 10):
        counts = Counter(file[rows, 1].tolist())
        assert counts[0] == 5
        assert counts[1] in (3, 4)
        assert max(counts[value] for value in range(2, 17)) <= 1


def test_a_remainder_takes_what_would_repeat():
    file = keys(np.arange(11), [0] * 3 + list(range(1, 9)))
    for number in range(20):
        assert all(repeated(file, rows) == 0 for rows in epoch(file, 4, number)), "two batches have room for two"


def test_draws_of_one_batch_are_distinct_together():
    file = keys(np.arange(400), np.arange(400) // 8)
    batches = np.sort(np.random.default_rng(0).integers(0, 60, 400 // 5))
    found = epoch(file, 5, batches=batches)
    assert max(len(rows) for rows in found) >= 15, "some batches take three draws or more"
    assert all(repeated(file, rows) == 0 for rows in found)
    assert sorted(np.concatenate(found).tolist()) == list(range(400))


def test_a_batch_of_more_draws_gets_more_of_what_must_repeat():
    file = keys(np.arange(400), [0] * 200 + [1] * 200)
    batches = np.sort(np.random.default_rng(0).integers(0, 25, 40))
    for rows in epoch(file, 10, batches=batches):
        assert abs((file[rows, 1] == 0).mean() - 0.5) <= 0.2


def test_draws_past_the_end_of_the_known_batches_stand_alone():
    file = keys(np.arange(60), np.arange(60) // 6)
    epochs = Epochs(file, 5, (0,))
    rows = np.concatenate([epochs.rows(draw, np.array([0, 0, 1])) for draw in range(epochs.draws)])
    assert sorted(rows.tolist()) == list(range(60))
    assert repeated(file, rows[:10]) == 0


def test_an_order_depends_on_seed_epoch_and_likeness_only():
    rng = np.random.default_rng(0)
    file = keys(np.arange(200), 1000 + rng.integers(0, 40, 200), rng.integers(0, 30, 200))
    renamed = np.stack([rng.permutation(5000)[column] for column in file.T], axis=1)
    renamed[file[:, 2] == 0, 2] = 0
    one, other = (np.concatenate(epoch(values, 8, 3)) for values in (file, renamed))
    assert np.array_equal(one, other), "keys are hashes of paths: they differ between machines"
    assert not np.array_equal(one, np.concatenate(epoch(file, 8, 3, seed=1)))
    assert not np.array_equal(one, np.concatenate(epoch(file, 8, 4)))


def test_a_draw_needs_none_of_those_before_it_and_few_orders_are_kept():
    file = keys(np.arange(50), np.arange(50) // 5)
    walked = Epochs(file, 6, (0,))
    rows = [walked.rows(draw, ALONE) for draw in range(100)]
    assert len(walked._orders) == 2
    assert np.array_equal(Epochs(file, 6, (0,)).rows(97, ALONE), rows[97])
    assert np.array_equal(walked.rows(3, ALONE), rows[3])


def test_hopeless_files_take_no_longer():
    rng = np.random.default_rng(0)
    file = keys(rng.integers(0, 30, 600), rng.integers(0, 40, 600), 1 + np.arange(600) % 25)
    batches = epoch(file, 200)
    assert sorted(np.concatenate(batches).tolist()) == list(range(600))
