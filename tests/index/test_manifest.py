import copy
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import index.faiss_file
from fanoise.errors import ArtifactError, CatalogError, InputError
from index.__main__ import main
from index.build import build_index
from index.manifest import GENERATION_FILES, FileRecord, Manifest, _digest
from index.search import Index
from index.update import add_items, delete_items
from index.verify import verify_index
from tests.index.test_tuning import unit_rows

VALUES = [
    None, True, "", "no", "\ud800", "\x00", "../..", [], {}, [{}], {"a": 1}, [[[]]], -1, 0, 1, 10**30, 0.5, 1e308,
    10**400, "\x1b]0;",
    float("nan"), {"nprobe": -1}, {"nprobe": 10**18}, {"efSearch": 8}, {"target": True}, ["a", None], "A" * 30_000,
    "IVF150000000,Flat", "PQ32x24",
]  # fmt: skip


def generation(folder):
    return Manifest.read(folder).generation_in(folder)


def flip_a_byte(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_a_manifest_reads_back_as_it_was_written(built, tmp_path):
    manifest = Manifest.read(built)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


@pytest.mark.parametrize("name", ["vectors.npy", "items.parquet", "index.faiss", "deleted.npy"])
def test_a_flipped_byte_is_refused_and_the_file_named(built, name):
    file = generation(built) / name
    for at in (0, file.stat().st_size // 2, -1):
        flip_a_byte(file, at)
        with pytest.raises(ArtifactError, match=rf"{name} is damaged.*rebuild"):
            Index.open(built)
        flip_a_byte(file, at)
    assert len(Index.open(built)) == 40


def test_a_changed_ledger_is_refused(built):
    (generation(built) / "rejects.jsonl").write_text("{}\n")
    with pytest.raises(ArtifactError, match=r"rejects\.jsonl has 3 bytes instead of 0"):
        Index.open(built)


def test_a_flipped_byte_anywhere_in_the_manifest_is_refused(built):
    size = (built / "manifest.json").stat().st_size
    for at in range(0, size - 1, 37):
        flip_a_byte(built / "manifest.json", at)
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            Index.open(built)
        flip_a_byte(built / "manifest.json", at)


@pytest.mark.parametrize("name", GENERATION_FILES)
def test_a_missing_file_is_named(built, name):
    (generation(built) / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        Index.open(built)


def test_faiss_never_sees_a_file_with_another_checksum(built, monkeypatch):
    def never(path, flags):
        raise AssertionError("faiss read an unchecked file")

    monkeypatch.setattr(index.faiss_file.faiss, "read_index", never)
    flip_a_byte(generation(built) / "index.faiss")
    with pytest.raises(ArtifactError):
        Index.open(built)


def test_without_verify_only_sizes_are_compared(built):
    data = bytearray((generation(built) / "rejects.jsonl").read_bytes())
    (generation(built) / "rejects.jsonl").write_bytes(data)
    flip_a_byte(generation(built) / "vectors.npy")
    assert len(Index.open(built, verify=False)) == 40
    with (generation(built) / "vectors.npy").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"vectors\.npy has \d+ bytes instead of"):
        Index.open(built, verify=False)


def test_a_value_changed_by_hand_is_refused(built):
    text = (built / "manifest.json").read_text()
    (built / "manifest.json").write_text(text.replace('"strength": 0.1', '"strength": 0.2'))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged \(its digest"):
        Index.open(built)


@pytest.mark.parametrize("shape", [(39, 16), (40, 8)])
def test_a_faiss_index_over_other_vectors_is_refused(built, shape):
    manifest = Manifest.read(built)
    other = faiss.IndexFlatIP(shape[1])
    other.add(np.zeros(shape, dtype=np.float32))
    faiss.write_index(other, str(generation(built) / "index.faiss"))
    files = manifest.files | {"index.faiss": FileRecord.of(generation(built) / "index.faiss")}
    replace(manifest, files=files).write(built)
    with pytest.raises(ArtifactError, match=rf"index\.faiss holds {shape[0]} vectors of dim {shape[1]}"):
        Index.open(built)


def test_counts_that_disagree_are_refused(built):
    replace(Manifest.read(built), count=39).write(built)
    with pytest.raises(ArtifactError, match=r"vectors\.npy holds 40 fp32 vectors of dim 16.*manifest says 39"):
        Index.open(built)


def forge(folder, name):
    """Make the manifest agree with a file that was replaced."""
    manifest = Manifest.read(folder)
    replace(manifest, files=manifest.files | {name: FileRecord.of(generation(folder) / name)}).write(folder)


def refusals(folder, embedder, more):
    """What opening, checking, deleting and adding say."""
    for command in (
        lambda: Index.open(folder),
        lambda: delete_items(folder, ids=["g3"]),
        lambda: add_items(embedder, more, folder, progress=False),
    ):
        with pytest.raises(ArtifactError) as caught:
            command()
        yield str(caught.value)
    yield from verify_index(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(0, 39), "items.parquet holds 39 items, but the manifest says 40"),
        (lambda table: pa.concat_tables([table, table]), "not numbered"),
        (lambda table: table.set_column(1, "id", pa.array(range(40))), "column id is of type int64 instead of string"),
        (lambda table: table.set_column(2, "text", pa.array([[1]] * 40)), "column text is of type list"),
        (lambda table: table.set_column(0, "row", pa.array(map(str, range(40)))), "column row is of type string"),
        (lambda table: table.drop_columns(["thumbnail_sha256"]), "columns missing: thumbnail_sha256"),
    ],
)
def test_items_of_another_kind_are_refused_by_every_command(embedder, built, new_catalog, change, message):
    file = generation(built) / "items.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    forge(built, "items.parquet")
    for said in refusals(built, embedder, new_catalog(n=3, images=0, name="more")):
        assert message in said and "rebuild the index" in said and "\n" not in said


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"id": 3, "path": null, "reason": "x"}\n', b"x"]
)
def test_a_ledger_of_something_else_is_a_fault(embedder, built, tmp_path, line):
    (generation(built) / "rejects.jsonl").write_bytes(line)
    replace(Manifest.read(built), rejected=1).write(built)
    forge(built, "rejects.jsonl")
    (tmp_path / "more.csv").write_text("id,text\nm1,more\n")
    [fault] = verify_index(built)
    assert "rejects.jsonl: line 1 is no reject" in fault and "\n" not in fault
    with pytest.raises(ArtifactError, match="line 1 is no reject"):
        add_items(embedder, tmp_path / "more.csv", built, progress=False)


def test_pickled_vectors_are_never_loaded(built):
    manifest = Manifest.read(built)
    np.save(generation(built) / "vectors.npy", np.array([{"not": "numbers"}], dtype=object))
    files = manifest.files | {"vectors.npy": FileRecord.of(generation(built) / "vectors.npy")}
    replace(manifest, files=files).write(built)
    with pytest.raises(ArtifactError, match=r"vectors\.npy cannot be read"):
        Index.open(built)


def test_a_manifest_cannot_name_files_outside_its_folder(built):
    manifest = Manifest.read(built)
    record = manifest.files["index.faiss"]
    with pytest.raises(ValueError, match="files must be"):
        replace(manifest, files={"../../elsewhere.faiss": record})
    object.__setattr__(manifest, "files", {"../../elsewhere.faiss": record})
    manifest.write(built)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged \(files must be"):
        Index.open(built)


def test_another_format_version_is_named(built):
    content = json.loads((built / "manifest.json").read_text())
    (built / "manifest.json").write_text(json.dumps(content | {"format_version": 1}))
    with pytest.raises(ArtifactError, match="format version 1, this version reads 2; rebuild it with"):
        Index.open(built)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format_version": 2}', "\x00\xff", "[" * 100_000])
def test_nonsense_in_place_of_a_manifest_is_one_line(built, text):
    (built / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged") as caught:
        Index.open(built)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "link to nothing"])
def test_what_lies_in_place_of_a_manifest_costs_no_generation(embedder, built, new_catalog, kind):
    file = built / "manifest.json"
    file.rename(built / "aside.json")
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(file if kind == "loop" else "nowhere")
    with pytest.raises(ArtifactError, match=r"manifest\.json is no file"):
        Index.open(built)
    assert "is no file" in verify_index(built)[0]
    with pytest.raises(CatalogError):
        build_index(embedder, built.parent / "none.csv", built, progress=False)
    file.rmdir() if kind == "folder" else file.unlink()
    (built / "aside.json").rename(file)
    assert verify_index(built) == []


def test_a_manifest_that_may_not_be_read_is_not_called_damaged(built, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for command in (Index.open, verify_index, Manifest.read):
        with pytest.raises(PermissionError):
            command(built)


def test_items_that_are_a_pipe_are_not_waited_for(built, capsys):
    file = generation(built) / "items.parquet"
    file.unlink()
    os.mkfifo(file)
    assert main(["info", "--index", str(built)]) == 0
    assert "unknown, items.parquet cannot be read" in capsys.readouterr().out


def test_a_folder_without_manifest_is_no_index(tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.json; build one with"):
        Index.open(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        Index.open(tmp_path / "nowhere")


def places(content, at=()) -> Iterator[tuple]:
    """The way to every value, whole objects and lists among them."""
    if at:
        yield at
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*at, key))


def point(nprobe, recall):
    return {"parameters": f"nprobe={nprobe}", "recall": recall, "ms": 0.1 * nprobe}


@pytest.fixture
def tuned(embedder, new_catalog, tmp_path):
    """Every field of its manifest has content, but not much of it."""
    folder = tmp_path / "index"
    build_index(embedder, new_catalog(n=160, images=0), folder, factory="IVF4,Flat", progress=False)
    manifest = Manifest.read(folder)
    catalog = replace(manifest.catalog, options={"image": ["front", "back"], "images": "..", "allow_urls": True})
    few = {"versions": {"python": "3"}, "curve": [point(1, 0.8), point(2, 1.0)], "group_by": "colour"}
    replace(manifest, catalog=catalog, added=[manifest.catalog], **few).write(folder)
    return folder


def write_content(folder, content):
    content = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(content | {"digest": _digest(content)})
    (folder / "manifest.json").write_text(text)


SHOWN = ("embedder", "catalog", "added", "factory_reason", "created", "versions")
"""What is only printed, as long as nothing is encoded."""


def use(folder, capsys, part: str) -> None:
    """All that reads this part of a manifest: each works, or says in one line why not."""
    plot = ["--plot", str(folder.parent / "curve.png")] if part in ("curve", "tuning", "search") else []
    try:
        assert main(["info", "--index", str(folder), *plot]) == 0
        assert "\x1b" not in capsys.readouterr().out
    except SystemExit as end:
        assert end.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    if part in SHOWN:
        return
    try:
        assert len(Index.open(folder, verify=False).find(unit_rows(1), 3)[0]) == 3
    except (ArtifactError, InputError) as error:
        assert "\n" not in str(error)
    assert not any("\n" in fault for fault in verify_index(folder))


def test_whatever_a_manifest_with_a_right_digest_says_it_works_or_is_refused_in_one_line(tuned, capsys):
    sound = json.loads((tuned / "manifest.json").read_text())
    accepted, refused = 0, 0
    for *way, last in places(sound):
        for value in VALUES:
            content = copy.deepcopy(sound)
            parent = content
            for key in way:
                parent = parent[key]
            parent[last] = value
            write_content(tuned, content)
            try:
                Manifest.read(tuned)
            except ArtifactError as error:  # which is what every command then says
                assert "\n" not in str(error)
                refused += 1
                continue
            use(tuned, capsys, (*way, last)[0])
            accepted += 1
    assert refused > 700 and accepted > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ann_overlap": ""}, "ann_overlap must be of type int or float, got ''"),
        ({"ann_overlap": 1.5}, "ann_overlap and recalls must be from 0 to 1"),
        ({"curve": [{}]}, r"curve\[0\] lacks 'parameters'"),
        ({"curve": [{"parameters": "", "recall": 1.0, "ms": -1.0}]}, "ms of the curve must be from 0"),
        ({"tuning": {"a": 1}}, "tuning lacks queries, recall, source, target"),
        ({"tuning": {"target": True}}, "tuning.target must be of type int or float, got True"),
        ({"search": None}, "search must be of type dict, got None"),
        ({"search": {"nprobe": 0.5}}, "search.nprobe must be of type int, got 0.5"),
        ({"group_by": True}, "group_by must be of type str or NoneType|group_by must be of type str, got True"),
        ({"count": 1e308}, "count must be of type int"),
        ({"precision": "fp8"}, "precision must be one of fp32, fp16, int8, got 'fp8'"),
        ({"added": [None]}, "NoneType"),
        ({"embedder": {"noise": True}}, "embedder.*missing|keys missing"),
        ({"factory": "\ud800"}, "surrogates not allowed"),
        ({"factory": "A" * 257}, "factory must have at most 256 characters, got 257"),
    ],
)
def test_a_value_of_another_type_is_named(built, change, message):
    content = json.loads((built / "manifest.json").read_text())
    write_content(built, content | change)
    with pytest.raises(ArtifactError, match=rf"manifest\.json is damaged \(.*({message})"):
        Manifest.read(built)


def test_values_nested_without_end_are_refused(built):
    content = json.loads((built / "manifest.json").read_text())
    deep: dict = {}
    for _ in range(300):
        deep = {"a": deep}
    content["embedder"]["noise"] = deep
    write_content(built, content)
    with pytest.raises(ArtifactError, match=r"noise\.a is nested more than 8 deep"):
        Manifest.read(built)


def test_keys_of_a_later_version_within_options_are_left_alone(built):
    content = json.loads((built / "manifest.json").read_text())
    content["catalog"]["options"]["later"] = 1
    write_content(built, content)
    assert len(Index.open(built)) == 40


@pytest.mark.parametrize("options", [{"images": 3}, {"image": [None]}, {"allow_urls": "yes"}, {"vectors": []}])
def test_options_of_a_catalogue_are_checked(built, options):
    content = json.loads((built / "manifest.json").read_text())
    content["catalog"]["options"] = options
    write_content(built, content)
    with pytest.raises(ArtifactError, match=rf"options\.{next(iter(options))}"):
        Manifest.read(built)
