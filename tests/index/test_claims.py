import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from index.claims import Claims

ROOT = Path(__file__).parents[2]
OTHER = """
import sys
from pathlib import Path
from index.claims import Claims
claims = Claims(Path(sys.argv[1]))
for line in sys.stdin:
    print(eval(line), flush=True)
"""


class Other:
    """Claims of another process."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def ask(self, expression):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return eval(self.process.stdout.readline())


@contextmanager
def other(folder):
    one = Other(folder)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def ours(tmp_path):
    with Claims(tmp_path) as claims:
        yield claims


def test_a_shard_has_one_holder_until_it_lets_go(ours, tmp_path):
    with other(tmp_path) as theirs:
        assert ours.take(3)
        assert theirs.ask("claims.take(3), claims.take(4)") == (False, True)
        assert not ours.take(4)
        assert ours.take(5)
        ours.release(3)
        assert theirs.ask("claims.take(3), claims.take(5)") == (True, False)


def test_the_claims_of_a_killed_process_are_free_at_once(ours, tmp_path):
    with other(tmp_path) as theirs:
        assert theirs.ask("claims.take(0), claims.take(7), claims.take_assembly(), claims.join()")[:3] == (True,) * 3
        assert not ours.take(0) and not ours.alone()
        theirs.process.kill()
        theirs.process.wait()
        assert ours.take(0) and ours.take(7) and ours.take_assembly() and ours.alone()


def test_presence_is_shared_and_shows_to_whoever_asks(ours, tmp_path):
    with other(tmp_path) as theirs:
        assert ours.alone()
        ours.join()
        assert theirs.ask("claims.alone(), claims.join(), claims.alone()") == (False, None, False)
        assert not ours.alone()
        assert theirs.ask("claims.close()") is None
        assert ours.alone()


def test_only_one_assembles(ours, tmp_path):
    with other(tmp_path) as theirs:
        assert theirs.ask("claims.take_assembly()")
        assert not ours.take_assembly()


def test_claims_on_a_folder_that_was_removed_or_made_anew_are_void(tmp_path):
    folder = tmp_path / "plan"
    folder.mkdir()
    with Claims(folder) as claims:
        assert not claims.are_void()
        folder.rename(tmp_path / "aside")
        assert claims.are_void()
        folder.mkdir()
        with Claims(folder) as new:
            assert claims.are_void() and not new.are_void()
