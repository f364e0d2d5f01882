import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.mmeb import MmebSize, make_mmeb
from fanoise.images import open_image

SIZE = MmebSize(train=6, eval=5, candidates=4)
TRAIN_COLUMNS = ["qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path"]
EVAL_COLUMNS = ["qry_text", "qry_img_path", "tgt_text", "tgt_img_path"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mmeb(tmp_path_factory.mktemp("mmeb") / "small", size=SIZE, progress=False)


@pytest.fixture(scope="module")
def meta(folder: Path) -> dict:
    return json.loads((folder / "meta.json").read_text())


def rows_of(folder: Path, kind: str) -> dict[str, list[dict]]:
    return {file.parent.name: pq.read_table(file).to_pylist() for file in sorted((folder / kind).rglob("*.parquet"))}


def images_named(rows: list[dict]) -> set[str]:
    cells = [cell for row in rows for name, cell in row.items() if "path" in name]
    return {path for cell in cells for path in (cell if isinstance(cell, list) else [cell])} - {""}


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_files_lie_where_the_published_ones_do(folder, meta):
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet")}
    expected = {f"eval/{each['name']}/test-00000-of-00001.parquet" for each in meta["sets"]}
    expected |= {
        f"train/{each['train_name']}/original-00000-of-00001.parquet" for each in meta["sets"] if each["train_name"]
    }
    assert files == expected


def test_schemas_are_the_published_ones(folder):
    for file in folder.rglob("*.parquet"):
        schema = pq.read_schema(file)
        if "train" in file.parts:
            assert schema == pa.schema([(name, pa.string()) for name in TRAIN_COLUMNS])
        else:
            types = [pa.string(), pa.string(), pa.list_(pa.string()), pa.list_(pa.string())]
            assert schema == pa.schema(list(zip(EVAL_COLUMNS, types, strict=True)))


def test_nothing_is_null_and_target_lists_are_of_one_length(folder):
    for rows in rows_of(folder, "train").values():
        assert all(isinstance(cell, str) for row in rows for cell in row.values())
    for rows in rows_of(folder, "eval").values():
        for row in rows:
            assert len(row["tgt_text"]) == len(row["tgt_img_path"]) >= 3
            assert all(isinstance(cell, str) for cell in row["tgt_text"] + row["tgt_img_path"])


def test_every_named_image_opens_and_every_image_of_a_photo_is_named(folder):
    named = set()
    for kind in ("train", "eval"):
        for rows in rows_of(folder, kind).values():
            named |= images_named(rows)
    assert len(named) > 80
    assert all(min(open_image(folder / "images" / file).size) >= 100 for file in named)
    drawn = {file.relative_to(folder / "images").as_posix() for file in (folder / "images").rglob("*.jpg")}
    assert named <= drawn


def test_train_and_eval_share_no_image_not_even_under_another_name(folder):
    content = digests(folder / "images")
    train, evaluation = (
        {content[file] for rows in rows_of(folder, kind).values() for file in images_named(rows)}
        for kind in ("train", "eval")
    )
    assert train and evaluation
    assert not train & evaluation


def test_placeholders_stand_where_the_published_texts_have_them(folder):
    for name, rows in rows_of(folder, "train").items():
        for row in rows:
            assert row["qry"].endswith("\n")
            if name != "ShopCards":  # worded like WebQA: a placeholder, and no image
                assert row["qry"].startswith("<|image_1|>\n") == (row["qry_image_path"] != "")
            assert row["pos_text"].startswith("<|image_1|>\n") == (row["pos_image_path"] != "")
    cards = rows_of(folder, "train")["ShopCards"]
    assert all(row["qry"].startswith("<|image_1|>\n") and row["qry_image_path"] == "" for row in cards)


def test_modalities_of_the_meta_tasks_are_the_published_ones(folder, meta):
    seen: dict[str, set] = {}
    tables = rows_of(folder, "eval")
    for each in meta["sets"]:
        for row in tables[each["name"]]:
            target_image = row["tgt_img_path"][0] != ""
            seen.setdefault(each["meta_task"], set()).add((row["qry_img_path"] != "", target_image))
    assert seen["CLS"] == seen["VQA"] == {(True, False)}
    assert seen["RET"] == {(False, True), (True, False), (True, True)}
    assert seen["VG"] == {(True, True)}


def test_meta_counts_what_is_there(folder, meta):
    train, evaluation = rows_of(folder, "train"), rows_of(folder, "eval")
    assert {each["name"] for each in meta["sets"]} == set(evaluation)
    for each in meta["sets"]:
        assert each["split"] == ("IND" if each["train_name"] else "OOD")
        assert each["train_rows"] == len(train.get(each["train_name"], []))
        assert each["eval_rows"] == len(evaluation[each["name"]]) == SIZE.eval
        assert each["candidates"] == max(len(row["tgt_text"]) for row in evaluation[each["name"]])
    assert meta["images"] == "images"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(folder, tmp_path):
    again = digests(make_mmeb(tmp_path / "again", size=SIZE, progress=False))
    assert again == digests(folder)
    other = digests(make_mmeb(tmp_path / "other", size=SIZE, seed=1, progress=False))
    assert other["eval/Shop-13/test-00000-of-00001.parquet"] != again["eval/Shop-13/test-00000-of-00001.parquet"]


def test_a_failure_leaves_no_folder(tmp_path, monkeypatch):
    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("demo.mmeb._draw_collages", fail)
    with pytest.raises(OSError, match="disk full"):
        make_mmeb(tmp_path / "mmeb", size=MmebSize(train=1, eval=2, candidates=3), progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("field", "value"), [("train", 0), ("eval", 0), ("candidates", 2)])
def test_a_size_without_a_choice_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}.*must be >= "):
        MmebSize(**{field: value})
