"""DeepSpeed's monitors: CSV files, TensorBoard, Weights & Biases. What they get also stands in the run's own logs."""

import csv
import io
from pathlib import Path
from typing import Any

from fanoise.storage import write_atomic

CSV_FOLDER = "csv"


def write_to_monitors(engine: Any, what: str, row: dict[str, Any]) -> None:
    """All numbers of a row of metrics, as `what/NAME`; for process 0, with at least one monitor."""
    values = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
    engine.monitor.write_events([(f"{what}/{name}", value, row["step"]) for name, value in values.items()])


def go_on_with_csv(engine: Any, run: Path, done: int) -> None:
    """Let a resumed run write its CSV files as if it had never stopped: no row twice, no second header."""
    for file in (run / CSV_FOLDER).glob("*.csv"):
        with file.open(newline="") as lines:
            header, *rows = list(csv.reader(lines)) or [[]]
        if not (header and done):
            file.unlink()
            continue
        # DeepSpeed's own files count samples, of which it takes every process to have one a step
        last = engine.global_samples if file.stem.startswith("Train_Samples") else done
        kept = io.StringIO()
        csv.writer(kept).writerows([header, *(row for row in rows if len(row) == 2 and int(row[0]) <= last)])
        write_atomic(file, kept.getvalue())
        engine.monitor.csv_monitor.filenames.append(file.stem)  # those that have their header
