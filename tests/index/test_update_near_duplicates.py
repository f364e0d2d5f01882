"""Near-duplicates of rows that are added to an index, or replace others."""

import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import index.encoding.earlier
from fanoise.errors import CatalogError
from index.build import build_index
from index.encoding.earlier import write_earlier
from index.encoding.near_duplicates import signature
from index.parquet import read_parquet
from index.report import describe_change
from index.search import Index
from index.thumbnails import thumbnail_path
from index.update import add_items, compact_index, delete_items
from index.verify import verify_index
from tests.index.conftest import draw


@pytest.fixture
def photos(embedder, tmp_path):
    """An index of three photos, built with near-duplicates left out; and a writer of more photos."""
    for i in range(3):
        draw(tmp_path / "photos" / f"{i}.png", i)
    folder = tmp_path / "index"
    build_index(embedder, tmp_path / "photos", folder, near_duplicates="skip", progress=False)

    def more(name, **numbers):
        for id, number in numbers.items():
            draw(tmp_path / name / f"{id}.png", number)
            copy = Image.open(tmp_path / name / f"{id}.png").resize((180, 135), Image.Resampling.BILINEAR)
            copy.save(tmp_path / name / f"{id}.png")
        return tmp_path / name

    return folder, more


def test_near_duplicates_are_treated_as_in_the_build(embedder, photos):
    folder, more = photos
    change = add_items(embedder, more("b", copy=1, new=7, again=7), folder, progress=False)
    assert (change.added, change.rejected, change.duplicates, change.named_duplicates) == (1, 2, 2, 0)
    assert Index.open(folder).live_ids == ["0.png", "1.png", "2.png", "again.png"]
    ledger = (Index.open(folder).generation_folder / "rejects.jsonl").read_text()
    reasons = [json.loads(line)["reason"] for line in ledger.splitlines()]
    assert sorted(reasons) == ["near-duplicate of '1.png'", "near-duplicate of 'again.png'"]
    assert change.manifest.added[0].options == {"near_duplicates": "skip"}
    assert verify_index(folder, embedder=embedder, reencode=9) == []
    change = add_items(embedder, more("c", copy2=2), folder, near_duplicates="report", progress=False)
    assert (change.added, change.duplicates, change.named_duplicates) == (1, 1, 1)
    assert Index.open(folder).values("duplicate_of").to_pylist() == [None] * 4 + ["2.png"]
    change = add_items(embedder, more("d", copy3=2), folder, near_duplicates="off", progress=False)
    assert (change.added, change.duplicates) == (1, 0)


def test_an_add_of_near_duplicates_alone_is_no_fault(embedder, photos):
    folder, more = photos
    (more("b", copy=1) / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CatalogError, match=r"^1 of 2 rows were rejected, more than the share of 0\.4 that is allowed"):
        add_items(embedder, folder.parent / "b", folder, max_rejects=0.4, progress=False)
    change = add_items(embedder, folder.parent / "b", folder, max_rejects=0.5, progress=False)
    assert (change.added, change.deleted, change.rejected, change.duplicates) == (0, 0, 2, 1)
    index = Index.open(folder)
    assert index.manifest == change.manifest and index.manifest.generation == 2
    assert index.live_ids == ["0.png", "1.png", "2.png"]
    ledger = (index.generation_folder / "rejects.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in ledger} == {"copy.png", "broken.png"}
    assert not (folder / "encoding").exists()
    assert verify_index(folder, embedder=embedder, reencode=9) == []
    text = describe_change(folder, "add", change, 1.0)
    assert text.startswith("Added 0 items in 1.0 s") and "near-duplicate of '1.png'" in text

    (folder.parent / "c").mkdir()
    (folder.parent / "c" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CatalogError, match="all 1 rows were rejected"):
        add_items(embedder, folder.parent / "c", folder, progress=False)


def test_what_is_replaced_or_deleted_has_no_near_duplicates(embedder, photos):
    folder, more = photos
    delete_items(folder, ids=["1.png"])
    change = add_items(embedder, more("b", **{"0": 0, "x": 1}), folder, existing="replace", progress=False)
    assert (change.added, change.deleted, change.duplicates) == (2, 1, 0)
    assert Index.open(folder).live_ids == ["2.png", "0.png", "x.png"]


@pytest.mark.parametrize("existing", ["require", "replace"])
def test_a_row_that_replaces_another_is_not_skipped_but_names_the_picture_it_looks_like(embedder, photos, existing):
    folder, more = photos
    before = Index.open(folder)
    change = add_items(embedder, more("b", **{"0": 1, "2": 2}), folder, existing=existing, progress=False)
    assert (change.added, change.deleted, change.rejected) == (2, 2, 0)
    assert (change.duplicates, change.named_duplicates) == (1, 1)
    index = Index.open(folder)
    assert index.live_ids == ["1.png", "0.png", "2.png"]
    assert index.values("duplicate_of").to_pylist() == [None, "1.png", None]
    old, new = (each.vectors.rows(slice(each.row_of["0.png"], each.row_of["0.png"] + 1)) for each in (before, index))
    assert not np.allclose(old, new, atol=0.01)
    assert verify_index(folder, embedder=embedder, reencode=9) == []


def test_new_rows_are_skipped_beside_those_that_replace_others(embedder, photos):
    folder, more = photos
    change = add_items(embedder, more("b", **{"0": 1, "x": 1, "y": 7}), folder, existing="replace", progress=False)
    assert (change.added, change.deleted, change.rejected) == (2, 1, 1)
    assert (change.duplicates, change.named_duplicates) == (2, 1)
    assert "Near-duplicates of images: 1 rejected, 1 named in the field duplicate_of" in describe_change(
        folder, "add", change, 1.0
    )


def test_the_only_row_of_an_item_that_is_replaced_is_not_skipped(embedder, photos):
    folder, more = photos
    pictures = more("b", first=7, second=8, third=1)
    several = pictures / "a.jsonl"
    several.write_text(json.dumps({"id": "g", "image": ["first.png", "second.png"]}))
    add_items(embedder, several, folder, progress=False)
    one = pictures / "b.jsonl"
    one.write_text(json.dumps({"id": "g#9", "item": "g", "image": "third.png"}))
    change = add_items(embedder, one, folder, existing="require", progress=False)
    assert (change.added, change.deleted, change.named_duplicates) == (1, 2, 1)
    assert Index.open(folder).live_ids == ["0.png", "1.png", "2.png", "g#9"]


def test_a_picture_that_is_gone_is_no_duplicate_of_a_new_one(embedder, photos):
    folder, more = photos
    Index.open(folder).thumbnail(1).write_bytes(b"damaged")
    change = add_items(embedder, more("b", copy=1, other=2), folder, progress=False)
    assert (change.added, change.duplicates) == (1, 1)


def test_what_a_picture_is_found_by_is_kept_by_every_change(embedder, photos, monkeypatch):
    folder, more = photos

    def refuse(source):
        raise AssertionError(f"{source} is opened")

    monkeypatch.setattr(index.encoding.earlier, "open_image", refuse)
    add_items(embedder, more("b", new=7), folder, progress=False)
    delete_items(folder, ids=["0.png"])
    compact_index(folder)
    change = add_items(embedder, more("c", copy=1, again=7, other=8), folder, progress=False)
    assert (change.added, change.duplicates) == (1, 2)
    assert Index.open(folder).live_ids == ["1.png", "2.png", "new.png", "other.png"]


def test_pictures_of_rows_that_were_not_compared_before_are_read(embedder, photos):
    folder, more = photos
    add_items(embedder, more("b", plain=7), folder, near_duplicates="off", progress=False)
    change = add_items(embedder, more("c", copy=7, other=1, third=8), folder, progress=False)
    assert (change.added, change.duplicates) == (1, 2)


def test_a_signature_of_another_length_is_made_anew(photos, tmp_path):
    folder, _ = photos
    opened = Index.open(folder)
    items = read_parquet(opened.generation_folder / "items.parquet", ["id", "thumbnail_sha256", "signature"])
    kept = items["signature"].to_pylist()
    changed = items.set_column(2, "signature", pa.array([kept[0][:-1], None, kept[2]], pa.binary()))
    write_earlier(tmp_path / "earlier", changed, index=folder, progress=False)
    found = read_parquet(tmp_path / "earlier" / "items.parquet", ["signature"])["signature"].to_pylist()
    pictures = [Image.open(thumbnail_path(folder, one)).convert("RGB") for one in items["thumbnail_sha256"].to_pylist()]
    assert found == kept == [signature(picture) for picture in pictures]
