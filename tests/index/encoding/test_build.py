"""A build from end to end: broken off and gone on with, by several processes, and again on a changed catalogue."""

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import index.build
import index.encoding.lookup
from fanoise.catalog import read_catalog
from fanoise.embedder import Embedder
from fanoise.errors import CatalogError, InputError
from index.build import Build, build_index
from index.encoding.intake import Intake
from index.encoding.plan import PlanFolder
from index.manifest import Manifest
from index.report import describe_build
from index.search import Index
from index.verify import verify_index
from tests.index.encoding.fakes import DIM, SplitEmbedder, draw, vector_of, write_catalog


def build(embedder, catalog, out, **options):
    return Build(embedder=embedder, catalog=catalog, out=out, **{"progress": False, "workers": 0} | options).run()


def counts(built):
    return built.encoded, built.reused, built.removed, built.rejected


def generation(folder):
    return Manifest.read(folder).generation_in(folder)


def check(folder, catalog, *, without=()):
    """The index holds every row of the catalogue, once and in order, with its own vector and thumbnail."""
    rows = [row for row in read_catalog(catalog, on_reject=lambda *_: None) if row.id not in without]
    index = Index.open(folder)
    assert index.ids == [row.id for row in rows]
    assert np.array_equal(index.vectors.rows(slice(None)), np.stack([vector_of(row) for row in rows]))
    assert [index.thumbnail_digest(row) is not None for row in range(len(rows))] == [
        row.image is not None for row in rows
    ]
    assert verify_index(folder) == []
    assert not (folder / "encoding").exists()
    shown = {index.thumbnail(row) for row in range(len(rows))} - {None}
    assert len(shown) == sum(row.image is not None for row in rows)


def contents(folder):
    return {path.name: path.read_bytes() for path in generation(folder).iterdir()}


def shards(folder):
    return sorted(path.name for path in (folder / "encoding").glob("*/shard-*"))


# going on


def test_a_build_that_was_killed_at_any_moment_goes_on(spawn, run_build, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 120, images=20)
    options = {"catalog": catalog, "out": tmp_path / "index", "shard_rows": 10, "batch_size": 5}
    rng = random.Random(5)
    killed = 0
    for moment in range(12):
        process = spawn(**options, workers=moment % 3, die_at=rng.randint(1, 150))
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if (tmp_path / "index" / "manifest.json").exists():
            break
        assert process.returncode == -signal.SIGKILL
    assert killed >= 4
    run_build(**options)
    check(tmp_path / "index", catalog)
    build(SplitEmbedder(), catalog, tmp_path / "whole", shard_rows=10, batch_size=5)
    assert contents(tmp_path / "whole") == contents(tmp_path / "index")


def test_what_is_finished_is_not_encoded_again(spawn, run_build, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 120, images=20)
    options = {"catalog": catalog, "out": tmp_path / "index", "shard_rows": 10, "batch_size": 5}
    process = spawn(**options, workers=1, die_at=200)
    process.communicate()
    kept = 10 * len(shards(tmp_path / "index"))
    assert process.returncode == -signal.SIGKILL and 20 <= kept < 120
    result = run_build(**options)
    assert result["done"] and result["here"] == 120 - kept
    assert (result["encoded"], result["reused"], result["rejected"]) == (120, 0, 0)


def test_several_processes_that_are_killed_go_on_in_others(spawn, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 150, images=20)
    options = {"catalog": catalog, "out": tmp_path / "index", "shard_rows": 10, "batch_size": 5, "shared": True}
    rng = random.Random(8)
    killed = 0
    for _ in range(4):
        processes = [spawn(**options, workers=i, delay_s=0.01, die_at=rng.randint(20, 120)) for i in range(3)]
        for process in processes:
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
            assert process.returncode in (0, -signal.SIGKILL)
    for process in [spawn(**options, workers=i) for i in (0, 1)]:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert killed >= 6
    check(tmp_path / "index", catalog)
    build(SplitEmbedder(), catalog, tmp_path / "alone", shard_rows=10, batch_size=5)
    assert contents(tmp_path / "alone") == contents(tmp_path / "index")


def test_a_delete_in_between_leaves_the_unfinished_build_as_it_is(spawn, split, tmp_path):
    """Nothing but a build removes shards: see PlanFolder."""
    from index.update import compact_index, delete_items

    catalog = write_catalog(tmp_path / "c.jsonl", 20, images=10)
    build(split, catalog, tmp_path / "index")
    write_catalog(catalog, 90, images=40)
    process = spawn(catalog=catalog, out=tmp_path / "index", shard_rows=10, batch_size=5, die_at=200)
    process.communicate()
    kept = shards(tmp_path / "index")
    assert process.returncode == -signal.SIGKILL and 3 <= len(kept) < 9
    delete_items(tmp_path / "index", ids=["r1", "r4"])
    compact_index(tmp_path / "index")
    compact_index(tmp_path / "index")
    assert shards(tmp_path / "index") == kept
    split.module.batches.clear()
    build(split, catalog, tmp_path / "index", shard_rows=10, batch_size=5)
    assert sum(split.module.batches) == 90 - 10 * len(kept)
    check(tmp_path / "index", catalog)


def test_ctrl_c_keeps_what_is_finished(spawn, run_build, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 60)
    options = {"catalog": catalog, "out": tmp_path / "index", "shard_rows": 10, "batch_size": 5, "workers": 1}
    process = spawn(**options, delay_s=0.2)
    while not shards(tmp_path / "index"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "interrupted\n")
    kept = 10 * len(shards(tmp_path / "index"))
    assert 10 <= kept < 60
    assert run_build(**options)["here"] == 60 - kept
    check(tmp_path / "index", catalog)


def test_large_pictures_go_through_the_model_a_few_at_a_time(split, tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "c.jsonl", 10, images=5)
    monkeypatch.setattr(index.encoding.lookup, "_MOST_PIXELS_OPEN", 2 * 48 * 36)
    build(split, catalog, tmp_path / "index")
    assert (len(split.module.batches), sum(split.module.batches)) == (3, 10)  # of five pictures two at a time
    check(tmp_path / "index", catalog)


def test_an_error_after_encoding_costs_no_row(split, tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "c.jsonl", 30)

    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(index.build, "write_ann", fail)
        build(split, catalog, tmp_path / "index", shard_rows=10)
    assert len(split.module.batches) == 3
    built = build(split, catalog, tmp_path / "index", shard_rows=10)
    assert counts(built) == (30, 0, 0, 0)
    assert "\nEncoded 30 (30 before, or by other processes)" in describe_build(tmp_path / "index", built, 1.0)
    assert len(split.module.batches) == 3
    check(tmp_path / "index", catalog)


def test_killed_right_after_the_commit_it_leaves_shards_that_do_not_harm(split, tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "c.jsonl", 30)
    with monkeypatch.context() as patch:
        patch.setattr(PlanFolder, "remove_assembled", lambda *_, **__: None)
        build(split, catalog, tmp_path / "index", shard_rows=10)
    assert len(shards(tmp_path / "index")) == 3
    write_catalog(catalog, 31)
    assert counts(build(split, catalog, tmp_path / "index", shard_rows=10)) == (1, 30, 0, 0)
    check(tmp_path / "index", catalog)


@pytest.mark.parametrize("shared", [False, True])
def test_killed_right_after_the_commit_a_picture_that_is_changed_since_comes_in(split, tmp_path, monkeypatch, shared):
    catalog = write_catalog(tmp_path / "c.jsonl", 30, images=4)
    with monkeypatch.context() as patch:
        patch.setattr(PlanFolder, "remove_assembled", lambda *_, **__: None)
        build(split, catalog, tmp_path / "index", shard_rows=10, shared=shared)
    draw(tmp_path / "pictures" / "4.png", 77)
    assert counts(build(split, catalog, tmp_path / "index", shard_rows=10, shared=shared)) == (1, 29, 0, 0)
    check(tmp_path / "index", catalog)


@pytest.mark.parametrize("named", ["inside", "outside"])
def test_a_picture_that_was_changed_after_its_shard_was_finished_comes_in(split, tmp_path, monkeypatch, named):
    catalog = write_catalog(tmp_path / "c.jsonl", 40, images=15)
    options = {"shard_rows": 10}
    if named == "outside":
        (tmp_path / "pictures").rename(tmp_path / "there")
        text = catalog.read_text().replace("pictures/", f"{tmp_path}/there/")
        catalog = tmp_path / "table" / "c.jsonl"
        catalog.parent.mkdir()
        catalog.write_text(text)
        options["allow_outside"] = True

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Intake, "assemble", stop)
        build(split, catalog, tmp_path / "index", **options)
    folder = tmp_path / ("pictures" if named == "inside" else "there")
    draw(folder / "4.png", 400)
    os.utime(folder / "12.png", ns=(0, 12345))  # another time, and the same picture
    split.module.batches.clear()
    built = build(split, catalog, tmp_path / "index", **options)
    assert sum(split.module.batches) == 1
    assert counts(built) == (20 + 1, 19, 0, 0)
    index = Index.open(tmp_path / "index")
    rows = list(read_catalog(catalog, allow_outside=True))
    assert np.array_equal(index.vectors.rows(slice(None)), np.stack([vector_of(row) for row in rows]))


@pytest.mark.parametrize("images", ["pics", "t/pics", "t/../pics", "t"])
def test_shards_of_images_whose_paths_are_relative_stay_good(split, tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    catalog = write_catalog(Path("t") / "c.jsonl", 20, images=10)
    if images != "t":
        (tmp_path / "t" / "pictures").rename(tmp_path / "t" / "pics")
        catalog.write_text(catalog.read_text().replace("pictures/", ""))
    if images in ("pics", "t/../pics"):
        (tmp_path / "t" / "pics").rename(tmp_path / "pics")
    check_going_on(split, catalog, monkeypatch, changed=next(Path(images).resolve().rglob("4.png")), images=images)


def test_shards_of_images_whose_names_are_not_utf8_stay_good(split, tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "c.jsonl", 20, images=10)
    odd = tmp_path / "pictures" / os.fsdecode(b"caf\xe9.png")
    (tmp_path / "pictures" / "4.png").rename(odd)
    catalog.write_text(catalog.read_text().replace("4.png", json.dumps(odd.name)[1:-1], 1))
    check_going_on(split, catalog, monkeypatch, changed=odd)


def check_going_on(split, catalog, monkeypatch, *, changed, **options):
    """A build that was broken off encodes nothing again but a picture that was changed."""
    out = changed.parents[1] / "index"

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Intake, "assemble", stop)
        for count in (None, 0, 1):
            if count == 1:
                draw(changed, 400)
            split.module.batches.clear()
            with pytest.raises(KeyboardInterrupt):
                build(split, catalog, out, shard_rows=5, **options)
            assert count is None or sum(split.module.batches) == count
            assert bool(list((out / "encoding").glob("*/again-*"))) == (count == 1)
    assert build(split, catalog, out, shard_rows=5, **options).encoded > 0


def test_files_that_are_passed_over_are_counted(split, tmp_path):
    folder = tmp_path / "photos"
    for i in range(3):
        draw(folder / "a" / f"{i}.png", i)
    for name in ("a/x.txt", "y.TXT", "z.tga", "scan", ".hidden", "._0.png", ".git/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    built = build(split, folder, tmp_path / "index")
    assert (built.encoded, built.passed_over) == (3, {".txt": 2, ".tga": 1, "": 1})
    line = "Passed over 4 files of no kind that is read: 2 × .txt, 1 × no suffix, 1 × .tga"
    assert line in describe_build(tmp_path / "index", built, 1.0).splitlines()
    for i in range(20):
        (folder / f"log.{i}").touch()
    built = build(split, folder, tmp_path / "index")
    assert len(built.passed_over) == 10 and sum(built.passed_over.values()) == 24
    assert built.passed_over["other"] == 14 and next(iter(built.passed_over)) == ".txt"


def test_broken_off_and_with_another_catalogue_rows_are_still_known(split, tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "c.jsonl", 40, images=10)

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Intake, "assemble", stop)
        build(split, catalog, tmp_path / "index", shard_rows=10)
    write_catalog(catalog, 45, images=10)
    split.module.batches.clear()
    assert counts(build(split, catalog, tmp_path / "index", shard_rows=7)) == (5, 40, 0, 0)
    assert sum(split.module.batches) == 5
    check(tmp_path / "index", catalog)


def test_what_was_rejected_is_tried_again_and_the_rest_is_not(split, tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "c.jsonl", 40, images=10)
    good = (tmp_path / "pictures" / "4.png").read_bytes()
    (tmp_path / "pictures" / "4.png").write_bytes(b"broken")
    (tmp_path / "pictures" / "6.png").rename(tmp_path / "away.png")

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index.build, "write_ann", stop)
        build(split, catalog, tmp_path / "index", shard_rows=10)
    (tmp_path / "pictures" / "4.png").write_bytes(good)
    split.module.batches.clear()
    built = build(split, catalog, tmp_path / "index", shard_rows=10)
    assert sum(split.module.batches) == 1
    assert counts(built) == (30 + 1, 8, 0, 1)
    check(tmp_path / "index", catalog, without=["r6"])
    (tmp_path / "away.png").rename(tmp_path / "pictures" / "6.png")
    assert counts(build(split, catalog, tmp_path / "index", shard_rows=10)) == (1, 39, 0, 0)
    check(tmp_path / "index", catalog)


def test_a_third_of_rejects_is_not_an_index_if_a_tenth_is_allowed(split, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 30, images=10)
    for i in range(0, 20, 2):
        (tmp_path / "pictures" / f"{i}.png").rename(tmp_path / f"{i}.png")
    with pytest.raises(CatalogError, match=r"10 of 30 rows were rejected, .* 10× file not found"):
        build(split, catalog, tmp_path / "index", max_rejects=0.1)
    assert not (tmp_path / "index" / "manifest.json").exists()
    for i in range(0, 20, 2):
        (tmp_path / f"{i}.png").rename(tmp_path / "pictures" / f"{i}.png")
    split.module.batches.clear()
    assert counts(build(split, catalog, tmp_path / "index", max_rejects=0.1)) == (10, 20, 0, 0)
    assert sum(split.module.batches) == 10
    check(tmp_path / "index", catalog)


def test_a_catalogue_that_changes_while_it_is_read_is_not_mixed(split, tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "c.jsonl", 30)
    forward = split.module.forward

    def change(batch):
        if not split.module.batches:
            write_catalog(catalog, 31, text="other {}")
        return forward(batch)

    monkeypatch.setattr(split.module, "forward", change)
    with pytest.raises(CatalogError, match=r"c\.jsonl was changed while it was read"):
        build(split, catalog, tmp_path / "index", shard_rows=10, batch_size=5)
    assert not (tmp_path / "index" / "manifest.json").exists()
    build(split, catalog, tmp_path / "index", shard_rows=10)
    check(tmp_path / "index", catalog)


# again


def test_an_unchanged_catalogue_is_not_encoded_again(split, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 50, images=10)
    build(split, catalog, tmp_path / "index")
    before = contents(tmp_path / "index")
    split.module.batches.clear()
    built = build(split, catalog, tmp_path / "index")
    assert counts(built) == (0, 50, 0, 0) and split.module.batches == []
    assert contents(tmp_path / "index") == before
    assert built.manifest.generation == 2
    check(tmp_path / "index", catalog)


def test_only_what_changed_is_encoded_and_what_is_gone_disappears(split, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 50, images=10)
    build(split, catalog, tmp_path / "index")
    rows = [json.loads(line) for line in catalog.read_text().splitlines()]
    draw(tmp_path / "pictures" / "8.png", 800)  # another picture under the same name
    rows[3]["text"] = "something else"
    rows[5]["price"] = -1  # a field is not encoded
    rows[7]["id"] = "renamed"  # nor is the id
    moved = [rows[20], *rows[:9], *rows[12:20], *rows[21:], {"id": "new", "text": "new one"}]
    catalog.write_text("".join(json.dumps(row) + "\n" for row in moved))
    split.module.batches.clear()
    built = build(split, catalog, tmp_path / "index")
    assert counts(built) == (3, 45, 4, 0)  # 8, 3 and new; without 9, 10, 11 and r7
    assert sum(split.module.batches) == 3
    check(tmp_path / "index", catalog)
    fields = pq.read_table(generation(tmp_path / "index") / "items.parquet")["fields"].to_pylist()
    assert [one["price"] for one in fields] == [row.get("price") for row in moved]


def test_rows_that_were_added_and_those_that_were_deleted_are_known_as_well(split, tmp_path):
    from index.update import add_items, delete_items

    catalog = write_catalog(tmp_path / "c.jsonl", 30)
    more = write_catalog(tmp_path / "more.jsonl", 35)
    build(split, catalog, tmp_path / "index")
    add_items(split, more, tmp_path / "index", existing="replace", progress=False)
    delete_items(tmp_path / "index", ids=["r3", "r34"])
    split.module.batches.clear()
    assert counts(build(split, more, tmp_path / "index")) == (0, 35, 0, 0)
    assert split.module.batches == []
    check(tmp_path / "index", more)


@pytest.mark.parametrize("options", [{"fresh": True}, {"weights": "w2"}])
def test_another_embedder_or_fresh_encodes_every_row(tmp_path, options):
    catalog = write_catalog(tmp_path / "c.jsonl", 20)
    build(SplitEmbedder(), catalog, tmp_path / "index")
    other = SplitEmbedder(weights=options.pop("weights", "w1"))
    assert counts(build(other, catalog, tmp_path / "index", **options)) == (20, 0, 0, 0)
    check(tmp_path / "index", catalog)


def test_a_damaged_index_lends_no_vectors(split, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 20)
    build(split, catalog, tmp_path / "index")
    path = generation(tmp_path / "index") / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    assert counts(build(split, catalog, tmp_path / "index"))[:2] == (20, 0)
    check(tmp_path / "index", catalog)


@pytest.mark.parametrize(("precision", "dim", "reused"), [("int8", None, 20), ("fp16", 8, 20), ("fp32", 8, 20)])
def test_full_vectors_serve_for_smaller_ones(split, tmp_path, precision, dim, reused):
    catalog = write_catalog(tmp_path / "c.jsonl", 20)
    build(split, catalog, tmp_path / "index")
    build(split, catalog, tmp_path / "direct", precision=precision, dim=dim)
    assert build(split, catalog, tmp_path / "index", precision=precision, dim=dim).reused == reused
    assert contents(tmp_path / "index")["vectors.npy"] == contents(tmp_path / "direct")["vectors.npy"]
    assert build(split, catalog, tmp_path / "index").reused == 0  # and not the other way round
    check(tmp_path / "index", catalog)


# what is in it


def test_several_images_of_a_row_are_grouped(split, tmp_path):
    for i in range(3):
        draw(tmp_path / f"{i}.png", i)
    rows = [{"id": "a", "image": ["0.png", "1.png"]}, {"id": "b", "image": "2.png"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert build(split, tmp_path / "c.jsonl", tmp_path / "index").manifest.group_by == "item"
    assert Index.open(tmp_path / "index").ids == ["a#0", "a#1", "b"]
    rows = [{"id": "a", "image": "0.png", "item": "b"}, {"id": "a#1", "image": "1.png", "item": "x"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert build(split, tmp_path / "c.jsonl", tmp_path / "index").manifest.group_by is None


def test_near_duplicates_of_a_build(split, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 20, images=10)
    for i in (6, 14):
        draw(tmp_path / "pictures" / f"{i}.png", 2, size=(90, 70))
    built = build(split, catalog, tmp_path / "index", near_duplicates="report", shard_rows=4)
    assert (built.duplicates, built.rejected) == (2, 0)
    values = Index.open(tmp_path / "index").values("duplicate_of").to_pylist()
    assert {i: value for i, value in enumerate(values) if value} == {6: "r2", 14: "r2"}
    built = build(split, catalog, tmp_path / "index", near_duplicates="skip", shard_rows=4)
    assert (built.reused, built.duplicates, built.rejected, built.removed) == (20, 2, 2, 2)
    assert "r6" not in Index.open(tmp_path / "index").ids
    assert build(split, catalog, tmp_path / "index").manifest.count == 20


def test_a_table_of_vectors_needs_no_model(split, tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, DIM)).astype(np.float32)
    table = pa.table({"id": [f"v{i}" for i in range(30)], "text": ["t"] * 30, "price": range(30), "v": rows.tolist()})
    pq.write_table(table, tmp_path / "c.parquet")
    built = build(split, tmp_path / "c.parquet", tmp_path / "index", vectors="v")
    assert "\nTook the vectors of 30\n" in describe_build(tmp_path / "index", built, 1.0) + "\n"
    assert split.module.batches == []
    assert (built.manifest.count, built.manifest.embedder.name) == (30, "split")
    index = Index.open(tmp_path / "index", embedder=split)
    assert np.allclose(index.vectors.rows(slice(None)), rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)
    assert index.field_names == ["text", "price"]
    assert build(split, tmp_path / "c.parquet", tmp_path / "index").reused == 0  # they may be anything
    with pytest.raises(CatalogError, match="unknown column 'w'; the columns are id, text, price, v"):
        build(split, tmp_path / "c.parquet", tmp_path / "index", vectors="w")


def test_a_first_row_without_a_vector_is_one_reject(split, tmp_path):
    lines = [{"text": "a"}, {"text": "b", "v": [1.0] * DIM}, {"text": "c"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    built = build(split, tmp_path / "c.jsonl", tmp_path / "index", vectors="v")
    assert (built.encoded, built.rejected) == (1, 2)
    assert Index.open(tmp_path / "index").ids == ["2"]


def test_a_real_embedder_is_killed_and_goes_on(tiny_base, tmp_path, toy_pairs):
    """By an error in the middle here, in a process of its own above."""
    lines = [json.loads(line) for line in toy_pairs.read_text().splitlines()][:20]
    rows = [{"text": line["query_text"], "image": str(toy_pairs.parent / line["positive_image"])} for line in lines]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    embedder = Embedder.from_pretrained(tiny_base, device="cpu")
    options = {"shard_rows": 8, "batch_size": 3, "allow_outside": True, "workers": 1}
    calls = []

    def stop_at_five(module, arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    handle = embedder.module.register_forward_pre_hook(stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        build(embedder, tmp_path / "c.jsonl", tmp_path / "index", **options)
    handle.remove()
    assert len(shards(tmp_path / "index")) == 1
    build(embedder, tmp_path / "c.jsonl", tmp_path / "index", **options)
    build(embedder, tmp_path / "c.jsonl", tmp_path / "whole", **options)
    assert contents(tmp_path / "index") == contents(tmp_path / "whole")
    items = list(read_catalog(tmp_path / "c.jsonl", allow_outside=True))
    alone = np.concatenate([embedder.encode([item], role="item") for item in items])
    assert np.abs(Index.open(tmp_path / "index").vectors.rows(slice(None)) - alone).max() <= 1e-5


# several processes


def test_processes_share_the_shards_and_the_last_one_finishes(spawn, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 160, images=20)
    options = {"catalog": catalog, "out": tmp_path / "index", "shard_rows": 10, "batch_size": 5, "shared": True}
    processes = [spawn(**options, delay_s=0.05, workers=number) for number in (0, 1, 0)]
    results = []
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        results.append(json.loads(out))
    assert sum(result["done"] for result in results) == 1
    assert sum(result["here"] for result in results) == 160
    assert sum(result["here"] > 0 for result in results) >= 2
    [last] = [result for result in results if result["done"]]
    assert (last["encoded"], last["reused"]) == (160, 0)
    check(tmp_path / "index", catalog)
    build(SplitEmbedder(), catalog, tmp_path / "alone", shard_rows=10, batch_size=5)
    assert contents(tmp_path / "alone") == contents(tmp_path / "index")


def test_the_shards_of_a_dead_process_are_taken_over(spawn, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 100)
    options = {"catalog": catalog, "out": tmp_path / "index", "shard_rows": 10, "batch_size": 5, "shared": True}
    victim = spawn(**options, delay_s=0.3)
    while not shards(tmp_path / "index"):
        time.sleep(0.01)
    other = spawn(**options, delay_s=0.05)
    while len(shards(tmp_path / "index")) < 3:
        time.sleep(0.01)
    victim.kill()
    out, err = other.communicate()
    result = json.loads(out)
    assert other.returncode == 0 and result["done"], err
    assert 70 <= result["here"] < 100
    check(tmp_path / "index", catalog)


def test_one_process_alone_keeps_others_out_from_the_start(spawn, split, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 40)
    spawn(catalog=catalog, out=tmp_path / "index", shard_rows=10, batch_size=5, delay_s=0.3)
    while not shards(tmp_path / "index"):
        time.sleep(0.01)
    with pytest.raises(InputError, match=r"is being changed by process \d+ on .* \(build, since"):
        build(split, catalog, tmp_path / "index")


def test_another_catalogue_is_kept_out_of_a_shared_build(spawn, split, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 40)
    process = spawn(catalog=catalog, out=tmp_path / "index", shard_rows=10, batch_size=5, delay_s=0.3, shared=True)
    while not shards(tmp_path / "index"):
        time.sleep(0.01)
    with pytest.raises(InputError, match="being built from another catalogue"):
        build(split, write_catalog(tmp_path / "d.jsonl", 5), tmp_path / "index")
    assert json.loads(process.communicate()[0])["done"]
    check(tmp_path / "index", catalog)


def test_build_index_says_when_others_finish_it(spawn, split, tmp_path):
    catalog = write_catalog(tmp_path / "c.jsonl", 20)
    other = spawn(catalog=catalog, out=tmp_path / "index", shard_rows=10, batch_size=5, delay_s=600, shared=True)
    while not other.is_encoding:
        time.sleep(0.01)
    with pytest.raises(InputError, match="the last of them finishes it"):
        build_index(split, catalog, tmp_path / "index", shard_rows=10, progress=False, shared=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"shard_rows": 0}, "shard_rows must be at least 1"),
        ({"near_duplicates": "drop"}, "near_duplicates must be off, report or skip, got 'drop'"),
        ({"max_rejects": 1.5}, "max_rejects must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_options_are_refused(split, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        build(split, tmp_path / "c.jsonl", tmp_path / "index", **options)
