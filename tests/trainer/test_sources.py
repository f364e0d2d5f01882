import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath
from tqdm import tqdm

from fanoise.errors import CatalogError, ConfigError
from trainer import sources
from trainer.batches import load_plan, load_validation
from trainer.config import DataConfig, ModelConfig, RunConfig, ValidationConfig
from trainer.hub_files import fetch
from trainer.sources import load_pairs, matching, short_names

SHARD = "original-00000-of-00001.parquet"


def config(pairs: list[str], *, held_out: list[str] | None = None, **changes) -> RunConfig:
    data = {name: changes.pop(name) for name in ("images", "max_pairs") if name in changes}
    return RunConfig(
        model=ModelConfig(base="unused"),
        data=DataConfig(pairs=pairs, **data),
        validation=ValidationConfig(pairs=held_out or [], max_pairs=changes.pop("held_out_pairs", 1000)),
        output_dir=Path("unused"),
        batch_size=4,
        chunk_size=4,
        **changes,
    )


def write_own(path: Path, count: int = 20, **row) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"query_text": f"q{number}", "positive_text": f"p{number}", **row} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_set(folder: Path, count: int = 20) -> str:
    folder.mkdir(parents=True)
    rows = [
        {"qry": f"<|image_1|>\nq{n}", "qry_image_path": f"images/{n}.jpg", "pos_text": f"p{n}", "pos_image_path": ""}
        for n in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / SHARD)
    return str(folder / SHARD)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[tuple]:
    """A hub whose files lie under tmp_path/hub; returns what was asked of it."""
    asked = []

    def download(repo_id: str, filename: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((repo_id, filename, repo_type, revision))
        file = tmp_path / "hub" / filename
        if not file.is_file():
            raise huggingface_hub.errors.EntryNotFoundError(f"404 Client Error.\n\nEntry Not Found for {filename}.")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_a_file_on_the_hub_is_fetched_and_read_as_if_it_were_here(tmp_path, hub):
    write_set(tmp_path / "hub/MugVQA")
    (tmp_path / "photos").mkdir()
    source = f"hf://datasets/TIGER-Lab/MMEB-train/MugVQA/{SHARD}"
    plan = load_plan(config([source], images=str(tmp_path / "photos"), max_steps=3))
    assert hub == [("TIGER-Lab/MMEB-train", f"MugVQA/{SHARD}", "dataset", None)]
    assert plan.files == [(source, 20)]
    (pair, *_) = plan.pairs(1)
    assert pair.query.image.parent == tmp_path / "photos/images"
    assert pair.query.id.startswith(f"MugVQA/{SHARD}:")


def test_an_address_may_name_a_revision(tmp_path, hub):
    write_own(tmp_path / "hub/data/pairs.jsonl")
    assert fetch("hf://datasets/me/mugs@v1.0/data/pairs.jsonl") == tmp_path / "hub/data/pairs.jsonl"
    assert hub == [("me/mugs", "data/pairs.jsonl", "dataset", "v1.0")]


@pytest.mark.parametrize("source", ["hf://datasets/me/mugs", "hf://models/me/mugs/a.csv", "hf://datasets/mugs/a.csv"])
def test_an_address_that_cannot_be_one_is_refused(source, hub):
    with pytest.raises(CatalogError, match="write hf://datasets/OWNER/NAME/FILE"):
        fetch(source)
    assert not hub


def test_a_file_that_the_hub_does_not_have_is_one_line(hub):
    with pytest.raises(
        CatalogError, match=r"^hf://datasets/me/mugs/a.csv: cannot be fetched \(404 Client Error\); check"
    ) as caught:
        fetch("hf://datasets/me/mugs/a.csv")
    assert "\n" not in str(caught.value)


def test_without_a_network_the_library_s_own_refusal_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CatalogError, match=r"^hf://datasets/me/mugs/a.csv: cannot be fetched \(.+\)") as caught:
        fetch("hf://datasets/me/mugs/a.csv")
    assert "\n" not in str(caught.value)


def test_images_of_own_pairs_on_the_hub_start_in_the_folder_given_for_them(tmp_path, hub):
    write_own(tmp_path / "hub/pairs.jsonl", positive_image="a.png")
    source = "hf://datasets/me/mugs/pairs.jsonl"
    with pytest.raises(ConfigError, match=r"data.images is not set; hf://.* names images"):
        load_pairs([source], config([source]), max_pairs=None)
    run = config([source], images=str(tmp_path))
    (table,) = load_pairs([source], run, max_pairs=None)
    assert table[0].positive.image == tmp_path / "a.png"


def test_pairs_on_the_hub_that_have_their_images_in_them_need_no_folder(tmp_path, hub):
    rows = [{"query_text": f"q{n}", "positive_image": {"bytes": b"\xff\xd8", "path": f"{n}.jpg"}} for n in range(3)]
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub/pairs.parquet")
    source = "hf://datasets/me/mugs/pairs.parquet"
    (table,) = load_pairs([source], config([source]), max_pairs=None)
    assert table[2].positive.image.read() == b"\xff\xd8"


def test_local_pairs_keep_their_images_beside_them(tmp_path):
    source = write_own(tmp_path / "shop/pairs.jsonl", positive_image="a.png")
    (table,) = load_pairs([source], config([source], images=str(tmp_path)), max_pairs=None)
    assert table[0].positive.image == tmp_path / "shop/a.png"


def test_a_folder_of_images_that_is_not_there_is_refused(tmp_path):
    source = write_own(tmp_path / "pairs.jsonl")
    with pytest.raises(ConfigError, match=r"data.images .*nowhere: no such folder; .*, take --data.images null$"):
        load_plan(config([source], images=str(tmp_path / "nowhere")))


def test_max_pairs_caps_each_file_and_its_weight_by_the_seed(tmp_path):
    sources = [write_own(tmp_path / "a.jsonl", 300), write_own(tmp_path / "b.jsonl", 8)]
    plans = [load_plan(config(sources, max_pairs=10, max_steps=50, seed=seed)) for seed in (0, 0, 1)]
    assert plans[0].files == [(sources[0], 10), (sources[1], 8)]
    seen = [{pair.query.id for step in range(1, 51) for pair in plan.pairs(step)} for plan in plans]
    assert len(seen[0]) == 18
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


@pytest.mark.parametrize("process", [0, 1])
def test_the_first_process_shows_how_many_pairs_are_read(tmp_path, monkeypatch, process):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options) -> None:
            bars.append(options)
            super().__init__(**options | {"disable": True})

        def update(self, count: float | None = 1) -> None:
            bars[-1]["pairs"] = bars[-1].get("pairs", 0) + count

    monkeypatch.setattr(sources, "tqdm", Bar)
    monkeypatch.setattr(sources, "rank", lambda: process)
    files = [write_set(tmp_path / "mmeb/a"), write_own(tmp_path / "own.jsonl", 7)]
    load_pairs(files, config(files, images=str(tmp_path)), max_pairs=5)
    (bar,) = bars
    assert (bar["desc"], bar["pairs"], bar["disable"]) == ("read pairs", 27, process > 0)


def test_a_pattern_stands_for_its_files_each_with_its_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a"):
        write_set(tmp_path / f"mmeb/{name}")
    write_own(tmp_path / "own [1].jsonl")
    data = DataConfig(pairs=["mmeb/*/original-*.parquet", "own [1].jsonl"], weights=[1, 2], images=str(tmp_path))
    plan = load_plan(replace(config(["x"], max_steps=2000), data=data))
    sources = [f"mmeb/a/{SHARD}", f"mmeb/b/{SHARD}", "own [1].jsonl"]
    assert plan.files == [(source, 20) for source in sources]
    counts = Counter(plan.pair(*plan.rows(step)[0].tolist()).query.id.split(":")[0] for step in range(1, 2001))
    assert [counts[f"a/{SHARD}"] / 2000, counts[f"b/{SHARD}"] / 2000] == pytest.approx([0.25, 0.25], abs=0.04)
    held_out = load_validation(config(["x"], held_out=["mmeb/**/*.parquet"], images=str(tmp_path)))
    assert [name for name, _ in held_out] == ["a", "b"]


def test_a_pattern_without_files_is_refused(tmp_path):
    with pytest.raises(CatalogError, match=r"nothing-\*.parquet: no file matches"):
        load_plan(config([str(tmp_path / "nothing-*.parquet")]))


@pytest.fixture
def listed_hub(tmp_path, hub, monkeypatch) -> list[tuple]:
    """The hub with a list of its files, matched by the library's own code; no network."""

    def resolve(self, path: str, revision: str | None = None) -> HfFileSystemResolvedRepositoryPath:
        found = re.fullmatch(r"datasets/me/mugs(?:@([^/]+))?/?(.*)", path)
        return HfFileSystemResolvedRepositoryPath("dataset", "me/mugs", "main", found[2], found[1])

    def listing(self, path: str, detail: bool = True, **_: object) -> list:
        folder = tmp_path / "hub" / resolve(self, path).path_in_repo
        names = [f"{path.rstrip('/')}/{entry.name}" for entry in folder.iterdir()]
        found = [info(self, name) for name in names]
        return found if detail else names

    def info(self, path: str, **_: object) -> dict:
        entry = tmp_path / "hub" / resolve(self, path).path_in_repo
        return {"name": path, "type": "directory" if entry.is_dir() else "file", "size": 1}

    fakes = {"resolve_path": resolve, "ls": listing, "info": info}
    for name, function in fakes.items() | {(name, getattr(AbstractFileSystem, name)) for name in ("find", "walk")}:
        monkeypatch.setattr(huggingface_hub.HfFileSystem, name, function)
    return hub


@pytest.mark.parametrize("revision", ["", "@v1.0"])
def test_a_pattern_on_the_hub_stands_for_its_files_each_with_its_weight(tmp_path, listed_hub, revision):
    for name in ("b", "a"):
        write_set(tmp_path / "hub" / name)
        (tmp_path / "hub" / name / "diverse_instruction-00000-of-00001.parquet").write_bytes(b"")
    (tmp_path / "hub/a/original-images").mkdir()
    (tmp_path / "hub/.hidden").mkdir()
    (tmp_path / "hub/.hidden" / SHARD).write_bytes(b"")
    pattern = f"hf://datasets/me/mugs{revision}/*/original-*"
    data = DataConfig(pairs=[pattern], weights=[1], images=str(tmp_path))
    plan = load_plan(replace(config(["x"], max_steps=3), data=data))
    assert plan.files == [(f"hf://datasets/me/mugs{revision}/{name}/{SHARD}", 20) for name in ("a", "b")]
    assert [(repo, file, at) for repo, file, _, at in listed_hub] == [
        ("me/mugs", f"{name}/{SHARD}", revision[1:] or None) for name in ("a", "b")
    ]
    held_out = load_validation(config(["x"], held_out=[pattern], images=str(tmp_path)))
    assert [name for name, _ in held_out] == ["a", "b"]


def test_a_pattern_on_the_hub_without_files_is_refused(tmp_path, listed_hub):
    write_set(tmp_path / "hub/a")
    with pytest.raises(CatalogError, match=r"^hf://datasets/me/mugs/\*/none-\*: no file matches this pattern"):
        matching("hf://datasets/me/mugs/*/none-*")
    with pytest.raises(CatalogError, match="write hf://datasets/OWNER/NAME/FILE"):
        matching("hf://datasets/*/a.parquet")


def test_files_on_the_hub_are_sorted_however_they_are_listed(monkeypatch):
    found = {f"datasets/me/mugs/{name}.csv": {"type": "file"} for name in "bca"}
    monkeypatch.setattr(huggingface_hub.HfFileSystem, "glob", lambda *_, **__: found)
    assert matching("hf://datasets/me/mugs/*.csv") == [f"hf://datasets/me/mugs/{name}.csv" for name in "abc"]


def test_a_hub_that_cannot_be_asked_for_a_pattern_is_one_line(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise huggingface_hub.errors.OfflineModeIsEnabled("Cannot reach it: offline mode is enabled.\n\nMore.")

    monkeypatch.setattr(huggingface_hub.HfFileSystem, "glob", fail)
    with pytest.raises(
        CatalogError, match=r"^hf://\S+: cannot be looked up \(Cannot reach it: offline mode is"
    ) as caught:
        matching("hf://datasets/me/mugs/*.csv")
    assert "\n" not in str(caught.value)


def test_held_out_pairs_come_with_names_and_a_cap_of_their_own(tmp_path):
    sets = [write_set(tmp_path / "mmeb/ImageNet_1K"), write_set(tmp_path / "mmeb/VOC2007", 6)]
    own = write_own(tmp_path / "held_out.jsonl", 30)
    run = config([own], held_out=[*sets, own], images=str(tmp_path), held_out_pairs=10, max_pairs=5)
    found = load_validation(run)
    assert [(name, len(table)) for name, table in found] == [("ImageNet_1K", 10), ("VOC2007", 6), ("held_out", 10)]
    assert load_validation(config([own])) == []


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a/text.jsonl", "b/photo.csv"], ["text", "photo"]),
        (["a/text.jsonl", "b/text.csv", "b/photo.csv"], ["a/text", "b/text", "photo"]),
        (["a/text.jsonl", "a/text.csv"], ["a/text#1", "a/text#2"]),
        ([f"m/ImageNet_1K/{SHARD}"], ["ImageNet_1K"]),
        ([f"hf://datasets/TIGER-Lab/MMEB-train/CIRR/{SHARD}", "CIRR.csv"], [f"CIRR/{SHARD[:-8]}", "CIRR"]),
        (["text.jsonl", SHARD], ["text", SHARD[:-8]]),
    ],
)
def test_names_are_as_short_as_they_can_be(sources, names):
    assert short_names(sources) == names
