import json

import pytest

from fanoise.errors import TrainingError
from trainer.rejects import RejectShare, broken_pairs, skipped


def feed(share: RejectShare, *lost: int, planned: int = 50) -> None:
    for count in lost:
        share.add(planned=planned, broken=count)


def test_a_share_at_the_limit_goes_on_and_one_that_luck_does_not_explain_stops_with_the_remedy():
    share = RejectShare(0.4)
    feed(share, 20, 20, 20)
    feed(share, 40)  # 100 of 200 are 2.9 standard deviations above 80
    with pytest.raises(
        TrainingError, match=r"^126 of the last 250 pairs .*data.max_rejects \(0.4\).*rejects.jsonl"
    ) as caught:
        feed(share, 26)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("planned", "most"), [(8, 2), (64, 8), (1000, 70)])
def test_a_few_more_than_the_share_may_be_luck(planned, most):
    """Three standard deviations above 5 %: 2.2, 8.4 and 70.7."""
    feed(RejectShare(0.05), most, planned=planned)
    with pytest.raises(TrainingError):
        feed(RejectShare(0.05), most + 1, planned=planned)


def test_only_the_last_hundred_batches_count():
    share = RejectShare(0.1)
    feed(share, 0, *[4] * 100)
    feed(share, *[0] * 100)
    feed(share, *[5] * 100)
    feed(share, 50)
    with pytest.raises(TrainingError, match="564 of the last 5000 pairs"):
        feed(share, 24)


def test_all_pairs_may_be_allowed_to_break_and_none():
    feed(RejectShare(1.0), *[50] * 5)
    strict = RejectShare(0)
    feed(strict, *[0] * 19)
    with pytest.raises(TrainingError, match="1 of the last 1000 pairs"):
        feed(strict, 1)


def test_a_resumed_run_goes_on_counting_where_it_was(tmp_path):
    """A run that breaks off every few steps must not read bad images for ever."""
    ledger = tmp_path / "rejects.jsonl"
    rows = [{"step": step, "pair": f"p{number}", "side": side} for step, number, side in (
        (1, 1, "query"), (140, 1, "query"), (140, 1, "positive"), (140, 2, "negative"), (142, 3, "query"),
    )]  # fmt: skip
    ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = broken_pairs(ledger, 142)
    assert (len(counts), counts[-3:], sum(counts)) == (100, [2, 0, 1], 3)
    assert broken_pairs(ledger, 2) == [1, 0]
    assert broken_pairs(tmp_path / "none.jsonl", 1) == [0]

    feed(RejectShare(0.1), 2)
    with pytest.raises(TrainingError, match="27 of the last 150 pairs"):
        feed(RejectShare(0.1, before=[(50, 0), (50, 25)]), 2)


def test_the_end_counts_and_names_what_was_broken_over_all_parts_of_a_run(tmp_path):
    ledger = tmp_path / "rejects.jsonl"
    assert skipped(ledger) == ""
    found = [(1, "p1", "query"), (3, "p2", "negative"), (9, "p1", "query"), (9, "p1", "negative"), (10, "p3", "query")]
    rows = [{"step": step, "pair": pair, "side": side} for step, pair, side in found]
    ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert skipped(ledger) == (
        "2 pair(s) with a broken image were skipped, 1 pair(s) went without a mined negative whose image is broken: "
        f"p1, p3, p2; see {ledger}"
    )
    ledger.write_text("".join(json.dumps({"pair": f"p{number}", "side": "query"}) + "\n" for number in range(8)))
    assert skipped(ledger).startswith("8 pair(s) with a broken image were skipped: p0, p1, p2, p3, p4 and 3 more; see ")
