"""Columns that rows would lose when others take their place."""

import csv
import json

import pytest

from fanoise.errors import InputError
from index.build import build_index
from index.manifest import Manifest
from index.search import Index
from index.update import add_items
from tests.index.conftest import draw


@pytest.fixture
def shop(embedder, tmp_path):
    """Two rows have pictures, and all but the last one a colour."""
    for number in (0, 1):
        draw(tmp_path / f"{number}.png", number)
    rows = [
        {"id": f"r{i}", "text": f"t{i}", "image": f"{i}.png" if i < 2 else None, "price": i, "colour": "red"}
        for i in range(4)
    ]
    rows[3] |= {"colour": "", "tags": ["x"]}
    (tmp_path / "shop.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(embedder, tmp_path / "shop.jsonl", tmp_path / "index", progress=False)
    return tmp_path / "index"


def write(folder, name, *rows):
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


@pytest.mark.parametrize("existing", ["require", "replace"])
def test_columns_that_would_be_lost_are_named_before_anything_is_encoded(embedder, shop, tmp_path, existing):
    prices = write(tmp_path, "u.csv", *({"id": f"r{i}", "text": f"t{i}", "price": 9} for i in range(4)))
    embedder.module.batches.clear()
    lost = r"u\.csv has nothing for .* would lose: image \(2 rows\), colour \(3 rows\), tags \(1 row\); give these.*"
    with pytest.raises(InputError, match=lost + "--drop-columns"):
        add_items(embedder, prices, shop, existing=existing, progress=False)
    assert embedder.module.batches == [] and Manifest.read(shop).generation == 1
    change = add_items(embedder, prices, shop, existing=existing, drop_columns=True, progress=False)
    assert (change.added, change.deleted) == (4, 4)
    assert Index.open(shop).values("colour").to_pylist() == [None] * 4


def test_only_rows_that_are_replaced_count(embedder, shop, tmp_path):
    new = write(tmp_path, "n.csv", {"id": "n0", "text": "t"}, {"id": "n1", "text": "t"})
    assert add_items(embedder, new, shop, existing="replace", progress=False).added == 2
    last = {"id": "r3", "text": "t", "price": 9, "tags": ""}
    assert add_items(embedder, write(tmp_path, "u.csv", last), shop, existing="require", progress=False).added == 1
    assert add_items(embedder, write(tmp_path, "m.csv", {"id": "n2", "text": "t"}), shop, progress=False).added == 1


def test_a_column_that_is_there_may_empty_a_field_but_not_all_texts_and_pictures(embedder, shop, tmp_path):
    row = {"id": "r0", "text": "t0", "image": "0.png", "price": "", "colour": ""}
    assert add_items(embedder, write(tmp_path, "u.csv", row), shop, existing="require", progress=False).added == 1
    row["colour"], row["image"] = "blue", ""
    with pytest.raises(InputError, match=r"would lose: image \(1 row\);"):
        add_items(embedder, write(tmp_path, "v.csv", row), shop, existing="require", progress=False)
    row["text"], row["image"] = "", "0.png"
    with pytest.raises(InputError, match=r"would lose: text \(1 row\);"):
        add_items(embedder, write(tmp_path, "w.csv", row), shop, existing="require", progress=False)
    others = {"id": "r1", "text": "t1", "image": "", "price": 1, "colour": "red"}
    both = write(tmp_path, "x.csv", others, row | {"text": ""})
    assert add_items(embedder, both, shop, existing="require", progress=False).added == 2


def test_fields_of_our_own_do_not_count(embedder, tmp_path):
    draw(tmp_path / "a.png", 1)
    ours = {"document": "d.pdf", "page": 2, "duplicate_of": "x"}
    rows = [{"id": "d.pdf#2", "text": "t", **ours}, {"id": "e", "text": "t", "page": 7, "item": "set 1"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    update = write(tmp_path, "u.csv", {"id": "d.pdf#2", "text": "new"})
    assert add_items(embedder, update, tmp_path / "index", existing="require", progress=False).added == 1
    with pytest.raises(InputError, match=r"would lose: page \(1 row\), item \(1 row\);"):
        add_items(
            embedder,
            write(tmp_path, "v.csv", {"id": "e", "text": "new"}),
            tmp_path / "index",
            existing="require",
            progress=False,
        )
