import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fanoise.catalog import Item
from fanoise.errors import InputError
from index.claims import Claims
from index.encoding.plan import Plan, PlanFolder, catalog_state, remove_finished
from index.encoding.progress import Progress
from index.encoding.run import ShardRun
from index.encoding.shard import ShardOptions
from index.store import VectorWriter
from tests.index.encoding.fakes import draw, write_catalog

ROOT = Path(__file__).parents[3]
PLAN = Plan(
    catalog=["c.jsonl", 1, "00"],
    reading={"text": None, "image": "image"},
    fingerprint={"weights": "w"},
    shard_rows=10,
    options=ShardOptions(dim=8, precision="fp32"),
)


def commit(folder, number, *, rows=1, rejects=""):
    with folder.committing(number) as stage:
        with VectorWriter(stage / "vectors.npy", 8) as vectors:
            vectors.append(np.eye(8, dtype=np.float32)[:rows])
        (stage / "items.parquet").write_bytes(b"items")
        (stage / "rejects.jsonl").write_text(rejects)


def opened(tmp_path, plan=PLAN, *, fresh=False):
    folder = PlanFolder(tmp_path, plan)
    return folder, folder.open(fresh=fresh)


@pytest.mark.parametrize(
    "change",
    [
        {"catalog": ["c.jsonl", 1, "01"]},
        {"reading": {"text": "title", "image": "image"}},
        {"fingerprint": {"weights": "v"}},
        {"shard_rows": 11},
        {"options": ShardOptions(dim=4, precision="fp32")},
        {"options": ShardOptions(dim=8, precision="int8")},
        {"options": ShardOptions(dim=8, precision="fp32", signatures=True)},
        {"options": ShardOptions(dim=8, precision="fp32", vectors="v")},
    ],
)
def test_whatever_changes_a_shard_is_another_plan(change):
    assert replace(PLAN, **change).digest != PLAN.digest
    assert replace(PLAN).digest == PLAN.digest


def test_the_state_of_a_catalogue_is_that_of_its_files(tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 3)
    first = catalog_state(catalog)
    assert catalog_state(catalog) == first
    os.utime(catalog, ns=(0, 12345))
    touched = catalog_state(catalog)
    write_catalog(catalog, 4)
    os.utime(catalog, ns=(0, 12345))
    assert len({str(state) for state in (first, touched, catalog_state(catalog))}) == 3
    assert catalog_state(tmp_path / "none.csv")[:2] == ["none.csv", 0]


def test_the_state_of_a_folder_is_that_of_all_its_files_wherever_it_is(tmp_path):
    for i in range(5):
        draw(tmp_path / "a" / "photos" / f"{i % 2}" / f"{i}.png", i)
    first = catalog_state(tmp_path / "a" / "photos")
    assert first[1] == 5
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "photos").rename(tmp_path / "b" / "photos")
    assert catalog_state(tmp_path / "b" / "photos") == first
    (tmp_path / "b" / "photos" / "0" / "0.png").rename(tmp_path / "b" / "photos" / "0" / "x.png")
    assert catalog_state(tmp_path / "b" / "photos") != first


def test_the_state_of_a_pattern_is_that_of_the_files_it_names(tmp_path):
    for i in range(3):
        (tmp_path / f"shard-{i}.tar").write_bytes(b"x" * i)
    first = catalog_state(tmp_path / "shard-{0..2}.tar")
    assert first[1] == 3
    (tmp_path / "shard-3.tar").write_bytes(b"")
    assert catalog_state(tmp_path / "shard-{0..2}.tar") == first
    (tmp_path / "shard-1.tar").write_bytes(b"yy")
    assert catalog_state(tmp_path / "shard-{0..2}.tar") != first


def test_finished_shards_stay_and_half_ones_do_not(tmp_path):
    folder, claims = opened(tmp_path)
    with claims:
        commit(folder, 0)
        commit(folder, 12)
        with pytest.raises(KeyboardInterrupt), folder.committing(1) as stage:
            (stage / "vectors.npy").write_bytes(b"half")
            raise KeyboardInterrupt
    folder, claims = opened(tmp_path)
    with claims:
        assert folder.done() == [0, 12]
        assert [folder.is_done(number) for number in (0, 1, 12)] == [True, False, True]
        started = json.loads((folder.path / "plan.json").read_text())["started"]
        assert started["pid"] == os.getpid()


def test_a_plan_that_names_a_folder_of_images_is_written_down(tmp_path):
    reading = {"text": None, "image": "image", "images": tmp_path / "photos"}
    folder, claims = opened(tmp_path, replace(PLAN, reading=reading))
    claims.close()
    assert json.loads((folder.path / "plan.json").read_text())["reading"]["images"] == str(tmp_path / "photos")


def test_a_shard_with_rejects_is_done_again_and_remembered(tmp_path):
    for _ in range(2):
        folder, claims = opened(tmp_path)
        with claims:
            commit(folder, 0, rejects="{}\n")
            if not folder.is_done(1):
                commit(folder, 1)
    folder, claims = opened(tmp_path)
    with claims:
        assert folder.done() == [1]
        assert [path.name for path in folder.earlier_shards()] == ["again-00000"]


def test_fresh_starts_from_nothing(tmp_path):
    other, claims = opened(tmp_path, replace(PLAN, shard_rows=7))
    with claims:
        commit(other, 0)
    folder, claims = opened(tmp_path)
    with claims:
        commit(folder, 0)
        commit(folder, 1, rejects="{}\n")
    folder, claims = opened(tmp_path, fresh=True)
    with claims:
        assert folder.done() == [] and list(folder.earlier_shards()) == []
        assert not other.path.exists()


def test_another_plan_keeps_what_is_of_use_and_removes_the_rest(tmp_path):
    useful, claims = opened(tmp_path, replace(PLAN, shard_rows=7))
    with claims:
        commit(useful, 0)
    useless, claims = opened(tmp_path, replace(PLAN, shard_rows=8))
    claims.close()
    folder, claims = opened(tmp_path)
    with claims:
        assert list(folder.earlier_shards()) == [useful.shard(0)]
        assert not useless.path.exists()


HOLDER = """
import sys
from pathlib import Path
from index.claims import Claims
claims = Claims(Path(sys.argv[1]))
claims.join()
print("joined", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def at_work():
    """A process that works on the plan in a folder."""
    processes = []

    def start(folder):
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
            )
        )
        assert processes[-1].stdout.readline() == b"joined\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_plan_that_others_work_on_is_joined_as_it_is(tmp_path, at_work):
    folder, claims = opened(tmp_path)
    with claims:
        commit(folder, 0)
        commit(folder, 1, rejects="{}\n")
    at_work(folder.path)
    folder, claims = opened(tmp_path, fresh=True)
    with claims:
        assert folder.done() == [0, 1]
        folder.remove_if_empty(claims)
    assert folder.path.is_dir()


def test_another_plan_that_others_work_on_is_left_alone(tmp_path, at_work):
    folder, claims = opened(tmp_path, replace(PLAN, shard_rows=7))
    claims.close()
    process = at_work(folder.path)
    with pytest.raises(InputError, match=r"is being built from another catalogue, .*plan.json says which"):
        opened(tmp_path)
    process.kill()
    process.wait()
    opened(tmp_path)[1].close()
    assert not folder.path.exists()


@pytest.mark.parametrize("step", ["_reconsider", "_note_start"])
def test_who_is_interrupted_while_beginning_holds_nothing(tmp_path, monkeypatch, step):
    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PlanFolder, step, stop)
        opened(tmp_path)
    folder = PlanFolder(tmp_path, PLAN)
    assert Claims.are_free(folder.path)
    folder.open(fresh=False).close()


BEGINNER = """
import sys
from pathlib import Path
from index.claims import Claims, locked_plans
folder = Path(sys.argv[1])
with locked_plans(folder):
    print("begins", flush=True)
    sys.stdin.readline()
    (folder / "theirs").mkdir()
    claims = Claims(folder / "theirs")
    claims.join()
sys.stdin.read()
"""


def test_of_two_plans_that_begin_at_once_the_second_sees_the_first(tmp_path):
    theirs = subprocess.Popen(
        [sys.executable, "-c", BEGINNER, str(tmp_path / "encoding")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert theirs.stdout.readline() == b"begins\n"
        with ThreadPoolExecutor(1) as thread:
            ours = thread.submit(opened, tmp_path)
            with pytest.raises(TimeoutError):  # it waits
                ours.result(timeout=0.2)
            theirs.stdin.write(b"\n")
            theirs.stdin.flush()
            with pytest.raises(InputError, match="is being built from another catalogue"):
                ours.result(timeout=60)
    finally:
        theirs.kill()
        theirs.communicate()
    assert not PlanFolder(tmp_path, PLAN).path.exists()


def test_nothing_is_left_where_no_row_was_encoded(tmp_path):
    folder, claims = opened(tmp_path)
    with claims:
        commit(folder, 0, rows=0, rejects="{}\n")
        folder.remove_if_empty(claims)
        assert list(tmp_path.iterdir()) == []
        folder.remove_if_empty(claims)
    folder, claims = opened(tmp_path)
    with claims:
        commit(folder, 0, rows=0, rejects="{}\n")
        commit(folder, 1)
        folder.remove_if_empty(claims)
        assert folder.done() == [0, 1]


def test_a_folder_that_another_process_began_anew_is_not_removed(tmp_path):
    folder, claims = opened(tmp_path)
    with claims:
        folder.path.parent.rename(tmp_path / "assembled")
        _, theirs = opened(tmp_path)
        with theirs:
            folder.remove_if_empty(claims)
            assert not theirs.are_void()


def test_shards_go_when_what_was_made_of_them_is_current(tmp_path):
    folder, claims = opened(tmp_path)
    with claims:
        commit(folder, 0)
    for name in ("stage", "generation-000001", "generation-000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "items.parquet").write_text(name)
    folder.mark_assembled(tmp_path / "stage" / "items.parquet")
    remove_finished(tmp_path, tmp_path / "generation-000001")
    remove_finished(tmp_path, None)
    remove_finished(tmp_path, tmp_path / "generation-000009")  # which somebody has removed
    assert folder.is_done(0)
    folder.mark_assembled(tmp_path / "generation-000002" / "items.parquet")  # once more, after a kill
    (tmp_path / "generation-000002").rename(tmp_path / "generation-000003")
    remove_finished(tmp_path, tmp_path / "generation-000003")
    assert not folder.path.parent.exists()
    remove_finished(tmp_path, tmp_path / "generation-000003")


def test_of_what_was_added_the_shards_of_the_same_catalogue_go_and_others_stay(tmp_path):
    kin, claims = opened(tmp_path, replace(PLAN, shard_rows=7))
    with claims:
        commit(kin, 0)
    other, claims = opened(tmp_path, replace(PLAN, catalog=["d.jsonl", 1, "00"]))
    with claims:
        commit(other, 0)
    folder, claims = opened(tmp_path)
    with claims:
        commit(folder, 0)
        folder.remove_assembled(added=True)
        assert claims.are_void() and not kin.path.exists() and other.is_done(0)
    folder, claims = opened(tmp_path)
    with claims:
        folder.remove_assembled()
    assert list(tmp_path.iterdir()) == []


def test_shards_go_all_at_once(tmp_path, monkeypatch):
    """Seen from a process that is late: the folder is whole, or gone."""
    folder, claims = opened(tmp_path)
    seen = []
    with claims:
        commit(folder, 0)
        (tmp_path / "generation-000001").mkdir()
        (tmp_path / "generation-000001" / "items.parquet").write_text("items")
        folder.mark_assembled(tmp_path / "generation-000001" / "items.parquet")
        rmtree = shutil.rmtree

        def watched(path, **options):
            if path.exists():
                seen.append((folder.path.exists(), claims.are_void()))
            rmtree(path, **options)

        monkeypatch.setattr(shutil, "rmtree", watched)
        remove_finished(tmp_path, tmp_path / "generation-000001")
    assert seen == [(False, True)]
    assert [path.name for path in tmp_path.iterdir()] == ["generation-000001"]


def test_a_process_that_is_late_does_not_begin_anew_what_is_in_an_index(tmp_path):
    folder, claims = opened(tmp_path)
    with claims:
        run = ShardRun(folder, claims, shard_rows=2, progress=Progress("c", None, shown=False))
        rows = [Item(id=str(i), text="t") for i in range(6)]
        unclaimed = run._unclaimed(rows)
        assert next(unclaimed).number == 0
        commit(folder, 0)
        folder.path.parent.rename(tmp_path / "assembled")  # by another process, meanwhile
        assert list(unclaimed) == []
        assert run.missing() == [0, 1, 2] and run.is_left_to_others()
        _, theirs = opened(tmp_path)  # and one more begins the same
        with theirs:
            assert run.is_left_to_others() and list(run._unclaimed(rows)) == []
            assert theirs.take(0)
