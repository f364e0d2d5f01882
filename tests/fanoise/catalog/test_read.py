import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fanoise.catalog import (
    ImageBytes,
    Item,
    PdfPage,
    RemoteImage,
    TarMember,
    catalog_root,
    count_rows,
    image_name,
    read_catalog,
)
from fanoise.errors import CatalogError
from fanoise.images import open_image
from tests.fanoise.catalog.files import RED, png, raw, read, write
from tests.fanoise.catalog.test_folders import pdf
from tests.fanoise.catalog.test_webdataset import tar

ROWS = [
    {"id": "m-1", "title": "Mug, blue", "text": 'a "blue" mug', "image": "photos/a b.png", "price": "12"},
    {"id": "näh 2", "title": "'Lamp'", "text": "first line\nsecond line", "image": "", "price": ""},
    {"id": "3", "title": "", "text": "", "image": "photos/c'\"d.png", "price": "0"},
]
SUFFIXES = ["csv", "tsv", "jsonl", "parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_table_gives_the_same_items(tmp_path, suffix):
    assert list(read_catalog(write(tmp_path / f"the shop.{suffix}", ROWS))) == [
        Item(
            id="m-1",
            text='a "blue" mug',
            image=tmp_path / "photos/a b.png",
            fields={"title": "Mug, blue", "text": 'a "blue" mug', "price": "12"},
        ),
        Item(
            id="näh 2",
            text="first line\nsecond line",
            image=None,
            fields={"title": "'Lamp'", "text": "first line\nsecond line", "price": None},
        ),
        Item(
            id="3",
            text=None,
            image=tmp_path / "photos/c'\"d.png",
            fields={"title": None, "text": None, "price": "0"},
        ),
    ]


def test_a_folder_of_parquet_parts_is_one_table_numbered_on(tmp_path):
    for part in ("b/part-0", "part-0", "part-1"):
        (tmp_path / "shop" / part).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / f"shop/{part}.parquet", [{"image": f"photos/{part}.png"}, {"image": "x.png"}])
    raw(tmp_path / "shop/_SUCCESS", "")
    raw(tmp_path / "shop/._part-0.parquet", "not Parquet")
    for catalog in (tmp_path / "shop", tmp_path / "shop/**/*.parquet"):
        items = list(read_catalog(catalog))
        assert [item.id for item in items] == ["1", "2", "3", "4", "5", "6"]
        assert sorted(str(item.image) for item in items[::2]) == [
            str(tmp_path / f"shop/photos/{part}.png") for part in ("b/part-0", "part-0", "part-1")
        ]
        assert count_rows(catalog) == 6


def test_a_pattern_may_name_any_one_kind_of_table(tmp_path):
    for name in ("a-0.jsonl", "a-1.jsonl", "a-2.csv"):
        write(tmp_path / name, [{"id": name, "text": "x"}])
    assert [item.id for item in read_catalog(tmp_path / "a-*.jsonl")] == ["a-0.jsonl", "a-1.jsonl"]
    with pytest.raises(CatalogError, match=r"names files of several kinds \(\.csv, \.jsonl\)"):
        list(read_catalog(tmp_path / "a-*"))


def test_a_folder_below_which_the_parts_lie_is_read_by_them(tmp_path):
    raw(tmp_path / "set/README.md", "")
    tar(tmp_path / "set/data/train-0.tar", {"a.png": png()})
    assert [item.id for item in read_catalog(tmp_path / "set")] == ["data/train-0/a"]


def test_a_folder_of_two_kinds_asks_which(tmp_path):
    write(tmp_path / "meta.parquet", [{"text": "x"}])
    raw(tmp_path / "a.png", png())
    with pytest.raises(
        CatalogError, match=r"holds \.parquet and \.png files; say which by a pattern like .*/\*\.parquet"
    ):
        list(read_catalog(tmp_path))


def test_the_kind_of_a_folder_is_told_by_files_alone(tmp_path):
    raw(tmp_path / "old.tar/a.png", png())
    raw(tmp_path / "._b.parquet", "")
    raw(tmp_path / "c.png", png())
    assert [item.id for item in read_catalog(tmp_path)] == ["c.png", "old.tar/a.png"]


def test_one_file_of_each_kind(tmp_path):
    assert [item.id for item in read_catalog(pdf(tmp_path / "a.pdf", pages=2))] == ["a.pdf#1", "a.pdf#2"]
    assert [item.id for item in read_catalog(tar(tmp_path / "a.TAR", {"b.png": png()}))] == ["b"]


@pytest.mark.parametrize("name", ["no.csv", "no", "no/where.tar"])
def test_a_missing_catalogue_is_named(tmp_path, name):
    kinds = ".csv, .tsv, .jsonl, .parquet, .pdf, .tar file, or a folder"
    with pytest.raises(CatalogError, match=f"{name}: no such file or folder; give a {kinds}"):
        list(read_catalog(tmp_path / name))


def test_an_unknown_kind_lists_the_known(tmp_path):
    with pytest.raises(CatalogError, match=r"unknown kind '\.gz'; expected one of \.csv, .*\.pdf, \.tar"):
        list(read_catalog(raw(tmp_path / "a.tar.gz", "x")))


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ""), ("a.csv", "id,text\n"), ("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.csv", "\n")]
)
def test_an_empty_table_is_refused(tmp_path, name, content):
    with pytest.raises(CatalogError, match=f"{name}: the catalogue is empty"):
        list(read_catalog(raw(tmp_path / name, content)))


def test_an_empty_parquet_table_or_tar_is_refused(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", tar(tmp_path / "a.tar", {})):
        with pytest.raises(CatalogError, match="the catalogue is empty"):
            list(read_catalog(path))


def test_a_catalogue_of_rejects_is_not_empty(tmp_path):
    path = write(tmp_path / "a.csv", [{"text": "", "image": ""}])
    assert read(path) == ([], [("1", "a.csv", "neither a text nor an image; fill one of them or drop the row")])


# ids


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_duplicate_id_names_both_rows(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", [{"id": name, "text": "x"} for name in ("a", "b", "c", "b")])
    with pytest.raises(
        CatalogError, match=rf"a\.{suffix}: row 4: id 'b' was already used in row 2; ids must be unique"
    ):
        read(path)


def test_equal_numbers_and_texts_are_equal_ids(tmp_path):
    with pytest.raises(CatalogError, match="row 2: id '7' was already used in row 1"):
        list(read_catalog(write(tmp_path / "a.jsonl", [{"id": 7, "text": "x"}, {"id": "7", "text": "x"}])))


def test_an_id_may_not_be_a_number_that_another_row_has(tmp_path):
    with pytest.raises(
        CatalogError, match=r"row 2: id '1' was already used in row 1 \(row 1 has no id, its number is it\); ids"
    ):
        list(read_catalog(raw(tmp_path / "a.jsonl", '{"text": "x"}\n{"id": "1", "text": "x"}\n')))
    with pytest.raises(CatalogError, match=r"row 2: id '2' was already used in row 1 \(row 2 has no id"):
        list(read_catalog(raw(tmp_path / "a.jsonl", '{"id": "2", "text": "x"}\n{"text": "x"}\n')))


def test_the_ids_of_several_parts_are_one_set(tmp_path):
    write(tmp_path / "a.parquet", [{"text": "x"}])
    write(tmp_path / "b.parquet", [{"text": "x", "id": "1"}])
    with pytest.raises(CatalogError, match="row 2: id '1' was already used in row 1"):
        list(read_catalog(tmp_path))


def test_ids_of_several_images_are_ids_too(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": "a", "image": ["x.png"]}, {"id": "a#0", "image": "y.png"}])
    with pytest.raises(CatalogError, match="row 2: id 'a#0' was already used in row 1"):
        list(read_catalog(path))


def test_two_ids_with_one_digest_are_two_ids(tmp_path, monkeypatch):
    monkeypatch.setattr("fanoise.catalog.read.hash", lambda id: 1, raising=False)
    path = write(tmp_path / "a.csv", [{"id": name, "text": "x"} for name in "abc"])
    assert [item.id for item in read_catalog(path)] == ["a", "b", "c"]
    path = write(tmp_path / "a.csv", [{"id": name, "text": "x"} for name in "abca"])
    with pytest.raises(CatalogError, match="row 4: id 'a' was already used in row 1"):
        list(read_catalog(path))


def test_a_row_that_was_rejected_leaves_its_id_free(tmp_path):
    items, rejects = read(write(tmp_path / "a.csv", [{"id": "a", "text": ""}, {"id": "a", "text": "x"}]))
    assert ([item.id for item in items], [id for id, *_ in rejects]) == (["a"], ["a"])


def test_ids_that_an_index_spells_alike_are_duplicates(tmp_path):
    path = raw(tmp_path / "a.jsonl", '{"id": "\\ud800", "text": "x"}\n{"id": "\\\\ud800", "text": "x"}\n')
    with pytest.raises(CatalogError, match=r"row 2: id .* was already used in row 1"):
        list(read_catalog(path))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_so_are_names_of_files(tmp_path):
    for name in (b"\xff.png", b"\\udcfe.png"):
        raw(tmp_path / os.fsdecode(name), png())
    assert len(list(read_catalog(tmp_path))) == 2
    raw(tmp_path / "\\udcff.png", png())
    with pytest.raises(CatalogError, match=r"id .* was already used in row"):
        list(read_catalog(tmp_path))


# rows that differ


@pytest.mark.parametrize("kind", ["jsonl", "tar"])
@pytest.mark.parametrize("wanted", [{"vectors": "v"}, {"text": "{v}"}, {"image": ["image", "v"]}])
def test_a_column_that_the_first_rows_lack_is_one_all_the_same(tmp_path, kind, wanted):
    def table(name, rows):
        if kind == "jsonl":
            return write(tmp_path / f"{name}.jsonl", rows)
        members = [(f"{number:04d}.json", json.dumps(row).encode()) for number, row in enumerate(rows)]
        return tar(tmp_path / f"{name}.tar", dict(members))

    rows = [{"text": f"{number}", "image": "x.png"} for number in range(255)]
    late = table("late", [*rows, {"text": "last", "image": "x.png", "v": "7"}])
    items, _ = read(late, **wanted)
    assert [item.fields["text"] for item in items if "text" in item.fields][-1] == "last"
    assert items[0].fields["text"] == "0"
    assert [item.id for item in items] == list(dict.fromkeys(item.id for item in items))
    with pytest.raises(CatalogError, match=r"unknown column 'v'; the columns are .*text"):
        list(read_catalog(table("never", rows), **wanted))
    with pytest.raises(CatalogError, match="unknown column 'v'"):
        list(read_catalog(table("too-late", [*rows, rows[0], {"text": "last", "v": "7"}]), **wanted))


def test_the_columns_of_other_tables_are_those_of_the_first_row(tmp_path):
    """So that a fault further down does not come before what is wrong with the whole."""
    with pytest.raises(CatalogError, match="unknown column 'v'"):
        list(read_catalog(raw(tmp_path / "a.csv", "id,text\n1,x\n2\n"), vectors="v"))


def test_a_column_of_vectors_that_the_text_is_made_of_stays_a_list(tmp_path):
    path = write(tmp_path / "a.parquet", [{"text": "x", "v": [1, 2]}])
    [item] = read_catalog(path, text="{text} {v}", vectors="v")
    assert (item.text, item.fields["v"]) == ("x 1, 2", [1, 2])
    [item] = read_catalog(path, vectors="v")
    assert isinstance(item.fields["v"], np.ndarray)
    [item] = read_catalog(path)
    assert item.fields["v"] == [1, 2]


# rejects and streams


def test_one_bad_row_does_not_end_the_catalogue(tmp_path):
    raw(tmp_path / "good.png", png())
    rows = [
        {"id": "good", "image": "good.png"},
        {"id": "empty", "image": None},
        {"id": "url", "image": "https://example.org/a.png"},
        {"id": "base64", "image": "data:image/png;base64,é"},
        {"id": "outside", "image": "/etc/a.png"},
        {"id": "words", "image": None, "text": "w"},
    ]
    items, rejects = read(write(tmp_path / "a.jsonl", rows))
    assert [item.id for item in items] == ["good", "words"]
    assert [(id, name) for id, name, _ in rejects] == [
        ("empty", "a.jsonl"),
        ("url", "https://example.org/a.png"),
        ("base64", "a.jsonl"),
        ("outside", "/etc/a.png"),
    ]
    assert all(reason and "\n" not in reason for *_, reason in rejects)


def test_items_come_as_a_stream(tmp_path):
    items = read_catalog(raw(tmp_path / "long.jsonl", '{"text": "a"}\n{"text": "b"}\nnot json\n'))
    assert [next(items).text, next(items).text] == ["a", "b"]
    with pytest.raises(CatalogError, match="line 3: not JSON"):
        next(items)


def test_nothing_is_opened_before_the_first_item_is_asked_for(tmp_path):
    items = read_catalog(tmp_path / "later.csv")
    write(tmp_path / "later.csv", [{"text": "x"}])
    assert next(items).text == "x"


def test_reading_a_catalogue_does_not_wait_for_torch(tmp_path):
    path = write(tmp_path / "a.csv", [{"text": "x"}])
    script = (
        "import sys; from fanoise import read_catalog\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'pypdfium2', 'datasets'}\n"
        "print([item.text for item in read_catalog(sys.argv[1])], heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['x'] set()"


# counting, roots, names


def test_rows_are_counted_only_where_files_tell(tmp_path):
    write(tmp_path / "a.csv", [{"text": "x"}])
    write(tmp_path / "a.jsonl", [{"text": "x"}])
    raw(tmp_path / "photos/a.png", png())
    tar(tmp_path / "a.tar", {"a.png": png()})
    assert [count_rows(tmp_path / name) for name in ("a.csv", "a.jsonl", "photos", "a.tar", "*.csv")] == [None] * 5
    assert count_rows(write(tmp_path / "a.parquet", [{"text": "x"}] * 7)) == 7
    with pytest.raises(CatalogError, match="not a readable Parquet file"):
        count_rows(raw(tmp_path / "b.parquet", "x"))


def test_counting_does_not_read_the_rows(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", [{"text": "x"}] * 7)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    assert count_rows(str(path)) == 7


def test_the_root_is_where_paths_start(tmp_path):
    assert catalog_root(tmp_path) == tmp_path
    assert catalog_root(tmp_path / "a.csv") == tmp_path
    assert catalog_root(str(tmp_path / "s/{0..3}.tar")) == tmp_path / "s"
    assert catalog_root("a.csv") == Path()


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (None, None),
        (b"x", None),
        (Path("/shop/a/b.png"), "a/b.png"),
        ("/shop/a.png", "a.png"),
        ("/shopping/a.png", "/shopping/a.png"),
        ("/shop/", "/shop/"),
        (PdfPage(Path("/shop/d.pdf"), 3), "d.pdf#3"),
        (TarMember(Path("/shop/s.tar"), "x/a.png", 1, 2), "s.tar/x/a.png"),
        (ImageBytes(b"x", "/shop/a.csv: row 3"), "a.csv: row 3"),
        (RemoteImage("https://example.org/a.png"), "https://example.org/a.png"),
    ],
)
def test_images_have_a_name_from_the_catalogues_folder_on(image, name):
    assert image_name(image, "/shop") == name
    assert image_name(image, Path("/shop/")) == name


def test_image_sources_open_in_another_process(tmp_path):
    raw(tmp_path / "f/a.png", png())
    sources = [
        next(read_catalog(tmp_path / "f")).image,
        next(read_catalog(pdf(tmp_path / "a.pdf"))).image,
        next(read_catalog(tar(tmp_path / "a.tar", {"b.png": png()}))).image,
        next(read_catalog(write(tmp_path / "a.parquet", [{"image": png()}]))).image,
    ]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        sizes = list(pool.map(_size, sources))
    assert sizes == [open_image(source).size for source in sources]


def _size(source):
    return open_image(source).size


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_a_catalogue_may_lie_in_a_folder_that_is_not_utf8(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/t\xfcr"))
    raw(folder / "a.png", png())
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        (item,) = read_catalog(write(folder / name, [{"image": "a.png"}]))
        assert open_image(item.image).getpixel((0, 0)) == RED
