import pytest

from demo.steps import Steps


def test_a_step_runs_once_until_an_input_or_its_output_changes(tmp_path):
    source, output, calls = tmp_path / "source", tmp_path / "output", []
    source.write_text("a")

    def action():
        calls.append(source.read_text())
        output.write_text("made")

    def run(*more: str) -> bool:
        return Steps(tmp_path / "steps.json").run("step", [source, *more], [output], action)

    assert (run(), run()) == (True, False)
    source.write_text("b")
    assert (run(), run()) == (True, False)
    output.unlink()
    assert (run(), run()) == (True, False)
    assert run("another setting")
    assert calls == ["a", "b", "b", "b"]


def test_a_step_that_failed_is_not_recorded_although_its_output_is_there(tmp_path):
    output = tmp_path / "output"
    steps = Steps(tmp_path / "steps.json")
    steps.run("step", ["old"], [output], lambda: output.write_text("old"))

    def fail():
        output.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        steps.run("step", ["new"], [output], fail)
    assert Steps(tmp_path / "steps.json").run("step", ["old"], [output], lambda: output.write_text("again"))
