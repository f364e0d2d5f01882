import json
from pathlib import Path
from typing import Any

import pytest

from app.report import ReportRow, Verdict, read_report
from app.ui.report import conclude, render_report
from fanoise.errors import ArtifactError

ROW = {
    "name": "Text to product",
    "metric": "P@1",
    "queries": 500,
    "baseline": 0.642,
    "fanoise": 0.671,
    "difference": 0.029,
    "interval": [0.008, 0.051],
    "p": 0.007,
    "spread": 0.012,
    "seeds": 5,
}


def write(folder: Path, *rows: Any) -> Path:
    (folder / "report.json").write_text(json.dumps({"sets": rows}))
    return folder / "report.json"


def read(folder: Path, **changes: Any) -> ReportRow:
    (row,) = read_report(write(folder, ROW | changes))
    return row


def test_a_report_is_read_as_written(tmp_path: Path) -> None:
    row = read(tmp_path)
    assert (row.name, row.metric, row.queries, row.seeds) == ("Text to product", "P@1", 500, 5)
    assert (row.baseline, row.fanoise, row.difference, row.interval) == (0.642, 0.671, 0.029, (0.008, 0.051))
    assert (row.p, row.spread) == (0.007, 0.012)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "fanoise"),
        ({"difference": -0.029, "interval": [-0.051, -0.008]}, "baseline"),
        ({"interval": [-0.001, 0.06], "p": 0.06}, "unclear"),
        ({"p": 0.2}, "unclear"),
        ({"spread": 0.03}, "luck"),
        ({"spread": None}, "fanoise"),
    ],
)
def test_the_reading_is_no_bolder_than_the_numbers(tmp_path: Path, changes: dict[str, Any], verdict: Verdict) -> None:
    assert read(tmp_path, **changes).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "high"}, "set 1: baseline must be a number, got 'high'"),
        ({"p": None}, "set 1: p must be a number, got None"),
        ({"difference": float("nan")}, "set 1: difference must be a number, got nan"),
        ({"interval": [0.1]}, r"set 1: interval must be \[low, high\]"),
    ],
)
def test_a_bad_number_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read(tmp_path, **changes)


def test_a_missing_or_empty_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone.json does not exist; .*make demo"):
        read_report(tmp_path / "gone.json")
    with pytest.raises(ArtifactError, match="one object per query set"):
        read_report(write(tmp_path))


def test_the_page_shows_every_number_in_points(tmp_path: Path) -> None:
    html = render_report([read(tmp_path, name="<b>near & far")])
    for shown in (
        "64.2",
        "67.1",
        "+2.9",
        "+0.8 to +5.1",
        "0.007",
        "±1.2",
        "500 queries",
        "(5 seeds)",
        "FANoise better",
    ):
        assert shown in html
    assert "&lt;b&gt;near &amp; far" in html and "<b>near" not in html


def test_an_unmeasured_spread_is_said_to_be_so(tmp_path: Path) -> None:
    assert "not measured" in render_report([read(tmp_path, spread=None)])


def test_the_conclusion_counts_both_sides(tmp_path: Path) -> None:
    win, loss = read(tmp_path), read(tmp_path, difference=-0.029, interval=[-0.051, -0.008])
    unclear, luck = read(tmp_path, p=0.5), read(tmp_path, spread=0.5)
    assert conclude([win, loss, unclear, luck]) == (
        "Of 4 query sets: FANoise is better on 1, the baseline is better on 1, 2 show no difference one could rely on."
    )
    assert conclude([unclear, luck]).startswith("No difference shown: on none of 2 query sets")
