"""Logs on a disk without room."""

import json
from io import FileIO
from types import SimpleNamespace

import pytest

from fanoise.errors import TrainingError
from trainer.config import ValidationConfig
from trainer.log_files import append, write
from trainer.train import note_rejects
from trainer.validation import History

REMEDY = r"cannot be written \(No space left on device\); make room, and go on by --resume auto$"


def test_lines_are_added_to_a_log_whether_or_not_it_is_there(tmp_path):
    for number in range(2):
        append(tmp_path / "log.jsonl", f"{number}\n")
    assert (tmp_path / "log.jsonl").read_text() == "0\n1\n"


def test_a_log_without_room_stops_with_the_remedy():
    file = FileIO("/dev/full", "w")
    with pytest.raises(TrainingError, match=f"^/dev/full {REMEDY}"):
        write(file, "{}\n")
    file.close()


@pytest.mark.parametrize("name", ["rejects.jsonl", "validation.jsonl"])
def test_a_log_that_is_opened_for_every_line_is_named_with_the_remedy(tmp_path, name):
    history = History(tmp_path, ValidationConfig())
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=f"{name} {REMEDY}"):
        if name == "rejects.jsonl":
            note_rejects(tmp_path, SimpleNamespace(rejects=[{"step": 1}]))
        else:
            history.add({"step": 1, "mrr": 0.5})


def test_validations_and_broken_images_are_one_line_each(tmp_path):
    history = History(tmp_path, ValidationConfig())
    note_rejects(tmp_path, SimpleNamespace(rejects=[]))
    assert not (tmp_path / "rejects.jsonl").exists()
    for step in (1, 2):
        history.add({"step": step})
        note_rejects(tmp_path, SimpleNamespace(rejects=[{"step": step}] * step))
    steps = {
        name: [json.loads(line)["step"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("validation", "rejects")
    }
    assert steps == {"validation": [1, 2], "rejects": [1, 2, 2]}
