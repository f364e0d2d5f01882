import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fanoise import storage
from fanoise.errors import InputError
from fanoise.storage import sha256_file, staged_directory, write_atomic

HOST = socket.gethostname()
NAMES = ["plain", "with space", "a'b\"c", "line\nbreak", "dots.and.42", "[star]*?", "Größe 鞄", "-dash", "plus+(x)"]


class Killed(BaseException):
    """Stands for what stops a process: neither an Exception nor expected."""


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def living_process():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def fill(target: Path, content: str) -> None:
    with staged_directory(target) as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "file").write_text(content)


# files


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_written_and_replaced_with_nothing_left_beside_it(tmp_path, name):
    write_atomic(tmp_path / name, "old")
    write_atomic(tmp_path / name, "né".encode("latin-1"))
    assert (tmp_path / name).read_bytes() == b"n\xe9"
    assert tree(tmp_path) == [name]


def test_folders_above_a_file_are_made_and_text_is_utf8(tmp_path):
    write_atomic(tmp_path / "a" / "b" / "c.txt", "鞄")
    assert (tmp_path / "a/b/c.txt").read_bytes() == "鞄".encode()


def test_others_may_read_an_artefact(tmp_path):
    write_atomic(tmp_path / "f", "x")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_keeps_its_old_content_when_writing_stops(tmp_path, monkeypatch, step):
    write_atomic(tmp_path / "f", "old")

    def stop(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*((os, "fsync", stop) if step == "fsync" else (Path, "replace", stop)))
        write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert tree(tmp_path) == ["f"]


def test_content_is_on_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (order.append("rename"), replace(path, to))[1])
    write_atomic(tmp_path / "f", "x")
    assert order == ["fsync", "rename", "fsync"]


def test_digest_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


# folders


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path, name):
    target = tmp_path / "new" / name
    with staged_directory(target) as staging:
        assert staging.parent == target.parent  # one file system: the rename cannot become a copy
        (staging / "first").write_text("1")
        assert not target.exists()
    assert tree(target) == ["first"]
    fill(target, "2")
    assert tree(target) == ["deep", "deep/file"]
    assert tree(target.parent) == [name, f"{name}/deep", f"{name}/deep/file"]


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Killed])
def test_an_error_inside_keeps_the_old_folder_and_leaves_nothing(tmp_path, existed, error):
    if existed:
        fill(tmp_path / "x", "old")
    before = tree(tmp_path)
    with pytest.raises(error), staged_directory(tmp_path / "x") as staging:
        (staging / "half").write_text("…")
        raise error
    assert tree(tmp_path) == before
    assert not existed or (tmp_path / "x/deep/file").read_text() == "old"


def test_the_old_folder_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    fill(tmp_path / "x", "old")
    rename = Path.rename

    def fail_to_commit(path, to):
        if path.name == f".partial-x.{os.getpid()}@{HOST}":
            raise OSError("no space")
        return rename(path, to)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(Path, "rename", fail_to_commit)
        fill(tmp_path / "x", "new")
    assert (tmp_path / "x/deep/file").read_text() == "old"
    assert tree(tmp_path) == ["x", "x/deep", "x/deep/file"]


def test_a_killed_process_leaves_the_old_folder_and_the_next_one_cleans_up(tmp_path):
    fill(tmp_path / "x", "old")
    script = (
        "import os, sys, pathlib; from fanoise.storage import staged_directory\n"
        "with staged_directory(pathlib.Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half').write_text('…'); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=False, cwd=root)
    assert killed.returncode == -9
    assert (tmp_path / "x/deep/file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    fill(tmp_path / "x", "new")
    assert (tmp_path / "x/deep/file").read_text() == "new"
    assert tree(tmp_path) == ["x", "x/deep", "x/deep/file"]


def test_killed_between_the_two_renames_the_old_folder_is_put_back(tmp_path, dead_process):
    (tmp_path / ".partial-x.old").mkdir()
    (tmp_path / ".partial-x.old" / "file").write_text("old")
    (tmp_path / f".partial-x.{dead_process}@{HOST}").mkdir()
    with pytest.raises(Killed), staged_directory(tmp_path / "x"):
        assert tree(tmp_path / "x") == ["file"]
        raise Killed
    assert tree(tmp_path) == ["x", "x/file"]


def test_killed_after_the_commit_the_new_folder_stays(tmp_path):
    for name, content in ((".partial-x.old", "old"), ("x", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    with pytest.raises(Killed), staged_directory(tmp_path / "x"):
        raise Killed
    assert (tmp_path / "x/file").read_text() == "new"
    assert tree(tmp_path) == ["x", "x/file"]


def test_another_process_staging_the_same_folder_is_left_alone(tmp_path, living_process, dead_process):
    (tmp_path / f".partial-x.{living_process}@{HOST}").mkdir()
    (tmp_path / f".partial-x.{dead_process}@{HOST}").mkdir()
    fill(tmp_path / "x", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".partial-x.{living_process}@{HOST}", "x"]


@pytest.mark.parametrize("process", ["living_process", "dead_process", "this"])
def test_what_another_host_stages_is_left_alone_until_it_is_old(tmp_path, request, process):
    """Its process numbers say nothing here."""
    number = os.getpid() if process == "this" else request.getfixturevalue(process)
    theirs = tmp_path / f".partial-x.{number}@elsewhere"
    theirs.mkdir()
    (theirs / "vectors").touch()
    old = time.time() - 25 * 3600
    os.utime(theirs, (old, old))  # a long file is being written in it, which changes the file's time alone
    fill(tmp_path / "x", "new")
    assert (theirs / "vectors").exists()
    for path in (theirs / "vectors", theirs):
        os.utime(path, (old, old))
    fill(tmp_path / "x", "newer")
    assert tree(tmp_path) == ["x", "x/deep", "x/deep/file"]


def test_a_process_of_our_own_number_before_a_restart_is_dead(tmp_path):
    leftover = tmp_path / f".partial-x.{os.getpid()}@{HOST}"  # usual in a container, where the numbers start again
    leftover.mkdir()
    (leftover / "stale").touch()
    fill(tmp_path / "x", "new")
    assert tree(tmp_path) == ["x", "x/deep", "x/deep/file"]


@pytest.mark.parametrize("other", ["a-x", "x-a", "x.1", "x.old", "xx", "X"])
def test_of_other_targets_only_what_is_old_is_removed(tmp_path, other, dead_process):
    gone, kept = (tmp_path / f".partial-{other}.{dead_process}@{host}" for host in (HOST, "elsewhere"))
    for path in (gone, kept, tmp_path / f".partial-{other}.old"):
        path.mkdir()
    old = time.time() - 25 * 3600
    os.utime(gone, (old, old))
    os.utime(tmp_path / f".partial-{other}.old", (old, old))  # which may be all that is left of what it stands for
    fill(tmp_path / "x", "new")
    assert set(tree(tmp_path)) == {kept.name, f".partial-{other}.old", "x", "x/deep", "x/deep/file"}


def test_two_folders_staged_at_once_do_not_meet(tmp_path):
    with staged_directory(tmp_path / "x") as one, staged_directory(tmp_path / "a-x") as two:
        (one / "1").touch()
        (two / "2").touch()
    assert tree(tmp_path) == ["a-x", "a-x/2", "x", "x/1"]


def test_a_link_to_a_folder_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "big disk").mkdir()
    fill(tmp_path / "big disk" / "x", "1")
    (tmp_path / "link").symlink_to(tmp_path / "big disk" / "x")
    for content in ("2", "3"):
        fill(tmp_path / "link", content)
        assert (tmp_path / "big disk/x/deep/file").read_text() == content
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big disk", "link"]


def test_a_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "catalog.csv").write_text("mine")
    with pytest.raises(InputError, match=r"catalog\.csv is a file"):
        fill(tmp_path / "catalog.csv", "new")
    assert (tmp_path / "catalog.csv").read_text() == "mine"
    assert tree(tmp_path) == ["catalog.csv"]


def test_files_are_on_disk_before_the_folder_appears(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def record(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append(("x" if name.startswith(".partial-x") else name, (tmp_path / "x").exists()))
        fsync(descriptor)

    monkeypatch.setattr(storage.os, "fsync", record)
    fill(tmp_path / "x", "new")
    assert sorted(synced[:-1]) == [("deep", False), ("file", False), ("x", False)]  # the file, and names in folders
    assert synced[-1] == (tmp_path.name, True)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_written_file_has_the_rights_of_any_other(tmp_path, umask, mode):
    code = f"import os; os.umask({umask})\nfrom fanoise.storage import write_atomic\nwrite_atomic('a', 'x')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=True
    )
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
