import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import index.manifest
import index.update
from fanoise.catalog import read_catalog
from fanoise.errors import ArtifactError, CatalogError, InputError
from index.build import build_index
from index.encoding.intake import Intake
from index.generations import writing
from index.manifest import GENERATION_FILES, Manifest
from index.search import Index, Searcher
from index.update import add_items, compact_index, delete_items
from index.verify import verify_index
from tests.index.conftest import draw

FACTORIES = [
    "Flat", "HNSW8", "IVF4,Flat", "IVF4,SQ8", "IVF4,PQ4x4,RFlat", "PCA8,IVF4,PQ4x4", "PCA8,Flat", "SQ8", "SQfp16",
    "PQ4x4", "PQ4x4fs", "IVF4,PQ4x4fs,RFlat", "RaBitQ", "IVF4,RaBitQ",
]  # fmt: skip


def row(id, text, **other):
    return {"id": id, "text": text, "colour": "pink", "price": "7"} | other


def state(folder):
    """id -> (text, vector) of the live rows, in order."""
    index = Index.open(folder)
    rows = np.flatnonzero(index.live)
    hits = index.hits(np.zeros(len(rows)), rows)
    assert [hit.id for hit in hits] == index.live_ids
    return {hit.id: (hit.fields["text"], index.vectors.rows(rows[i : i + 1])[0].tolist()) for i, hit in enumerate(hits)}


def encoded(embedder, catalog):
    items = list(read_catalog(catalog))
    return {item.id: (item.text, vector.tolist()) for item, vector in zip(items, embedder.encode(items), strict=True)}


def test_added_rows_come_after_those_there_and_only_they_are_encoded(embedder, built, write):
    before = state(built)
    catalog = write("new.csv", [row("n1", "one"), row("n2", "two", image="img/1.png")])
    embedder.module.batches.clear()
    change = add_items(embedder, catalog, built, progress=False)
    assert sum(embedder.module.batches) == 2
    assert (change.added, change.deleted, change.manifest.count, change.manifest.generation) == (2, 0, 42, 2)
    after = state(built)
    assert list(after.items()) == [*before.items(), *encoded(embedder, catalog).items()]
    hit = Searcher.open(built, embedder=embedder).search(text="one", k=1).hits[0]
    assert (hit.id, hit.fields["colour"]) == ("n1", "pink")
    assert verify_index(built, embedder=embedder, reencode=50) == []


def test_ids_that_are_there_are_refused_before_encoding(embedder, built, write):
    catalog = write("new.csv", [row("n1", "one"), row("g7", "x"), row("g9", "y")])
    embedder.module.batches.clear()
    with pytest.raises(
        InputError, match=r"ids of .*new\.csv are already in the index \(2, for example 'g7'\); replace"
    ):
        add_items(embedder, catalog, built, progress=False)
    assert embedder.module.batches == []
    assert Manifest.read(built).generation == 1


def test_replace_takes_new_and_known_ids(embedder, built, write):
    before = state(built)
    catalog = write("new.csv", [row("g7", "seven again"), row("n1", "one")])
    change = add_items(embedder, catalog, built, existing="replace", progress=False)
    assert (change.added, change.deleted, change.manifest.live, change.manifest.count) == (2, 1, 41, 42)
    del before["g7"]
    assert list(state(built).items()) == [*before.items(), *encoded(embedder, catalog).items()]
    searcher = Searcher.open(built, embedder=embedder)
    assert [hit.id for hit in searcher.search(text="thing number 7", k=41).hits].count("g7") == 1
    assert searcher.search(text="seven again", k=1).hits[0].id == "g7"


def test_update_wants_ids_that_are_there(embedder, built, write):
    with pytest.raises(InputError, match=r"ids of .* are not in the index \(1, for example 'n1'\); to add them"):
        add_items(embedder, write("a.csv", [row("g7", "x"), row("n1", "y")]), built, existing="require", progress=False)
    change = add_items(embedder, write("b.csv", [row("g7", "x")]), built, existing="require", progress=False)
    assert (change.added, change.deleted, change.manifest.live) == (1, 1, 40)
    assert state(built)["g7"][0] == "x"


def test_only_rows_that_would_go_in_are_judged_by_their_ids(embedder, built, write):
    broken = {"text": "", "image": "img/none.png"}
    changed = [row("g7", "x"), row("n1", **broken), row("n2", "refused by the model")]
    embedder.refuse = "refused by the model"
    change = add_items(embedder, write("a.csv", changed), built, existing="require", workers=0, progress=False)
    assert (change.added, change.deleted, change.rejected) == (1, 1, 2)
    change = add_items(embedder, write("b.csv", [row("n3", "three"), row("g7", **broken)]), built, progress=False)
    assert (change.added, change.deleted, change.rejected) == (1, 0, 1)
    assert state(built)["g7"][0] == "x"
    embedder.module.batches.clear()
    with pytest.raises(InputError, match=r"not in the index \(3, for example 'n6'\)"):
        rows = [row("n4", **broken), row("n5", "refused by the model"), row("n6", "six")]
        add_items(embedder, write("c.csv", rows), built, existing="require", batch_size=2, progress=False)
    assert embedder.module.batches == []


def test_with_given_vectors_a_row_without_one_is_not_judged(embedder, tmp_path):
    def catalog(name, **vectors):
        rows = [{"id": id, "text": id, "emb": vector} for id, vector in vectors.items()]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / name

    one, other = np.eye(16)[0].tolist(), np.eye(16)[1].tolist()
    folder = tmp_path / "index"
    build_index(embedder, catalog("all.jsonl", a=one, b=one), folder, vectors="emb", progress=False)
    update = {"existing": "require", "progress": False}
    assert add_items(embedder, catalog("b.jsonl", a=other, c=None), folder, **update).rejected == 1
    with pytest.raises(InputError, match="not in the index"):
        add_items(embedder, catalog("c.jsonl", a=other, c=one), folder, **update)


def draw_before_encoding(path, monkeypatch):
    """The picture is there when rows are encoded, and not when their ids are judged."""
    encode = Intake.encode

    def late(*args, **options):
        draw(path, 9)
        return encode(*args, **options)

    monkeypatch.setattr(Intake, "encode", late)


def test_a_picture_that_can_be_read_only_later_makes_no_second_item_of_its_id(embedder, built, write, monkeypatch):
    catalog = write("a.csv", [row("g7", "", image="img/late.png"), row("n1", "one")])
    draw_before_encoding(catalog.parent / "img" / "late.png", monkeypatch)
    with pytest.raises(
        InputError, match=r"could not be read before, and can be now: ids of .* are already in the index"
    ):
        add_items(embedder, catalog, built, progress=False)
    assert Manifest.read(built).generation == 1


def test_a_picture_that_can_be_read_only_later_is_no_new_item_of_an_update(embedder, built, write, monkeypatch):
    catalog = write("a.csv", [row("n1", "", image="img/late.png"), row("g7", "seven")])
    draw_before_encoding(catalog.parent / "img" / "late.png", monkeypatch)
    with pytest.raises(InputError, match=r"could not be read before, .* not in the index \(1, for example 'n1'"):
        add_items(embedder, catalog, built, existing="require", progress=False)
    assert Manifest.read(built).generation == 1
    monkeypatch.undo()
    assert add_items(embedder, catalog, built, existing="replace", progress=False).added == 2


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.name != ".lock")


def test_a_refused_add_leaves_no_file(embedder, built, write):
    before = files_of(built)
    draw(built.parent / "goods" / "img" / "new.png", 77)
    catalog = write("a.csv", [row("g7", "x", image="img/new.png")])
    with pytest.raises(InputError, match="already in the index"):
        add_items(embedder, catalog, built, progress=False)
    assert files_of(built) == before
    embedder.refuse = "refused by the model"
    catalog = write("b.csv", [row("n1", embedder.refuse, image="img/new.png")])
    with pytest.raises(CatalogError, match="all 1 rows were rejected"):
        add_items(embedder, catalog, built, progress=False)
    assert files_of(built) == before


def open_items(folder):
    """Items files of an index that this process has open; other tests leave some of theirs to the collector."""
    paths = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            paths.append(descriptor.readlink())
    return [path for path in paths if path.is_relative_to(folder) and path.name.startswith("items.parquet")]


def test_no_file_stays_open_while_an_error_is_looked_at(embedder, built, write, monkeypatch):
    assert open_items(built) == []
    with pytest.raises(InputError) as refused:
        add_items(embedder, write("a.csv", [row("g7", "x")]), built, progress=False)
    with pytest.raises(InputError) as unknown:
        delete_items(built, ids=["nobody"])
    with pytest.raises(InputError) as unsuitable:
        compact_index(built, factory="IVF64,Flat")
    monkeypatch.setattr(index.update, "_join", lambda *_: [][0])
    with pytest.raises(IndexError) as joining:
        add_items(embedder, write("b.csv", [row("n1", "x")]), built, progress=False)
    assert all(caught.tb is not None for caught in (refused, unknown, unsuitable, joining))
    assert open_items(built) == []


def test_a_row_that_is_rejected_replaces_nothing(embedder, built, write):
    before = state(built)
    catalog = write("b.csv", [row("g3", "x", image="img/none.png"), row("g4", "y")])
    change = add_items(embedder, catalog, built, existing="require", progress=False)
    assert (change.added, change.deleted, change.rejected, change.manifest.rejected) == (1, 1, 1, 1)
    assert state(built)["g3"] == before["g3"]
    (line,) = (Index.open(built).generation_folder / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "g3"


def test_the_ledger_forgets_what_is_indexed_at_last(embedder, new_catalog, tmp_path, write):
    extra = [row("bad\u2028one", "a", image="img/no.png"), row("bad2", "b", image="img/no.png")]
    build_index(embedder, new_catalog(extra=extra), tmp_path / "index", progress=False)
    change = add_items(embedder, write("c.csv", [row("bad\u2028one", "now")]), tmp_path / "index", progress=False)
    assert change.manifest.rejected == 1
    assert verify_index(tmp_path / "index") == []
    ledger = (Index.open(tmp_path / "index").generation_folder / "rejects.jsonl").read_text()
    assert "bad2" in ledger and "bad\u2028one" not in ledger


def test_rejects_of_one_id_are_all_counted_and_kept(embedder, built, write):
    first = write("a.csv", [row("x", "", image="../a.png"), row("x", "", image="../b.png"), row("n1", "one")])
    assert add_items(embedder, first, built, progress=False).rejected == 2
    change = add_items(embedder, write("b.csv", [row("n2", "two")]), built, progress=False)
    assert (change.rejected, change.manifest.rejected) == (0, 2)
    lines = (Index.open(built).generation_folder / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["../a.png", "../b.png"]
    assert verify_index(built) == []


def test_a_catalogue_that_changes_while_it_is_read_changes_nothing(embedder, built, write, monkeypatch):
    catalog, encode = write("new.csv", [row("n1", "one")]), Intake.encode

    def encode_after_a_change(*args, **options):
        write("new.csv", [row("g1", "known")])
        return encode(*args, **options)

    monkeypatch.setattr(Intake, "encode", encode_after_a_change)
    with pytest.raises(CatalogError, match=r"new\.csv was changed while it was read; run the command again"):
        add_items(embedder, catalog, built, progress=False)
    assert Manifest.read(built).generation == 1


def test_a_catalogue_of_rejects_changes_nothing(embedder, built, write):
    with pytest.raises(CatalogError, match="all 1 rows were rejected"):
        add_items(embedder, write("c.csv", [row("n", "", image="img/no.png")]), built, progress=False)
    assert Manifest.read(built).generation == 1


def test_another_embedder_may_not_add(built, new_embedder, write):
    with pytest.raises(ArtifactError, match="built with other weights"):
        add_items(new_embedder("other", weights="0000"), write("c.csv", [row("n", "x")]), built, progress=False)


def test_text_and_image_columns_are_those_of_the_build(embedder, tmp_path):
    (tmp_path / "a.csv").write_text("id,title,maker\n1,mug,Ada\n2,jug,Bob\n")
    (tmp_path / "b.csv").write_text("id,title,maker\n3,cup,Cleo\n")
    build_index(embedder, tmp_path / "a.csv", tmp_path / "index", text="{title} by {maker}", progress=False)
    add_items(embedder, tmp_path / "b.csv", tmp_path / "index", progress=False)
    assert Searcher.open(tmp_path / "index", embedder=embedder).search(text="cup by Cleo", k=1).hits[0].id == "3"
    assert verify_index(tmp_path / "index", embedder=embedder, reencode=9) == []


def test_fields_that_differ_in_type_or_are_new_keep_their_values(embedder, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "a", "price": 5, "code": 1, "gone": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"id": "b", "text": "b", "price": 5.5, "code": "1b", "new": [1, 2]}\n')
    build_index(embedder, tmp_path / "a.jsonl", tmp_path / "index", progress=False)
    add_items(embedder, tmp_path / "b.jsonl", tmp_path / "index", progress=False)
    index = Index.open(tmp_path / "index")
    first, second = (hit.fields for hit in index.hits([0.0, 0.0], [0, 1]))
    assert first == {"text": "a", "price": 5.0, "code": "1", "gone": "x", "new": None}
    assert second == {"text": "b", "price": 5.5, "code": "1b", "gone": None, "new": [1, 2]}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_stored_rows_are_carried_over_bit_by_bit(embedder, new_catalog, tmp_path, write, precision):
    folder = tmp_path / "index"
    build_index(embedder, new_catalog(n=300), folder, precision=precision, dim=8, progress=False)
    before = np.load(Index.open(folder).generation_folder / "vectors.npy")
    add_items(embedder, write("n.csv", [row("n1", "one")]), folder, progress=False)
    delete_items(folder, ids=["g0", "g299"])
    after = np.load(Index.open(folder).generation_folder / "vectors.npy")
    assert np.array_equal(after[:300], before) and len(after) == 301
    compact_index(folder)
    compacted = np.load(Index.open(folder).generation_folder / "vectors.npy")
    assert np.array_equal(compacted, np.concatenate([before[1:299], after[300:]]))
    assert Searcher.open(folder, embedder=embedder).search(text="one", k=1).hits[0].id == "n1"
    assert verify_index(folder, embedder=embedder, reencode=400) == []


@pytest.mark.parametrize("factory", FACTORIES)
def test_deleted_rows_are_never_found_and_all_others_are(embedder, new_catalog, tmp_path, write, factory):
    folder = tmp_path / "index"
    build_index(embedder, new_catalog(n=120, images=0), folder, factory=factory, progress=False)
    add_items(embedder, write("n.csv", [row(f"n{i}", f"new {i}") for i in range(30)]), folder, progress=False)
    gone = {f"g{i}" for i in range(0, 120, 3)} | {"n0", "n29"}
    delete_items(folder, ids=gone)
    for step in ("tombstones", "compacted"):
        searcher = Searcher.open(folder, embedder=embedder)
        for k in (1, 5, 1000):
            ids = [hit.id for hit in searcher.search(text="new 0", k=k).hits]
            assert len(set(ids)) == len(ids) == min(k, 108)
            assert not gone & set(ids)
        everything = {f"g{i}" for i in range(120)} | {f"n{i}" for i in range(30)}
        assert {hit.id for hit in searcher.search(text="x", k=1000).hits} == everything - gone
        assert [hit.id for hit in searcher.search(text="x", k=40, where={"colour": "pink"}).hits] != []
        pink = {hit.id for hit in searcher.search(text="x", k=40, where={"colour": "pink"}).hits}
        assert pink == {f"n{i}" for i in range(1, 29)}
        assert verify_index(folder) == []
        if step == "tombstones":
            change = compact_index(folder)
            assert (change.deleted, change.manifest.count, change.manifest.factory) == (42, 108, factory)


def test_compact_with_another_factory(built):
    delete_items(built, ids=["g5"])
    with pytest.raises(InputError, match="'IVF64,Flat' does not suit 39 vectors"):
        compact_index(built, factory="IVF64,Flat")
    manifest = compact_index(built, factory="HNSW8").manifest
    assert (manifest.factory, manifest.factory_reason, manifest.count, manifest.deleted) == (
        "HNSW8",
        "as asked for",
        39,
        0,
    )
    assert 0.9 < manifest.ann_overlap <= 1


def test_pictures_go_with_the_last_generation_that_shows_them(built):
    shown = {id: Index.open(built).thumbnail(row) for id, row in Index.open(built).row_of.items()}
    delete_items(built, ids=["g2"])
    compact_index(built)
    assert shown["g2"].exists()  # of the generation before
    delete_items(built, ids=["g30"])
    assert not shown["g2"].exists()
    assert all(shown[f"g{i}"].exists() for i in (0, 1, 3, 4, 5))
    assert verify_index(built) == []


@pytest.mark.parametrize("name", GENERATION_FILES)
def test_damage_is_never_copied_into_a_new_generation_with_a_new_checksum(embedder, built, write, name):
    delete_items(built, ids=["g1"])
    file = Index.open(built).generation_folder / name
    file.write_bytes((file.read_bytes() or b"x")[:-1] + b"\x7f")
    catalog = write("n.csv", [row("n1", "one")])
    for command in (lambda: add_items(embedder, catalog, built, progress=False), lambda: compact_index(built)):
        with pytest.raises(ArtifactError, match=rf"{name} (is damaged|has \d+ bytes)"):
            command()
    assert Manifest.read(built).generation == 2


def group(folder, field):
    with writing(folder, "group", create=False) as writer:
        writer.keep(*GENERATION_FILES)
        writer.commit(group_by=field)


def test_rows_of_an_item_are_replaced_and_deleted_together(embedder, tmp_path):
    def write_rows(name, rows):
        text = "".join(json.dumps({"id": id, "text": text, "item": item}) + "\n" for id, text, item in rows)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    first = [("p#0", "a", "p"), ("p#1", "b", "p"), ("q#0", "c", "q"), ("r#0", "d", "r")]
    build_index(embedder, write_rows("a.jsonl", first), tmp_path / "index", progress=False)
    group(tmp_path / "index", "item")
    with pytest.raises(InputError, match=r"already in the index \(2, for example 'p#2' of item 'p'\); .* --replace"):
        add_items(embedder, write_rows("b.jsonl", [("p#2", "e", "p"), ("t", "e", "q")]), tmp_path / "index")
    add_items(
        embedder, write_rows("b.jsonl", [("t#0", "e", "t"), ("t#1", "e", "t")]), tmp_path / "index", progress=False
    )
    assert Index.open(tmp_path / "index").live_ids == ["p#0", "p#1", "q#0", "r#0", "t#0", "t#1"]
    delete_items(tmp_path / "index", ids=["t"])
    new = write_rows("c.jsonl", [("p#0", "f", "p"), ("p#9", "g", "p")])
    add_items(embedder, new, tmp_path / "index", existing="require", progress=False)
    assert Index.open(tmp_path / "index").live_ids == ["q#0", "r#0", "p#0", "p#9"]
    with pytest.raises(InputError, match="for example 's#0'"):
        add_items(
            embedder, write_rows("d.jsonl", [("s#0", "f", "s")]), tmp_path / "index", existing="require", progress=False
        )
    delete_items(tmp_path / "index", ids=["p", "r#0"])
    assert Index.open(tmp_path / "index").live_ids == ["q#0"]


def test_the_manifest_tells_where_rows_came_from_and_keeps_what_was_tuned(embedder, built, write):
    compact_index(built, factory="IVF4,Flat")
    with writing(built, "tune", create=False) as writer:
        writer.keep(*GENERATION_FILES)
        writer.commit(search={"nprobe": 4}, curve=[{"parameters": "nprobe=4", "recall": 1.0, "ms": 0.1}])
    add_items(embedder, write("n.csv", [row("n1", "one")]), built, progress=False)
    add_items(embedder, write("m.csv", [row("n2", "two")]), built, progress=False)
    manifest = add_items(embedder, write("n.csv", [row("n3", "three")]), built, progress=False).manifest
    assert [catalog.path for catalog in manifest.added] == ["../goods/m.csv", "../goods/n.csv"]
    assert manifest.search == {"nprobe": 4} and len(manifest.curve) == 1
    manifest = build_index(embedder, write("k.csv", [row("n3", "three")]), built, progress=False)
    assert (manifest.search, manifest.curve, manifest.tuning, manifest.added) == ({}, [], {}, [])


def test_adding_what_the_lists_do_not_suit_tunes_them_again(embedder, new_catalog, tmp_path, write):
    folder, spread = tmp_path / "index", new_catalog(n=200, images=0)
    before = build_index(embedder, spread, folder, factory="IVF8,Flat", recall=0.6, progress=False)
    assert before.search["nprobe"] < 8
    more = [row(f"n{i}", f"new {i}") for i in range(200)]
    with writing(folder, "tune", create=False) as writer:  # as if hardly any list had been enough for the old rows
        writer.keep(*GENERATION_FILES)
        writer.commit(search={"nprobe": 1}, ann_overlap=0.1)  # which many additions have brought down bit by bit
    after = add_items(embedder, write("n.csv", more), folder, progress=False).manifest
    assert after.search["nprobe"] > 1
    assert after.tuning["recall"] >= 0.6
    assert after.tuning["source"] == "texts of the catalogue"


def test_compact_finds_as_many_neighbours_as_before(embedder, new_catalog, tmp_path):
    folder = tmp_path / "index"
    before = build_index(embedder, new_catalog(n=300, images=0), folder, factory="IVF8,Flat", progress=False)
    delete_items(folder, ids=[f"g{i}" for i in range(50)])
    with writing(folder, "tune", create=False) as writer:  # as if additions had brought it down bit by bit
        writer.keep(*GENERATION_FILES)
        writer.commit(search={"nprobe": 1}, ann_overlap=0.1)
    after = compact_index(folder).manifest
    assert after.ann_overlap >= before.ann_overlap - 0.05
    assert after.tuning["target"] == before.tuning["target"] == 0.95
    assert after.tuning["source"] == "sampled rows"
    assert after.factory_reason == before.factory_reason
    assert Index.open(folder).device == "CPU"


def test_a_manifest_of_more_deleted_than_rows_is_refused(built):
    manifest = Manifest.read(built)
    with pytest.raises(ValueError, match="deleted must be below count 40"):
        replace(manifest, deleted=40)


def test_added_rows_are_read_as_in_the_build_but_need_their_own_permission(embedder, tmp_path):
    for i in range(3):
        draw(tmp_path / "pictures" / f"{i}.png", i)
    outside = tmp_path / "outside.png"
    draw(outside, 5)
    (tmp_path / "first.csv").write_text(f"id,photo\na,0.png\nb,{outside}\n")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "second.csv").write_text(f"id,photo\nc,1.png\nd,{outside}\n")
    folder = tmp_path / "index"
    pictures = tmp_path / "pictures"
    build_index(
        embedder, tmp_path / "first.csv", folder, image="photo", images=pictures, allow_outside=True, progress=False
    )
    assert Index.open(folder).ids == ["a", "b"]
    change = add_items(embedder, tmp_path / "new" / "second.csv", folder, images=pictures, progress=False)
    assert (change.added, change.rejected) == (1, 1)
    assert "--allow-outside" in (change.manifest.generation_in(folder) / "rejects.jsonl").read_text()
    change = add_items(
        embedder, tmp_path / "new" / "second.csv", folder, existing="replace", allow_outside=True, progress=False
    )
    assert (change.added, change.deleted, change.rejected, change.manifest.rejected) == (2, 1, 0, 0)
    assert Index.open(folder).live_ids == ["a", "b", "c", "d"]
    assert verify_index(folder, embedder=embedder, reencode=9, allow_outside=True) == []


def test_images_elsewhere_are_not_read_because_a_manifest_says_so(embedder, tmp_path):
    for folder in ("goods", "private"):
        draw(tmp_path / folder / "0.png", 1)
        (tmp_path / folder / "list.csv").write_text(f"id,image\n{folder},0.png\n")
    index, private = tmp_path / "index", tmp_path / "private"
    build_index(embedder, tmp_path / "goods" / "list.csv", index, images=private, progress=False)
    more = tmp_path / "more" / "list.csv"
    more.parent.mkdir()
    more.write_text("id,image\nmore,0.png\n")
    with pytest.raises(
        CatalogError, match=r"reads images in .*private, outside the folder .*--allow-outside, or give --images"
    ):
        add_items(embedder, more, index, progress=False)
    assert add_items(embedder, more, index, images=private, progress=False).added == 1
    assert add_items(embedder, more, index, existing="require", allow_outside=True, progress=False).added == 1


def test_replacing_by_the_same_content_copies_the_vector(embedder, built, tmp_path):
    catalog = tmp_path / "goods" / "catalog.csv"
    catalog.write_text(catalog.read_text().replace("thing number 7,", "thing number seven,"))
    before, calls = state(built), len(embedder.module.batches)
    change = add_items(embedder, catalog, built, existing="require", progress=False)
    assert (change.added, change.deleted) == (40, 40)
    assert embedder.module.batches[calls:] == [1]
    after = state(built)
    assert {id for id in after if after[id] != before[id]} == {"g7"}


def test_an_index_does_not_take_up_its_own_pictures(embedder, tmp_path):
    draw(tmp_path / "photos" / "a.png", 1)
    (tmp_path / "photos" / "list.csv").write_text("id,image\nb,a.png\n")
    build_index(embedder, tmp_path / "photos" / "list.csv", tmp_path / "photos" / "index", progress=False)
    with pytest.raises(InputError, match="lies in the catalogue"):
        add_items(embedder, tmp_path / "photos", tmp_path / "photos" / "index", progress=False)


def test_the_first_item_of_several_images_makes_the_index_group(embedder, built, tmp_path):
    def change(images, existing):
        path = tmp_path / "goods" / "several.jsonl"
        path.write_text(json.dumps({"id": "g1", "text": "one", "image": images}))
        return add_items(embedder, path, built, existing=existing, drop_columns=True, progress=False).manifest

    with pytest.raises(InputError, match="already in the index"):
        change(["img/0.png", "img/1.png"], "refuse")
    assert change(["img/0.png", "img/1.png", "img/2.png"], "replace").group_by == "item"
    assert {"g1#0", "g1#1", "g1#2"} < state(built).keys() and "g1" not in state(built)
    hits = Searcher.open(built, embedder=embedder).search(text="one", k=42).hits
    assert len(hits) == 40 and len({hit.fields["item"] or hit.id for hit in hits}) == 40
    change(["img/3.png"], "require")
    assert {id for id in state(built) if id.startswith("g1#")} == {"g1#0"}
    assert verify_index(built, embedder=embedder, reencode=50) == []


def test_a_row_never_leaves_the_others_of_its_item(embedder, built, tmp_path):
    def change(name, existing, *rows):
        path = tmp_path / "goods" / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return add_items(embedder, path, built, existing=existing, drop_columns=True, progress=False)

    def groups():
        hits = Searcher.open(built, embedder=embedder).search(text="one", k=50).hits
        return sorted(hit.fields["item"] for hit in hits if hit.fields["item"])

    several = {"id": "s2", "text": "one", "image": ["img/0.png", "img/1.png", "img/2.png"]}
    change("several.jsonl", "refuse", several)
    alone = {"id": "s2#1", "text": "alone"}
    for existing in ("require", "replace"):
        for row in (alone, alone | {"item": "s2#1"}):
            embedder.module.batches.clear()
            with pytest.raises(InputError, match=r"\(1, for example 's2#1' of item 's2'\); .* column 'item'"):
                change("alone.jsonl", existing, row, {"id": "g1", "text": "one again"})
            assert embedder.module.batches == []
    assert {id for id in state(built) if id.startswith("s2")} == {"s2#0", "s2#1", "s2#2"} and groups() == ["s2"]
    change("named.jsonl", "require", alone | {"item": "s2"}, {"id": "s2#2", "text": "too", "item": "s2"})
    assert {id for id in state(built) if id.startswith("s2")} == {"s2#1", "s2#2"} and groups() == ["s2"]
    change("whole.jsonl", "require", {"id": "s2", "text": "one thing again"})
    assert {id for id in state(built) if id.startswith("s2")} == {"s2"}


def test_a_row_that_can_be_read_only_later_does_not_leave_its_item(embedder, built, tmp_path, monkeypatch):
    path = tmp_path / "goods" / "several.jsonl"
    path.write_text(json.dumps({"id": "s2", "image": ["img/0.png", "img/1.png"]}))
    add_items(embedder, path, built, progress=False)
    path.write_text(json.dumps({"id": "s2#1", "image": "img/late.png"}))
    draw_before_encoding(path.parent / "img" / "late.png", monkeypatch)
    with pytest.raises(InputError, match=r"could not be read before, .* for example 's2#1' of item 's2'"):
        add_items(embedder, path, built, existing="require", progress=False)


def test_a_field_called_item_is_no_group(embedder, built, tmp_path):
    path = tmp_path / "goods" / "own.jsonl"
    path.write_text(json.dumps({"id": "n1", "text": "one", "item": "g1"}))
    change = add_items(embedder, path, built, progress=False)
    assert (change.manifest.group_by, len(state(built))) == (None, 41)


def test_added_rows_take_their_vectors_from_the_column_of_the_build(embedder, tmp_path):
    def catalog(name, ids):
        path = tmp_path / name
        vectors = [np.eye(16)[i].tolist() for i in range(len(ids))]
        rows = [{"id": id, "text": id, "emb": vector} for id, vector in zip(ids, vectors, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    folder = tmp_path / "index"
    build_index(embedder, catalog("all.jsonl", ["a", "b"]), folder, vectors="emb", progress=False)
    embedder.module.batches.clear()
    (tmp_path / "none.jsonl").write_text('{"id": "e", "text": "e"}')
    with pytest.raises(
        CatalogError, match=r"unknown column 'emb'.*\(read as the index was built, with --vectors 'emb'"
    ):
        add_items(embedder, tmp_path / "none.jsonl", folder, progress=False)
    added = add_items(embedder, catalog("new.jsonl", ["c"]), folder, progress=False)
    assert embedder.module.batches == [] and state(folder)["c"][1] == np.eye(16)[0].tolist()
    assert Index.open(folder).field_names == ["text"]
    assert [ref.options for ref in (added.manifest.catalog, *added.manifest.added)] == [{"vectors": "emb"}] * 2
    add_items(embedder, catalog("other.jsonl", ["d"]), folder, vectors="", progress=False)
    assert embedder.module.batches == [1]
    faults = verify_index(folder, embedder=embedder, reencode=4)
    assert len(faults) == 3 and all("encoded again it has similarity" in fault for fault in faults)  # made up, but "d"


def test_too_many_rejects_change_nothing(embedder, built, write):
    catalog = write("b.csv", [row("n1", "one"), row("n2", "", image="img/none.png")])
    with pytest.raises(CatalogError, match=r"1 of 2 rows were rejected, more than the share of 0\.4"):
        add_items(embedder, catalog, built, max_rejects=0.4, progress=False)
    assert Manifest.read(built).generation == 1
    assert add_items(embedder, catalog, built, max_rejects=0.5, progress=False).rejected == 1
