import base64
import csv
import json

import pytest
from PIL import Image

from demo.category import make_category_task
from fanoise.catalog import read_catalog
from fanoise.errors import CatalogError
from trainer.pairs import read_pairs


@pytest.fixture
def catalog(tmp_path):
    (tmp_path / "shop").mkdir()
    with (tmp_path / "shop/catalog.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "category", "split"])
        for number, (category, split) in enumerate(
            [("hat", "train"), ("outwear", "train"), ("hat", "validation"), ("outwear", "validation")]
        ):
            Image.new("RGB", (30, 30)).save(tmp_path / f"shop/{number}.png")
            writer.writerow([number, f"{number}.png", category, split])
    return tmp_path / "shop/catalog.csv"


def test_files_lead_from_training_photos_to_held_out_ones(catalog, tmp_path):
    out = make_category_task(catalog, tmp_path / "runs/task")
    pairs = read_pairs(out / "pairs.jsonl")
    images = {item.image.resolve().name for pair in pairs for item in (pair.query, pair.positive) if item.image}
    assert images == {"0.png", "1.png"}
    assert all(item.image.is_file() for pair in pairs for item in (pair.query, pair.positive) if item.image)
    assert {pair.group for pair in pairs} == {"hat", "outwear"}
    photos = read_catalog(out / "photos.csv", allow_outside=True)
    assert [item.image.resolve().name for item in photos] == ["2.png", "3.png"]
    assert [item.text for item in read_catalog(out / "categories.csv")] == ["a photo of a hat", "a photo of an outwear"]
    queries = [json.loads(line) for line in (out / "text_to_photo.jsonl").read_text().splitlines()]
    assert {query["text"]: query["positives"] for query in queries}["a photo of a hat"] == ["2"]


def test_photos_that_are_no_files_are_refused(tmp_path):
    pixel = base64.b64encode(b"\xff\xd8\xff\xe0").decode()
    (tmp_path / "catalog.csv").write_text(f"id,image,category,split\n7,{pixel},hat,train\n")
    with pytest.raises(CatalogError, match="item '7' has its image in the table or in a document"):
        make_category_task(tmp_path / "catalog.csv", tmp_path / "task")
    assert not (tmp_path / "task").exists()


def test_split_that_does_not_exist_lists_those_that_do(catalog, tmp_path):
    with pytest.raises(CatalogError, match="no rows with split=test; there are train, validation"):
        make_category_task(catalog, tmp_path / "task", test="test")
    assert not (tmp_path / "task").exists()
