"""The whole path, small: catalogues, two trainings, four indices, results, report."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from demo.catalogs import CatalogSize
from demo.tour import ARMS, QUERY_SETS, Tour, _run_all, table
from eval.result import Result
from fanoise.embedder import Embedder
from fanoise.errors import FANoiseError

SIZE = CatalogSize(train=20, test=20, families=4, queries=8)


@pytest.fixture(scope="module")
def tour(tiny_base, tmp_path_factory) -> Tour:
    root = tmp_path_factory.mktemp("tour")
    recipe = {
        "model": {"base": str(tiny_base)},
        "data": {
            "pairs": [
                str(root / "data" / path) for path in ("products/pairs/near_miss.jsonl", "documents/pairs/text.jsonl")
            ],
            "workers": 0,
        },
        "noise": {"strength": 0.2},
        "output_dir": "unused",
        "max_steps": 2,
        "batch_size": 6,
        "chunk_size": 6,
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Tour(
        root / "run", recipe=root / "recipe.yaml", data=root / "data", products=SIZE, documents=SIZE, progress=False
    )


@pytest.fixture(scope="module")
def report(tour) -> dict:
    return tour.run()


def test_report_has_every_query_set_with_interval_and_p(tour, report):
    assert [row["name"] for row in report["sets"]] == [query_set.label for query_set in QUERY_SETS]
    for row in report["sets"]:
        low, high = row["interval"]
        assert low <= row["difference"] <= high
        assert row["difference"] == pytest.approx(row["fanoise"] - row["baseline"])
        assert 0 < row["p"] <= 1
        assert row["wins"] + row["ties"] + row["losses"] == row["queries"]
    assert "near-miss pages" in table(report)


def test_arms_differ_in_the_noise_alone(tour, report):
    configs = [yaml.safe_load((tour.root / arm / "config.yaml").read_text()) for arm in ARMS]
    assert [config["noise"].pop("strength") for config in configs] == [0, 0.2]
    assert [Path(config.pop("output_dir")).name for config in configs] == list(ARMS)
    assert configs[0] == configs[1]


def test_galleries_are_the_held_out_split_only(tour, report):
    result = Result.load(tour.root / "results/products-text-fanoise.json")
    assert result.where == {"split": "test"}
    assert result.counts["items"] == SIZE.test


def test_indices_belong_to_their_arm(tour, report):
    for arm in ARMS:
        manifest = json.loads((tour.index("documents", arm) / "manifest.json").read_text())
        assert manifest["embedder"]["fingerprint"] == Embedder.from_pretrained(tour.root / arm).fingerprint


def test_second_call_does_nothing_and_a_lost_result_is_made_again(tour, report):
    watched = [tour.root / "fanoise/embedder.json", tour.index("products", "fanoise") / "manifest.json"]
    before = [file.stat().st_mtime_ns for file in watched]
    lost = tour.root / "results/documents-text-fanoise.json"
    lost.unlink()
    assert tour.run() == report
    assert lost.exists()
    assert [file.stat().st_mtime_ns for file in watched] == before


def test_examples_name_queries_and_photos_that_exist(tour, report):
    file = tour.root / "examples.json"
    tour.write_examples(file)
    examples = json.loads(file.read_text())
    assert {entry["label"] for entry in examples["documents"]}
    photos = [entry["image"] for entry in examples["products"] if "image" in entry]
    assert photos
    assert all((file.parent / photo).is_file() for photo in photos)


def test_failed_training_stops_the_other_and_names_its_status():
    before = time.monotonic()
    with pytest.raises(FANoiseError, match="status 3"):
        _run_all([[sys.executable, "-c", "raise SystemExit(3)"], [sys.executable, "-c", "import time; time.sleep(60)"]])
    assert time.monotonic() - before < 30


def test_children_end_when_the_tour_is_killed(tmp_path):
    """SIGKILL gives it no chance to clean up, and two trainers in one folder would spoil each other's run."""
    script = f"""
import sys
from demo.tour import _run_all
child = "import os, time; open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid())); time.sleep(60)"
_run_all([[sys.executable, "-c", child]])
"""
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)
