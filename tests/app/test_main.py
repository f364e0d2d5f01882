import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.__main__ import main


def test_help_is_complete_and_loads_no_model_library(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys\nfrom app.__main__ import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n"
        "    loaded = {'torch', 'gradio', 'faiss', 'transformers'} & set(sys.modules)\n"
        "    assert not loaded, loaded\n    raise\n"
    )
    start = time.perf_counter()
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 5
    for option in (
        "--baseline",
        "--fanoise",
        "--name",
        "--examples",
        "--originals",
        "--report",
        "--host",
        "--port",
        "--share",
    ):
        assert option in done.stdout
    assert '{"products": [{"text": "a red mug"}' in done.stdout


def test_a_taken_port_is_named_with_the_remedy_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as end:
            main(["--baseline", "no-such", "--fanoise", "no-such", "--port", str(port)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 cannot be used" in error
    assert f"--port {port + 1}" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port is 70000; it must be from 1 to 65535"),
        (["--fanoise", "second"], "1 --baseline but 2 --fanoise"),
        (["--report", "no-such.json"], "report no-such.json does not exist"),
        ([], "no-such is not an index: it does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], free_port: int
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--baseline", "no-such", "--fanoise", "no-such", "--port", str(free_port), *options])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
