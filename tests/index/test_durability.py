"""Is everything that an index needs on the disk by the time that something points to it?

After a power cut a file holds what it held when it was last synced, and a folder the names that it had then. That is
what is written down here; renames are looked at in between, for each of them may be all that the disk has learnt since.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.build import build_index
from index.generations import LOCK
from index.manifest import ITEMS, MANIFEST, THUMBNAILS, Manifest
from index.parquet import read_parquet
from index.retune import tune_index
from index.thumbnails import thumbnail_path
from index.update import add_items, compact_index, delete_items


class Disk:
    """What is on the disk of the index in `folder`, and what was not when it should have been."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[str] = []
        self.renamed: list[str] = []
        """What was looked at: `shard`, `generation`, `manifest`, in that order."""
        self._files: set[tuple[int, int]] = set()
        self._names: dict[int, dict[str, int]] = {}

    def sync(self, path: Path) -> None:
        if path.is_dir():
            self._names[path.stat().st_ino] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        else:
            self._files.add(_content(path))

    def rename(self, source: Path, target: Path) -> None:
        """Before it is done."""
        if target.name.startswith("shard-"):
            self.renamed.append("shard")
            self._need_all(source, "a finished shard")
            self._need_pictures(source / ITEMS, "a finished shard")
        elif target.name.startswith("generation-"):
            self.renamed.append("generation")
            self._need_all(source, "a generation")
        elif target.name == MANIFEST:
            self.renamed.append("manifest")
            self._need(source, "the manifest")
            current = self.folder / f"generation-{max(self._generations()):06d}"
            self._need_name(current, "the manifest")
            self._need_all(current, "the manifest")
            self._need_pictures(current / ITEMS, "the manifest")

    def end(self) -> None:
        """The command has said that it is done."""
        self._need_name(self.folder / MANIFEST, "the end")
        self._need_name(self.folder, "the end")
        assert not self.missing

    def _generations(self) -> list[int]:
        return [int(path.name.partition("-")[2]) for path in self.folder.glob("generation-*")]

    def _need_all(self, folder: Path, what: str) -> None:
        for path in folder.iterdir():
            self._need(path, what)
            self._need_name(path, what)

    def _need_pictures(self, items: Path, what: str) -> None:
        for sha256 in read_parquet(items, ["thumbnail_sha256"])["thumbnail_sha256"].drop_null().to_pylist():
            path = thumbnail_path(self.folder, sha256)
            self._need(path, what)
            for name in (path, path.parent, path.parent.parent):
                self._need_name(name, what)

    def _need(self, path: Path, what: str) -> None:
        if _content(path) not in self._files:
            self.missing.append(f"{what} before the content of {path.relative_to(self.folder)}")

    def _need_name(self, path: Path, what: str) -> None:
        if self._names.get(path.parent.stat().st_ino, {}).get(path.name) != path.stat().st_ino:
            self.missing.append(f"{what} before the name of {path.relative_to(self.folder.parent)}")


def _content(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path / "index")
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        disk.sync(Path(f"/proc/self/fd/{descriptor}").readlink())

    def watched(rename: Callable[..., None]) -> Callable[..., None]:
        def watch(source: Any, target: Any, **options: Any) -> None:
            disk.rename(Path(source), Path(target))
            rename(source, target, **options)

        return watch

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", watched(os.rename))  # which those of Path call
    monkeypatch.setattr(os, "replace", watched(os.replace))
    return disk


@pytest.fixture
def built(disk: Disk, embedder: Any, new_catalog: Callable[..., Path]) -> Path:
    build_index(embedder, new_catalog(n=200), disk.folder, factory="IVF4,Flat", shard_rows=60, progress=False)
    return disk.folder


def test_a_build_points_to_nothing_that_a_power_cut_could_take(disk, built):
    disk.end()
    assert disk.renamed == ["shard", "shard", "shard", "shard", "generation", "manifest"]
    assert len(list((built / THUMBNAILS).rglob("*.jpg"))) == 6


@pytest.mark.parametrize("command", ["build", "add", "replace", "delete", "compact", "tune"])
def test_a_change_points_to_nothing_that_a_power_cut_could_take(disk, built, embedder, new_catalog, command):
    disk.renamed.clear()
    more = new_catalog(n=90, images=9, name="more")
    if command in ("build", "add"):
        more.write_text(more.read_text().replace("\ng", "\nm"))
    run = {
        "build": lambda: build_index(embedder, more, built, progress=False),
        "add": lambda: add_items(embedder, more, built, progress=False),
        "replace": lambda: add_items(embedder, more, built, existing="replace", progress=False),
        "delete": lambda: delete_items(built, ids=["g1"]),
        "compact": lambda: compact_index(built),
        "tune": lambda: tune_index(built),
    }[command]
    run()
    disk.end()
    shards = ["shard"] if command in ("build", "add", "replace") else []
    assert disk.renamed == [*shards, "generation", "manifest"]
    assert Manifest.read(built).generation == 2 and (built / LOCK).exists()


def test_pictures_that_a_build_stored_before_it_was_broken_off_are_synced_by_the_one_that_goes_on(
    disk, embedder, new_catalog, monkeypatch
):
    catalog = new_catalog(n=20)
    vector_of = embedder.vector_of

    def stop(item):
        if item.text == "thing number 7":
            raise KeyboardInterrupt
        return vector_of(item)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedder, "vector_of", stop)
        patch.setattr("index.generations.remove_unused", lambda folder, items: None)  # as one that is killed
        build_index(embedder, catalog, disk.folder, shard_rows=4, progress=False)
    assert disk.renamed == ["shard"] and len(list((disk.folder / THUMBNAILS).rglob("*.jpg"))) == 6
    build_index(embedder, catalog, disk.folder, shard_rows=4, progress=False)
    disk.end()
