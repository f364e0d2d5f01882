"""DeepSpeed's monitors: CSV files, TensorBoard, Weights & Biases. What they get also stands in the run's own logs."""

import csv
import io
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fanoise.storage import write_atomic
from trainer.log_files import needing_room

CSV_FOLDER = "csv"
WANDB_FILE = "wandb_run_id"


def write_to_monitors(engine: Any, run: Path, what: str, row: dict[str, Any]) -> None:
    """All numbers of a row of metrics, as `what/NAME`; for process 0, with at least one monitor.

    Raises: TrainingError with a remedy where a file cannot be written; TensorBoard may notice a row late.
    """
    values = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
    with needing_room(f"a monitor's file in {run}"):
        engine.monitor.write_events([(f"{what}/{name}", value, row["step"]) for name, value in values.items()])


@contextmanager
def failing_once() -> Iterator[None]:
    """Within it, a file that TensorBoard's thread cannot write gives no traceback: the next row raises its error."""
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (issubclass(failure.exc_type, OSError) and type(failure.thread).__module__.startswith("tensorboard.")):
            before(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def same_wandb_run(run: Path) -> Iterator[None]:
    """Within it, W&B, which DeepSpeed starts with the engine, goes on with the run that this folder had before."""
    file = run / WANDB_FILE
    if not file.exists():
        write_atomic(file, secrets.token_hex(8) + "\n")
    wanted = {"WANDB_RUN_ID": file.read_text().strip(), "WANDB_RESUME": "allow"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def go_on_with_monitors(engine: Any, run: Path, done: int) -> None:
    """Let a run that goes on after step `done` write as if it had never stopped: no step twice."""
    if engine.monitor.csv_monitor is not None:
        _cut_csv(engine.monitor.csv_monitor, run, done)
    if engine.monitor.tb_monitor is not None:
        writer = engine.monitor.tb_monitor.summary_writer
        writer.close()  # the next event opens a file that begins with what TensorBoard is to forget
        writer.purge_step = done + 1


def _cut_csv(monitor: Any, run: Path, done: int) -> None:
    for file in (run / CSV_FOLDER).glob("*.csv"):
        with file.open(newline="") as lines:
            header, *rows = list(csv.reader(lines)) or [[]]
        if not (header and done):
            file.unlink()
            continue
        kept = io.StringIO()
        csv.writer(kept).writerows([header, *(row for row in rows if len(row) == 2 and int(row[0]) <= done)])
        write_atomic(file, kept.getvalue())
        monitor.filenames.append(file.stem)  # those that have their header
