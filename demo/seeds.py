"""Both arms of the demo over several seeds: how much of a difference is luck."""

import json
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from demo.tour import RECIPE, RESULTS, Tour, table
from fanoise.storage import write_atomic

FIRST_SEED = 42
FOLDER = Path("runs/seeds")


def run_seeds(count: int, *, out: Path = RESULTS) -> dict[str, Any]:
    """Tour each of `count` seeds under `FOLDER` and write the R@1 of both arms per query set and seed."""
    reports, seconds = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        before = time.perf_counter()
        print(f"seed {seed}", flush=True)
        reports.append(Tour(FOLDER / str(seed), seed=seed).run())
        seconds.append(round(time.perf_counter() - before))
        print(table(reports[-1]), flush=True)
    return write_results(reports, out, seconds=seconds)


def write_results(reports: Sequence[dict[str, Any]], out: Path, *, seconds: Sequence[int]) -> dict[str, Any]:
    """Collect the reports of seeds 42, 43, … into one file."""
    count = len(reports)
    results = {
        "command": f"python -m demo seeds --count {count}",
        "recipe": str(RECIPE),
        "seeds": list(range(FIRST_SEED, FIRST_SEED + count)),
        "metric": "R@1",
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
        "seconds_per_seed": list(seconds),
        "sets": _by_set(reports),
    }
    write_atomic(out, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def _by_set(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    sets = []
    for rows in zip(*(report["sets"] for report in reports), strict=True):
        entry = {"catalog": rows[0]["catalog"], "name": rows[0]["name"], "queries": rows[0]["queries"]}
        for arm in ("baseline", "fanoise"):
            entry[arm] = [round(row[arm], 4) for row in rows]
        sets.append(entry)
    return sets


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
