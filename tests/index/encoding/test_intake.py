"""An add or update that was broken off goes on where it was; builds are in test_build."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from fanoise.errors import InputError
from index.build import build_index
from index.encoding.plan import PlanFolder, unfinished
from index.manifest import Manifest
from index.report import describe_index
from index.search import Index
from index.update import add_items, compact_index, delete_items
from index.verify import verify_index
from tests.index.encoding.fakes import SplitEmbedder, draw, write_catalog

SIZES = {"shard_rows": 10, "batch_size": 5, "workers": 0}


@pytest.fixture
def folder(split, tmp_path):
    """An index of 20 items, r0 to r19, with some pictures."""
    build_index(split, write_catalog(tmp_path / "base.jsonl", 20, images=8), tmp_path / "index", progress=False)
    split.module.batches.clear()
    return tmp_path / "index"


def write_more(path, count=120, *, prefix="n", images=20):
    """As `write_catalog`, with ids and texts of its own."""
    rows = [json.loads(line) for line in write_catalog(path, count, images=images).read_text().splitlines()]
    rows = [row | {"id": prefix + row["id"][1:], "text": f"{prefix} {row['text']}"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in Manifest.read(folder).generation_in(folder).iterdir()}


def kept_shards(folder):
    return sorted((folder / "encoding").glob("*/shard-*"))


def break_off(monkeypatch, at, run):
    """Let a full disk end what `run` does before shard number `at` is there."""
    committing = PlanFolder.committing

    def until_full(folder, number):
        if number == at:
            raise OSError(28, "No space left on device")
        return committing(folder, number)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(PlanFolder, "committing", until_full)
        run()


@pytest.mark.parametrize(("existing", "prefix", "count"), [("refuse", "n", 120), ("replace", "r", 120)])
def test_an_add_that_was_killed_encodes_only_what_is_missing(spawn, split, folder, tmp_path, existing, prefix, count):
    more = write_more(tmp_path / "more.jsonl", count, prefix=prefix)
    shutil.copytree(folder, tmp_path / "undisturbed")
    before = contents(folder)
    process = spawn(catalog=more, out=folder, existing=existing, **SIZES, die_at=200)
    process.communicate()
    kept = 10 * len(kept_shards(folder))
    assert process.returncode == -signal.SIGKILL and 20 <= kept < count
    assert contents(folder) == before and Manifest.read(folder).generation == 1
    change = add_items(split, more, folder, existing=existing, progress=False, **SIZES)
    assert sum(split.module.batches) == count - kept
    add_items(SplitEmbedder(), more, tmp_path / "undisturbed", existing=existing, progress=False, **SIZES)
    assert contents(folder) == contents(tmp_path / "undisturbed")
    assert change.added == count and verify_index(folder) == []
    assert not (folder / "encoding").exists()


def test_an_update_that_was_broken_off_encodes_only_what_is_missing(split, folder, tmp_path, monkeypatch):
    changed = write_catalog(tmp_path / "changed.jsonl", 20, images=8, text="other {}")
    options = {"existing": "require", "progress": False} | SIZES | {"shard_rows": 4}
    break_off(monkeypatch, 3, lambda: add_items(split, changed, folder, **options))
    split.module.batches.clear()
    change = add_items(split, changed, folder, **options)
    assert (change.added, change.deleted, sum(split.module.batches)) == (20, 20, 8)
    assert not (folder / "encoding").exists()


def test_of_a_catalogue_that_was_changed_since_the_rows_are_known_and_nothing_is_left(
    split, folder, tmp_path, monkeypatch
):
    more = write_more(tmp_path / "more.jsonl", 60)
    break_off(monkeypatch, 4, lambda: add_items(split, more, folder, progress=False, **SIZES))
    other = write_more(tmp_path / "other.jsonl", 30, prefix="o", images=0)
    break_off(monkeypatch, 2, lambda: add_items(split, other, folder, progress=False, **SIZES))
    write_more(more, 65)
    split.module.batches.clear()
    add_items(split, more, folder, progress=False, **SIZES)
    assert sum(split.module.batches) == 65 - 40
    assert len(kept_shards(folder)) == 2, "of the other catalogue, which is still to come"
    split.module.batches.clear()
    add_items(split, other, folder, progress=False, **SIZES)
    assert sum(split.module.batches) == 10
    assert not (folder / "encoding").exists()
    assert len(Index.open(folder).live_ids) == 20 + 65 + 30


def test_finished_shards_keep_their_pictures_and_no_others(split, folder, tmp_path, monkeypatch):
    more = write_more(tmp_path / "more.jsonl", 50)
    break_off(monkeypatch, 2, lambda: add_items(split, more, folder, progress=False, **SIZES))
    pictures = sorted((folder / "thumbnails").rglob("*.jpg"))
    assert len(pictures) == 10  # 8 of the index and 2 of the shards; of the next shard some were opened
    strange = folder / "thumbnails" / "ab" / f"{'ab' * 32}.jpg"
    strange.parent.mkdir(exist_ok=True)
    strange.write_bytes(b"of a row that was deleted")
    manifest = Manifest.read(folder)
    [begun] = unfinished(folder)
    assert begun.catalog == "more.jsonl" and begun.size_bytes > 2000
    assert f"unfinished   more.jsonl, begun {begun.since}" in describe_index(folder, manifest, "CPU")
    for _ in range(2):
        compact_index(folder)
    assert sorted((folder / "thumbnails").rglob("*.jpg")) == pictures
    add_items(split, more, folder, progress=False, **SIZES)
    assert verify_index(folder, embedder=split, reencode=70) == []
    assert "unfinished" not in describe_index(folder, Manifest.read(folder), "CPU")


def test_what_is_done_to_the_index_in_between_leaves_finished_shards_alone(split, folder, tmp_path, monkeypatch):
    more = write_more(tmp_path / "more.jsonl", 50)
    break_off(monkeypatch, 4, lambda: add_items(split, more, folder, progress=False, **SIZES))
    delete_items(folder, ids=["r1", "r2"])
    for _ in range(3):
        compact_index(folder)
    split.module.batches.clear()
    add_items(split, more, folder, progress=False, **SIZES)
    assert sum(split.module.batches) == 10
    assert Index.open(folder).live_ids == ["r0", *(f"r{i}" for i in range(3, 20)), *(f"n{i}" for i in range(50))]
    assert verify_index(folder, embedder=split, reencode=70) == []
    shown = {Index.open(folder).thumbnail(row) for row in Index.open(folder).row_of.values()} - {None}
    assert all(path.exists() for path in shown)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_build_takes_what_an_add_left_or_starts_afresh(split, folder, tmp_path, monkeypatch, fresh):
    more = write_more(tmp_path / "more.jsonl", 50)
    break_off(monkeypatch, 4, lambda: add_items(split, more, folder, progress=False, **SIZES))
    split.module.batches.clear()
    build_index(split, more, folder, progress=False, fresh=fresh)
    assert sum(split.module.batches) == (50 if fresh else 10)
    assert verify_index(folder, embedder=split, reencode=50) == []
    assert not (folder / "encoding").exists()


def test_shards_of_another_embedder_are_never_used_and_stay_for_its_build(split, folder, tmp_path, monkeypatch):
    more = write_more(tmp_path / "more.jsonl", 50)
    other = SplitEmbedder(weights="w2")
    break_off(monkeypatch, 4, lambda: build_index(other, more, folder, progress=False, **SIZES))
    add_items(split, more, folder, progress=False, **SIZES)
    assert sum(split.module.batches) == 50
    other.module.batches.clear()
    build_index(other, more, folder, progress=False, **SIZES)
    assert sum(other.module.batches) == 10


def test_killed_right_after_its_commit_an_add_leaves_shards_that_the_next_one_removes(
    split, folder, tmp_path, monkeypatch
):
    more = write_more(tmp_path / "more.jsonl", 30)
    with monkeypatch.context() as patch:
        patch.setattr(PlanFolder, "remove_assembled", lambda *_, **__: None)
        add_items(split, more, folder, progress=False, **SIZES)
    assert len(kept_shards(folder)) == 3
    with pytest.raises(InputError, match="already in the index"):
        add_items(split, more, folder, progress=False, **SIZES)
    assert not (folder / "encoding").exists()


def test_without_hard_links_no_shards_and_no_superfluous_pictures_stay(split, folder, tmp_path, monkeypatch):
    def hardlink_to(path, target):
        raise OSError(95, "Operation not supported", str(path))

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
    build_index(split, write_catalog(tmp_path / "first.jsonl", 20, images=4), folder, progress=False)
    assert not (folder / "encoding").exists()
    pictures = write_catalog(tmp_path / "pictures.jsonl", 1, images=1)
    old = Index.open(folder).thumbnail(0)
    draw(tmp_path / "pictures" / "0.png", 100)
    for number in range(2):
        add_items(split, write_more(tmp_path / f"{number}.jsonl", 5), folder, existing="replace", progress=False)
        assert not (folder / "encoding").exists()
    add_items(split, pictures, folder, existing="require", progress=False)
    for _ in range(2):
        compact_index(folder)
    assert not old.exists()


def test_pictures_that_an_add_makes_superfluous_go(split, folder, tmp_path):
    old = Index.open(folder).thumbnail(0)
    for number in (100, 101):
        draw(tmp_path / "pictures" / "0.png", number)
        changed = write_catalog(tmp_path / "changed.jsonl", 1, images=1)
        add_items(split, changed, folder, existing="require", progress=False)
    assert old.exists(), "a row that is deleted keeps its place"
    compact_index(folder)
    add_items(split, write_more(tmp_path / "more.jsonl", 3, images=0), folder, progress=False)
    assert not old.exists()


def test_an_add_of_what_others_are_building_is_refused(split, folder, tmp_path, spawn):
    more = write_more(tmp_path / "more.jsonl", 30)
    other = spawn(catalog=more, out=folder, **SIZES, delay_s=600, shared=True)
    while not other.is_encoding:
        time.sleep(0.01)
    with pytest.raises(InputError, match="is being built from the same catalogue; wait for that to end"):
        add_items(split, more, folder, progress=False, **SIZES)
    with pytest.raises(InputError, match="is being built from another catalogue"):
        add_items(split, write_more(tmp_path / "else.jsonl", 5, prefix="e"), folder, progress=False)
    assert Manifest.read(folder).generation == 1
