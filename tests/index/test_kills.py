"""The short form of `benchmarks/index_kills.py`."""

from collections.abc import Iterator

import pytest

from tests.index.kills import Child, Trials


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child() as child:
        yield child


def test_a_command_killed_at_random_leaves_the_old_index_or_the_new_one(tmp_path, child):
    trials = Trials(tmp_path / "trials", child, seed=3, rows=60)
    trials.run(kills=12)
    assert trials.tally.total() == 12


def test_a_command_killed_at_any_step_of_its_commit_leaves_the_old_index_or_the_new_one(tmp_path, child):
    trials = Trials(tmp_path / "trials", child, rows=60)
    trials.run_commits("add", calls=12)
    assert trials.tally["add old"] > 3 and trials.tally["add new"] > 3
