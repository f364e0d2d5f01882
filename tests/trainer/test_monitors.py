"""CSV files of a run that was killed and resumed."""

from types import SimpleNamespace

from trainer.monitors import go_on_with_csv


def test_a_resumed_run_writes_no_step_twice_and_no_second_header(tmp_path):
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "train_loss.csv").write_text("step,loss\r\n1,0.5\r\n2,0.4\r\n3,0.3\r\n4,0.")
    (folder / "train_lr.csv").write_text("")
    (folder / "Train_Samples_lr.csv").write_text("step,lr\r\n2,0.1\r\n4,0.2\r\n6,0.3\r\n")
    monitor = SimpleNamespace(filenames=[])
    engine = SimpleNamespace(monitor=SimpleNamespace(csv_monitor=monitor), global_samples=4)  # of two processes
    go_on_with_csv(engine, tmp_path, done=2)
    assert (folder / "Train_Samples_lr.csv").read_bytes() == b"step,lr\r\n2,0.1\r\n4,0.2\r\n"
    assert (folder / "train_loss.csv").read_bytes() == b"step,loss\r\n1,0.5\r\n2,0.4\r\n"
    assert sorted(monitor.filenames) == ["Train_Samples_lr", "train_loss"], "an empty file still wants its header"
    assert not (folder / "train_lr.csv").exists()
