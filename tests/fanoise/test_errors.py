import copy
import subprocess
import sys

import pytest

from fanoise.errors import (
    ArtifactError,
    CatalogError,
    ConfigError,
    FANoiseError,
    ImageError,
    InputError,
    TrainingError,
    cli_errors,
    one_line,
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n  indented \n"), "indented"),
        (RuntimeError(), "RuntimeError"),
        (OSError(28, "No space left on device", "/a/file"), "No space left on device"),
        (OSError("plain"), "plain"),
    ],
)
def test_the_line_of_an_error(error, line):
    assert one_line(error) == line


@pytest.mark.parametrize("kind", [InputError, ConfigError, CatalogError, ImageError, ArtifactError, TrainingError])
def test_every_error_is_a_fanoise_error_and_only_input_is_a_value_error(kind):
    assert issubclass(kind, FANoiseError)
    assert issubclass(kind, ValueError) == issubclass(kind, InputError)


def test_a_fanoise_error_is_one_line_on_stderr_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, cli_errors():
        raise CatalogError("shop.csv: row 3:\n  no image;\tfill it")
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "error: shop.csv: row 3: no image; fill it\n")


@pytest.mark.parametrize("kind", [CatalogError, lambda text: OSError(2, "No such file", text)])
def test_names_out_of_a_file_cannot_drive_the_terminal(capsys, kind):
    with pytest.raises(SystemExit), cli_errors():
        raise kind("shop.csv\x1b]0;title\x07\x9b2J, größe")
    err = capsys.readouterr().err
    assert err.endswith("\n") and err[:-1].isprintable()
    assert "shop.csv·]0;title··2J, größe" in err


@pytest.mark.parametrize(("go_on", "said"), [("", "interrupted"), ("call again", "interrupted; call again")])
def test_ctrl_c_is_status_130_and_says_how_to_go_on(capsys, go_on, said):
    with pytest.raises(SystemExit) as stop, cli_errors(go_on=go_on):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.parametrize("lines", [1, 100_000], ids=["within the buffer", "beyond it"])
def test_a_reader_that_has_seen_enough_is_no_error(lines):
    code = f"from fanoise.errors import cli_errors\nwith cli_errors():\n for i in range({lines}): print(i)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + 13


def test_another_pipe_than_stdout_is_an_error(capsys):
    with pytest.raises(SystemExit) as stop, cli_errors():
        raise BrokenPipeError(32, "Broken pipe")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: Broken pipe\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli_errors():
        _ = 1 // 0


def test_nothing_happens_without_an_error(capsys):
    with cli_errors():
        print("fine")
    assert capsys.readouterr() == ("fine\n", "")


def test_an_image_error_names_the_image_but_its_reason_does_not():
    error = ImageError("file not found", "photos/1.jpg")
    assert str(error) == "image 'photos/1.jpg': file not found"
    assert error.reason == "file not found"
    assert str(ImageError("no pixels")) == "no pixels"


def test_an_image_error_survives_the_way_out_of_a_worker_process():
    error = copy.copy(ImageError("file not found", "photos/1.jpg"))  # the protocol by which it crosses processes
    assert (str(error), error.reason) == ("image 'photos/1.jpg': file not found", "file not found")
