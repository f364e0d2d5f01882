"""The folders here are written as `save_to_disk` of datasets 5 lays them out: state.json, dataset_info.json, Arrow."""

import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fanoise.catalog import ImageBytes, count_rows, read_catalog
from fanoise.errors import CatalogError
from tests.fanoise.catalog.files import BLUE, RED, png, raw, read

LABELS = {"image": {"_type": "Image"}, "label": {"names": ["hat", "shoe"], "_type": "ClassLabel"}}


def save(folder: Path, rows: list[dict[str, Any]], *, shards: int = 1, features: dict | None = None) -> Path:
    files = []
    for shard in range(shards):
        files.append(f"data-{shard:05}-of-{shards:05}.arrow")
        size = -(-len(rows) // shards)
        table = pa.Table.from_pylist(rows[shard * size : (shard + 1) * size])
        folder.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(folder / files[-1]), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in files], "_fingerprint": "0", "_split": "train"}
    raw(folder / "state.json", json.dumps(state))
    raw(folder / "dataset_info.json", json.dumps({"features": LABELS if features is None else features}))
    return folder


def rows(*names: str) -> list[dict[str, Any]]:
    return [
        {"id": name, "image": {"bytes": png(RED), "path": None}, "label": number % 2, "text": f"text {name}"}
        for number, name in enumerate(names)
    ]


def test_a_dataset_gives_its_rows_with_images_and_the_names_of_labels(tmp_path):
    folder = save(tmp_path / "set", rows("a", "b", "c", "d", "e"), shards=2)
    items = list(read_catalog(folder))
    assert [(item.id, item.text, item.fields["label"]) for item in items] == [
        ("a", "text a", "hat"),
        ("b", "text b", "shoe"),
        ("c", "text c", "hat"),
        ("d", "text d", "shoe"),
        ("e", "text e", "hat"),
    ]
    assert items[3].image == ImageBytes(png(RED), f"{folder}: row 4")
    assert count_rows(folder) == 5


def test_the_splits_of_a_dict_are_a_field(tmp_path):
    save(tmp_path / "train", rows("a", "b"))
    save(tmp_path / "test", rows("c"))
    raw(tmp_path / "dataset_dict.json", '{"splits": ["train", "test"]}')
    assert [(item.id, item.fields["split"]) for item in read_catalog(tmp_path)] == [
        ("a", "train"),
        ("b", "train"),
        ("c", "test"),
    ]
    assert count_rows(tmp_path) == 3
    assert "split" not in next(read_catalog(tmp_path / "test")).fields


def test_ids_must_be_unique_over_all_splits(tmp_path):
    save(tmp_path / "train", rows("a", "b"))
    save(tmp_path / "test", rows("b"))
    raw(tmp_path / "dataset_dict.json", '{"splits": ["train", "test"]}')
    with pytest.raises(CatalogError, match="row 3: id 'b' was already used in row 2"):
        list(read_catalog(tmp_path))


def test_an_unknown_label_has_no_name(tmp_path):
    folder = save(tmp_path / "set", [{"text": "x", "label": label} for label in (-1, 5, None, 1)])
    assert [item.fields["label"] for item in read_catalog(folder)] == [None, None, None, "shoe"]


def test_a_list_of_images_is_several_items_and_paths_start_in_the_folder(tmp_path):
    image = {"bytes": png(BLUE), "path": "x.png"}
    folder = save(tmp_path / "set", [{"views": [image, {"bytes": None, "path": "b.png"}]}], features={})
    items, rejects = read(folder, image="views")
    assert [(item.id, item.fields) for item in items] == [("1#0", {"item": "1"}), ("1#1", {"item": "1"})]
    assert [item.image for item in items] == [ImageBytes(png(BLUE), f"{folder}: row 1"), folder / "b.png"]
    assert not rejects


@pytest.mark.parametrize("name", ["../out.arrow", "/etc/x.arrow", "", "..", "a\\b", None, 7])
def test_files_and_splits_are_plain_names_inside_the_folder(tmp_path, name):
    folder = save(tmp_path / "set", rows("a"))
    raw(folder / "state.json", json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(CatalogError, match=r"state\.json: .* is not the plain name of a file"):
        list(read_catalog(folder))
    raw(tmp_path / "dataset_dict.json", json.dumps({"splits": [name]}))
    with pytest.raises(CatalogError, match=r"dataset_dict\.json: .* is not the plain name of a file"):
        list(read_catalog(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("state.json", "{", "cannot be read"),
        ("state.json", "[]", "expected an object, got list"),
        ("state.json", "{}", "names no data files"),
        ("state.json", '{"_data_files": ["x"]}', "names no data files"),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}', "not a readable Arrow stream"),
        ("state.json", '{"_indices_data_files": [{"filename": "i.arrow"}]}', "an index of its rows"),
        ("dataset_info.json", "[" * 100_000, "cannot be read"),
        ("data-00000-of-00001.arrow", "", "not a readable Arrow stream"),
        ("data-00000-of-00001.arrow", "x" * 5000, "not a readable Arrow stream"),
    ],
)
def test_a_damaged_folder_is_a_catalog_error(tmp_path, file, content, reason):
    folder = save(tmp_path / "set", rows("a"))
    raw(folder / file, content)
    with pytest.raises(CatalogError, match=reason) as error:
        list(read_catalog(folder))
    assert "\n" not in str(error.value)


def test_a_truncated_stream_is_not_taken_for_a_short_one(tmp_path):
    folder = save(tmp_path / "set", rows(*"abcdef"))
    file = folder / "data-00000-of-00001.arrow"
    data = file.read_bytes()
    for cut in (len(data) // 3, len(data) // 2, len(data) - 300):
        raw(file, data[:cut])
        with pytest.raises(CatalogError, match="not a readable Arrow stream"):
            list(read_catalog(folder))


@pytest.mark.parametrize("middle", [0x7FFFFFFF, -5, 17])
def test_offsets_that_lead_out_of_a_damaged_batch_are_found(tmp_path, middle):
    folder = save(tmp_path / "set", [{"text": "abcdefgh"}, {"text": "ijklmnop"}], features={})
    file = folder / "data-00000-of-00001.arrow"
    data = file.read_bytes()
    start = data.rindex(struct.pack("<iii", 0, 8, 16))
    raw(file, data[: start + 4] + struct.pack("<i", middle) + data[start + 8 :])
    with pytest.raises(CatalogError, match="not a readable Arrow stream"):
        list(read_catalog(folder))
