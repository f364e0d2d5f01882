"""Monitors of a run that was killed and resumed."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from fanoise.errors import TrainingError
from trainer.monitors import failing_once, go_on_with_monitors, same_wandb_run, write_to_monitors


def engine(csv=None, writer=None) -> SimpleNamespace:
    board = None if writer is None else SimpleNamespace(summary_writer=writer)
    return SimpleNamespace(monitor=SimpleNamespace(csv_monitor=csv, tb_monitor=board))


def test_a_resumed_run_writes_no_step_twice_and_no_second_header(tmp_path):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "train_loss.csv").write_text("step,loss\r\n1,0.5\r\n2,0.4\r\n3,0.3\r\n4,0.")
    (folder / "train_lr.csv").write_text("")
    monitor = SimpleNamespace(filenames=[])
    go_on_with_monitors(engine(csv=monitor), tmp_path, done=2)
    assert (folder / "train_loss.csv").read_bytes() == b"step,loss\r\n1,0.5\r\n2,0.4\r\n"
    assert monitor.filenames == ["train_loss"], "an empty file still wants its header"
    assert not (folder / "train_lr.csv").exists()


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path):
    for number, (done, last) in enumerate(((0, 4), (2, 3), (2, 6), (6, 7))):
        writer = SummaryWriter(str(tmp_path), filename_suffix=f".{number}")
        resumed = engine(writer=writer)
        resumed.monitor.write_events = lambda events, to=writer: [to.add_scalar(*event) for event in events]
        go_on_with_monitors(resumed, tmp_path, done)
        for step in range(done + 1, last + 1):
            write_to_monitors(resumed, tmp_path, "train", {"step": step, "loss": number + step / 10})
        writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, round(event.value, 3)) for event in events.Scalars("train/loss")]
    assert found == [(1, 0.1), (2, 0.2), (3, 2.3), (4, 2.4), (5, 2.5), (6, 2.6), (7, 3.7)]


FULL = r"a monitor's file in .* cannot be written \(No space left on device\); make room, and go on by --resume auto$"


def test_a_csv_without_room_stops_with_the_remedy(tmp_path):
    full = engine()
    full.monitor.write_events = lambda events: Path("/dev/full").write_text(str(events))
    with pytest.raises(TrainingError, match=FULL):
        write_to_monitors(full, tmp_path, "train", {"step": 1, "loss": 0.5})


def test_an_event_file_without_room_stops_with_the_remedy_and_no_traceback_of_its_thread(tmp_path):
    """A traceback that the thread shows is a warning of pytest's, which is an error."""
    full, writer = engine(), SummaryWriter(str(tmp_path), flush_secs=0)
    full.monitor.write_events = lambda events: [writer.add_scalar(*event) for event in events]
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.symlink_to("/dev/full")
    with failing_once():
        write_to_monitors(full, tmp_path, "train", {"step": 1, "loss": 0.5})
        writer.file_writer.event_writer._async_writer._worker.join(timeout=60)
    with pytest.raises(TrainingError, match=FULL):
        write_to_monitors(full, tmp_path, "train", {"step": 2, "loss": 0.5})


def test_an_error_of_another_thread_is_still_shown():
    shown = []
    before, threading.excepthook = threading.excepthook, shown.append
    try:
        with failing_once():
            thread = threading.Thread(target=lambda: Path("/dev/full").write_text("x"))
            thread.start()
            thread.join()
        assert threading.excepthook == shown.append
    finally:
        threading.excepthook = before
    assert [failure.exc_type for failure in shown] == [OSError]


def test_weights_and_biases_goes_on_with_the_run_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    ids = []
    for folder in ("one", "one", "other"):
        with same_wandb_run(tmp_path / folder):
            ids.append(os.environ["WANDB_RUN_ID"])
            assert os.environ["WANDB_RESUME"] == "allow"
    assert ids[0] == ids[1] != ids[2] and "WANDB_RUN_ID" not in os.environ
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    with same_wandb_run(tmp_path / "one"):
        assert os.environ["WANDB_RUN_ID"] == "mine"
    assert os.environ["WANDB_RUN_ID"] == "mine"
