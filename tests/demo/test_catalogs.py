import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from demo.catalogs import CatalogSize, make_documents, make_products
from fanoise.catalog import read_catalog
from fanoise.storage import sha256_file
from trainer.pairs import read_pairs

SIZE = CatalogSize(train=30, test=30, families=4, queries=12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("catalogs")
    return {
        "products": make_products(root / "products", size=SIZE, progress=False),
        "documents": make_documents(root / "documents", size=SIZE, progress=False),
    }


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("name", ["products", "documents"])
def test_catalogue_reads_with_every_image_and_the_sizes_asked_for(folders, name):
    items = list(read_catalog(folders[name] / "catalog.csv"))
    splits = Counter(item.fields["split"] for item in items)
    assert splits["test"] == 30
    assert splits["train"] >= 30 + 2 * 3
    assert 4 * 3 <= splits["near_miss"] <= 4 * 4
    for item in items:
        assert item.text is None, "the title would give the answer away"
        with Image.open(item.image) as image:
            assert image.format == "JPEG"


@pytest.mark.parametrize("name", ["products", "documents"])
def test_queries_find_their_positive_in_the_split_they_are_judged_on(folders, name):
    split = {item.id: item.fields["split"] for item in read_catalog(folders[name] / "catalog.csv")}
    for file in (folders[name] / "queries").glob("*.jsonl"):
        found = rows(file)
        assert found, file
        for row in found:
            assert {split[positive] for positive in row["positives"]} == {
                "near_miss" if file.stem == "near_miss" else "test"
            }
            assert "image" not in row or (file.parent / row["image"]).is_file()


@pytest.mark.parametrize("name", ["products", "documents"])
def test_no_training_pair_shows_a_held_out_item(folders, name):
    held_out = {
        str(item.image.resolve())
        for item in read_catalog(folders[name] / "catalog.csv")
        if item.fields["split"] != "train"
    }
    held_out |= {str((folders[name] / "photos" / Path(file).name).resolve()) for file in held_out}
    for file in (folders[name] / "pairs").glob("*.jsonl"):
        for pair in read_pairs(file):
            for item in (pair.query, pair.positive, *pair.negatives):
                if item.image is not None:
                    assert Path(item.image).is_file()
                    assert str(Path(item.image).resolve()) not in held_out


def test_this_in_another_colour_leads_to_the_same_product_in_that_colour(folders):
    by_id = {item.id: item.fields for item in read_catalog(folders["products"] / "catalog.csv")}
    for row in rows(folders["products"] / "queries/photo_text.jsonl"):
        source, target = by_id[Path(row["image"]).stem], by_id[row["positives"][0]]
        same = ("kind", "second_colour", "pattern", "material", "mark", "detail")
        assert [source[key] for key in same] == [target[key] for key in same]
        assert target["colour"] != source["colour"]
        assert row["text"].endswith(target["colour"])


def test_mined_negatives_are_of_the_same_family_and_differ_from_the_positive(folders):
    by_id = {item.id: item.fields for item in read_catalog(folders["products"] / "catalog.csv")}
    pairs = read_pairs(folders["products"] / "pairs/near_miss.jsonl")
    assert len(pairs) == 2 * 3
    for pair in pairs:
        positive, negative = (by_id[Path(item.image).stem] for item in (pair.positive, *pair.negatives))
        assert positive["detail"] != negative["detail"]
        assert positive["title"] == negative["title"]
        assert positive["detail"] in pair.query.text


def test_same_seed_gives_the_same_catalogue_and_another_seed_another(folders, tmp_path):
    again = make_documents(tmp_path / "again", size=SIZE, progress=False)
    other = make_documents(tmp_path / "other", size=SIZE, seed=9, progress=False)
    for file in ("catalog.csv", "images/d00003.jpg", "queries/text.jsonl", "pairs/text.jsonl"):
        assert sha256_file(again / file) == sha256_file(folders["documents"] / file)
    assert sha256_file(other / "catalog.csv") != sha256_file(again / "catalog.csv")
