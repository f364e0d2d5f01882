import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import index.generations
from fanoise.errors import ArtifactError, InputError
from index.build import build_index
from index.claims import Claims, locked_plans
from index.generations import read_current, writing
from index.manifest import GENERATION_FILES, Manifest
from index.search import Index
from index.store import VectorWriter, read_deleted, write_deleted
from index.update import add_items, compact_index, delete_items

FOLDER = Path(__file__).parents[2]


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def tombstone(folder, *rows):
    """Commit a generation that differs in its tombstones only."""
    with writing(folder, "delete", create=False) as writer:
        old = read_deleted(writer.current / "deleted.npy", writer.manifest.count)
        write_deleted(writer.stage / "deleted.npy", np.union1d(old, np.array(rows, np.int64)))
        writer.keep("vectors.npy", "items.parquet", "index.faiss", "rejects.jsonl")
        return writer.commit()


def test_a_commit_is_the_next_generation_and_keeps_the_one_before(built):
    first = Manifest.read(built)
    assert tombstone(built, 3).generation == 2
    assert entries(built) == [".lock", "generation-000001", "generation-000002", "manifest.json", "thumbnails"]
    second = Manifest.read(built)
    assert (second.count, second.deleted, second.live) == (40, 1, 39)
    assert (second.embedder, second.catalog, second.factory) == (first.embedder, first.catalog, first.factory)
    tombstone(built, 4)
    assert entries(built) == [".lock", "generation-000002", "generation-000003", "manifest.json", "thumbnails"]


def test_unchanged_files_are_linked_and_not_hashed_again(built, monkeypatch):
    hashed = []
    of = index.generations.FileRecord.of
    monkeypatch.setattr(index.generations.FileRecord, "of", lambda path: hashed.append(path.name) or of(path))
    tombstone(built, 3)
    assert hashed == ["deleted.npy"]
    for name in ("vectors.npy", "items.parquet", "index.faiss", "rejects.jsonl"):
        assert (built / "generation-000001" / name).samefile(built / "generation-000002" / name)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_files_are_copied_where_they_cannot_be_linked(built, monkeypatch, number):
    def refuse(self, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    tombstone(built, 3)
    old, new = (built / f"generation-00000{n}" / "vectors.npy" for n in (1, 2))
    assert not old.samefile(new)
    assert old.read_bytes() == new.read_bytes()
    assert len(Index.open(built)) == 39


def test_what_is_not_committed_leaves_no_trace(built):
    before = {path: path.read_bytes() for path in built.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(KeyboardInterrupt), writing(built, "add", create=False) as writer:
        (writer.stage / "vectors.npy").write_text("half")
        raise KeyboardInterrupt
    with writing(built, "add", create=False) as writer:
        (writer.stage / "vectors.npy").write_text("not committed either")
    after = {path: path.read_bytes() for path in built.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
    assert entries(built) == [".lock", "generation-000001", "manifest.json", "thumbnails"]


def test_a_first_build_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path / "deep" / "index", "build") as writer:
        (writer.stage / "vectors.npy").write_text("half")
        raise KeyError
    assert not (tmp_path / "deep" / "index").exists()
    (tmp_path / "empty").mkdir()
    with writing(tmp_path / "empty", "build"):
        pass
    assert (tmp_path / "empty").is_dir()  # it was there before


def test_a_commit_checks_that_the_files_are_there_and_agree(built):
    def attempt(change, message):
        with writing(built, "add", create=False) as writer:
            writer.keep(*GENERATION_FILES)
            change(writer)
            with pytest.raises(ArtifactError, match=message):
                writer.commit()
        assert Manifest.read(built).generation == 1

    def fewer_vectors(writer):
        (writer.stage / "vectors.npy").unlink()
        with VectorWriter(writer.stage / "vectors.npy", 16) as vectors:
            vectors.append(np.eye(16, dtype=np.float32))

    def twice(writer):
        (writer.stage / "items.parquet").unlink()
        del writer._kept["items.parquet"]
        table = pq.read_table(writer.current / "items.parquet")
        ids = table["id"].to_pylist()
        ids[7] = ids[3]
        table = table.set_column(table.column_names.index("id"), "id", [ids])
        pq.write_table(table, writer.stage / "items.parquet")

    def tombstone_beyond(writer):
        (writer.stage / "deleted.npy").unlink()
        write_deleted(writer.stage / "deleted.npy", np.array([40]))

    attempt(lambda writer: (writer.stage / "index.faiss").unlink(), r"lacks index\.faiss")
    attempt(fewer_vectors, r"disagree \(vectors\.npy 16 rows, items\.parquet 40 rows")
    attempt(twice, "ids of the new generation occur twice")
    attempt(tombstone_beyond, "rows from 0 to 39")
    with pytest.raises(ValueError, match="deleted must be below count 40, got 40"):
        tombstone(built, *range(40))


def test_leftovers_of_a_killed_writer_are_cleared_by_the_next(built):
    tombstone(built, 1)
    tombstone(built, 2)
    for name in ("generation-000001", "generation-000004", ".partial-generation"):  # too old, uncommitted, unfinished
        (built / name).mkdir()
        (built / name / "vectors.npy").write_text("half")
    (built / ".partial-manifest.json-x1").write_text("half")
    assert len(Index.open(built)) == 38
    with writing(built, "add", create=False):
        assert entries(built) == [
            ".lock", ".partial-generation", "generation-000002", "generation-000003", "manifest.json", "thumbnails"
        ]  # fmt: skip
        assert entries(built / ".partial-generation") == []


def test_without_a_manifest_nothing_in_the_folder_is_committed(built, embedder, tmp_path):
    (built / "manifest.json").unlink()
    with pytest.raises(InputError, match="has no manifest"), writing(built, "add", create=False):
        pass
    with writing(built, "build") as writer:
        assert writer.manifest is None and writer.current is None
        assert entries(built) == [".lock", ".partial-generation"]


def test_thumbnails_that_nothing_shows_are_swept_but_not_while_rows_are_encoded(built):
    plan = built / "encoding" / "plan"
    strange = built / "thumbnails" / "ab" / f"{'ab' * 32}.jpg"
    strange.parent.mkdir(exist_ok=True)
    strange.write_bytes(b"of a row in no shard yet")
    (built / "encoding" / "plan").mkdir(parents=True)
    here = Claims(plan)
    here.join()
    elsewhere = run_claimant(plan)
    for end in (lambda: (elsewhere.kill(), elsewhere.wait()), here.close):
        for _ in range(2):  # the second one ends the first generation
            compact_index(built)
        assert strange.exists()
        end()
    for _ in range(2):
        compact_index(built)
    assert not strange.exists()
    shutil.rmtree(built / "encoding")
    (built / "encoding").mkdir()
    (built / "encoding" / "lock").touch()  # of a sweep that was killed
    for _ in range(2):
        compact_index(built)
    assert not (built / "encoding").exists()
    assert len(list((built / "thumbnails").rglob("*.jpg"))) == 6


def run_claimant(plan):
    """A process that works on the shards of a plan until it is killed."""
    code = (
        "import sys, time, pathlib\n"
        "from index.claims import Claims\n"
        "Claims(pathlib.Path(sys.argv[1])).join()\n"
        "print('joined', flush=True)\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(plan)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "joined\n"
    process.stdout.close()
    return process


def test_no_build_begins_while_thumbnails_are_swept(built, monkeypatch):
    ask = (
        "import fcntl, sys\n"
        "try:\n    fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError:\n    print('held')"
    )
    answers = []

    def sweep(folder, items):
        command = [sys.executable, "-c", ask, str(folder / "encoding" / "lock")]
        answers.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    monkeypatch.setattr(index.generations, "remove_unused", sweep)
    for _ in range(2):  # the second one ends the first generation, and what only that one names
        compact_index(built)
    assert answers and set(answers) == {"held\n"}


def test_changing_what_is_no_index_is_refused_and_makes_nothing(tmp_path):
    with pytest.raises(InputError, match="does not exist"), writing(tmp_path / "none", "add", create=False):
        pass
    assert entries(tmp_path) == []


# the lock


def hold(folder: Path) -> subprocess.Popen:
    code = (
        "import sys; from pathlib import Path; from index.generations import writing\n"
        "with writing(Path(sys.argv[1]), 'compact', create=False):\n    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=FOLDER
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_who_holds_the_lock_and_readers_go_on(built):
    process = hold(built)
    try:
        message = rf"is being changed by process {process.pid} on .* \(compact, since 20.*\); wait for it to end"
        with pytest.raises(InputError, match=message), writing(built, "delete", create=False):
            pass
        assert json.loads((built / ".lock").read_text())["command"] == "compact"
        assert len(Index.open(built)) == 40
    finally:
        process.communicate("", timeout=20)
    assert tombstone(built, 1).generation == 2


def test_a_killed_writer_holds_nothing(built):
    process = hold(built)
    process.kill()
    process.communicate()
    assert tombstone(built, 1).generation == 2


def test_two_writers_of_one_process_are_kept_apart_too(built):
    with writing(built, "add", create=False):
        with pytest.raises(InputError, match=rf"process {os.getpid()} on .* \(add, since"), writing(built, "delete"):
            pass
        # The refusal must not have let go of the lock, which POSIX does when any descriptor of the file is closed.
        code = "import sys; from pathlib import Path; from index.generations import writing\n"
        code += "with writing(Path(sys.argv[1]), 'x'): pass"
        done = subprocess.run([sys.executable, "-c", code, str(built)], cwd=FOLDER, capture_output=True, text=True)
        assert f"is being changed by process {os.getpid()}" in done.stderr
    with writing(built, "delete", create=False):
        pass


def test_a_lock_file_that_says_nothing_yet_is_no_riddle(built):
    process = hold(built)
    try:
        (built / ".lock").write_text("")
        with pytest.raises(InputError, match="changed by another process; wait"), writing(built, "delete"):
            pass
    finally:
        process.communicate("", timeout=20)


def test_a_lock_file_that_was_removed_between_opening_and_locking_is_no_lock(built, monkeypatch):
    lockf, calls = fcntl.lockf, []

    def remove_first(descriptor, operation):
        calls.append(descriptor)
        if len(calls) == 1:  # as the end of a failed first build does
            (built / ".lock").unlink()
        lockf(descriptor, operation)

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    with writing(built, "add", create=False):
        assert len(calls) == 2
        assert os.fstat(calls[1]).st_ino == (built / ".lock").stat().st_ino


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_refused_with_the_remedy(built, monkeypatch, number):
    def refuse(path, flags, mode=0o777):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", refuse)
    message = rf"\.lock cannot be written \({os.strerror(number)}\).*: make it writable, or name another"
    with pytest.raises(InputError, match=message), writing(built, "add", create=False):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_with_the_remedy(built, monkeypatch, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    message = rf"has no locks \({os.strerror(number)}\).*; change the index in a folder on another disk"
    with pytest.raises(InputError, match=message), writing(built, "add", create=False):
        pass
    assert len(Index.open(built)) == 40


def test_the_holder_on_another_host_is_named(built, monkeypatch):
    held = {"pid": 7, "host": "node-b", "command": "add", "since": "2026-01-01T00:00:00+00:00"}
    (built / ".lock").write_text(json.dumps(held))

    def refuse(descriptor, operation):  # as a network file system carries the lock of another host here
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(InputError, match=r"process 7 on node-b \(add, since 2026"), writing(built, "delete"):
        pass


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644)])
def test_a_group_that_may_write_the_folder_may_hold_its_locks(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with writing(tmp_path / "index", "build"), locked_plans(tmp_path / "index" / "encoding"):
            locks = [path for path in (tmp_path / "index").rglob("*") if path.is_file()]
            assert {path.stat().st_mode & 0o777 for path in locks} == {mode} and len(locks) == 2
    finally:
        os.umask(before)


# a full disk


@contextmanager
def largest_file(size):
    """The system refuses to write beyond so many bytes of a file, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def committed(folder):
    """All files but the lock, and what a build has finished."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): path.read_bytes() for path in files if "encoding" not in path.relative_to(folder).parts}


@pytest.mark.parametrize("command", ["build", "add", "delete", "compact"])
def test_a_disk_that_fills_up_at_any_file_leaves_the_index_as_it_was(built, embedder, new_catalog, command):
    more = new_catalog(n=90, images=2, name="more")
    more.write_text(more.read_text().replace("\ng", "\nm"))
    run = {
        "build": lambda: build_index(embedder, more, built, factory="HNSW8", workers=0, progress=False),
        "add": lambda: add_items(embedder, more, built, progress=False),
        "delete": lambda: delete_items(built, ids=["g1"]),
        "compact": lambda: compact_index(built),
    }[command]
    before, refused = committed(built), 0
    for size in [0, 100, 400, *range(1000, 100_000, 900)]:
        try:
            with largest_file(size):
                run()
        except OSError as error:
            refused += 1
            assert error.filename == str(built)
            assert error.strerror == "File too large; nothing was changed; make room and run the same command again"
            new = {path for path in set(committed(built)) - set(before) if "/thumbnails/" not in path}
            assert not new and before.items() <= committed(built).items(), f"with room for {size} bytes"
        else:
            break
    assert refused > (3 if command == "delete" else 6)
    assert Manifest.read(built).generation == 2
    assert len(Index.open(built)) == {"build": 90, "add": 130, "delete": 39, "compact": 40}[command]


# readers


def test_a_reader_whose_generation_vanished_reads_the_manifest_again(built):
    seen = []

    def read(manifest):
        seen.append(manifest.generation)
        if len(seen) == 1:  # two commits between the manifest and its files
            tombstone(built, 1)
            tombstone(built, 2)
        return (manifest.generation_in(built) / "deleted.npy").read_bytes()

    read_current(built, read)
    assert seen == [1, 3]


def test_another_index_in_its_place_is_seen_though_its_number_is_the_same(built, embedder, new_catalog):
    reader = Index.open(built)
    assert reader.current() is reader
    shutil.rmtree(built)
    build_index(embedder, new_catalog(n=7, name="others"), built, progress=False)
    assert Manifest.read(built).generation == reader.manifest.generation
    assert len(reader.current()) == 7


def test_a_reader_does_not_retry_a_generation_that_is_damaged_for_ever(built):
    seen = []

    def read(manifest):
        seen.append(manifest.generation)
        raise ArtifactError("damaged")

    with pytest.raises(ArtifactError, match="damaged"):
        read_current(built, read)
    assert seen == [1]


def test_a_reader_gives_up_when_the_index_never_rests(built):
    def read(manifest):
        tombstone(built, manifest.generation)
        raise FileNotFoundError

    with pytest.raises(ArtifactError, match="changed 5 times while it was being opened"):
        read_current(built, read)


def test_an_open_index_goes_on_after_its_files_are_gone(built, embedder):
    reader = Index.open(built)
    queries = reader.vectors.rows(slice(0, 5))
    before = reader.search(queries, 3)[1].tolist()
    for row in (0, 1, 2):
        tombstone(built, row)
    assert not reader.generation_folder.exists()
    assert reader.search(queries, 3)[1].tolist() == before
    assert reader.search(queries, 40)[0].shape == (5, 40)
    reader = reader.current()
    assert reader.current() is reader
    assert (len(reader), reader.manifest.generation) == (37, 4)
    assert not {0, 1, 2} & set(reader.search(queries, 40)[1].ravel().tolist())


def test_a_reader_never_sees_a_mix_while_generations_are_committed(built):
    """A writer tombstones row after row; whatever is opened must agree in manifest, tombstones and answers."""
    stop, wrong, seen = threading.Event(), [], set()

    def read():
        while not stop.is_set():
            try:
                reader = Index.open(built)
                rows = set(reader.search(np.eye(16, dtype=np.float32)[:1], 40)[1][0].tolist()) - {-1}
                # generation g has lost exactly the rows 0 … g - 2
                expected = set(range(reader.manifest.generation - 1, 40))
                if rows != expected or len(reader) != len(expected):
                    wrong.append((reader.manifest.generation, rows))
                seen.add(reader.manifest.generation)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for row in range(38):
        tombstone(built, row)
        time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) > 5
