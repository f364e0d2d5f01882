"""The trainer's benchmarks still run, at the smallest size there is, all in one process: a missed rename would show."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BATCH = ("--batch-size", "4", "--rounds", "1")
RUNS = [
    ("cuda_step.py", "--tiny", "--device", "cpu", *BATCH, "--chunks", "2", "--image-size", "56", "--words", "3"),
    ("step.py", *BATCH, "--chunk-size", "2"),
    ("gradcache.py", *BATCH, "--chunk-size", "2", "--large", "4", "--only", "time"),
]
SCRIPT = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_benchmark_of_the_trainer_fills_its_table():
    command = [sys.executable, "-c", SCRIPT, json.dumps(RUNS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "benchmarks")}
    done = subprocess.run(command, cwd=ROOT / "benchmarks", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("  ")[0].strip() for line in done.stdout.splitlines() if "×" in line]
    assert rows == ["off", "on", *2 * ("LoRA", "every parameter")], "a row for each way to train"
