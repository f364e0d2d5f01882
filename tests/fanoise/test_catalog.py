import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fanoise.catalog import Item, read_catalog, read_rows
from fanoise.errors import CatalogError

ROWS = [
    {"id": "m-1", "title": "Mug, blue", "text": 'a "blue" mug', "image": "photos/a b.png", "price": "12"},
    {"id": "näh 2", "title": "'Lamp'", "text": "first line\nsecond line", "image": "", "price": ""},
    {"id": "3", "title": "", "text": "", "image": "photos/c'\"d.png", "price": "0"},
]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def raw(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "CSV"])
def test_every_kind_of_table_gives_the_same_items(tmp_path, kind):
    path = write(tmp_path / f"shop.{kind.lower()}", ROWS).rename(tmp_path / f"the shop.{kind}")
    assert list(read_catalog(path)) == [
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


def test_a_folder_gives_the_items_of_a_table_that_lists_it(tmp_path):
    names = ["b.PNG", "hats/a b.jpg", "hats/red/x'\n\"y.webp", "zz.tiff"]
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"never opened here")
    raw(tmp_path / "photos" / "notes.txt", "not an image")
    (tmp_path / "photos" / "empty.png").mkdir()
    rows = [{"id": name, "image": f"photos/{name}", "category": str(Path(name).parent)} for name in names]
    listed = list(read_catalog(write(tmp_path / "list.csv", rows)))
    found = list(read_catalog(tmp_path / "photos"))
    assert [(item.id, item.text, item.image) for item in found] == [(i.id, i.text, i.image) for i in listed]
    assert [item.fields for item in found] == [
        {},
        {"category": "hats"},
        {"category": "hats/red"},
        {},
    ]


def test_links_that_form_a_loop_do_not_trap_the_reader_of_a_folder(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [item.id for item in read_catalog(tmp_path)] == ["a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_an_image_with_a_name_that_is_not_utf8_is_found_and_can_be_opened(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/t\xfcr"))
    folder.mkdir()
    (folder / os.fsdecode(b"gr\xfcn.png")).write_bytes(b"x")
    (item,) = read_catalog(tmp_path)
    assert os.fsencode(item.id) == b"t\xfcr/gr\xfcn.png"
    assert item.image is not None
    assert Path(item.image).read_bytes() == b"x"


def test_items_come_as_a_stream(tmp_path):
    items = read_catalog(raw(tmp_path / "long.jsonl", '{"text": "a"}\n{"text": "b"}\nnot json\n'))
    assert [next(items).text, next(items).text] == ["a", "b"]
    with pytest.raises(CatalogError, match="line 3: not JSON"):
        next(items)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path, name):
    content = "id,text\nx,y\n" if name.endswith("csv") else '{"id": "x", "text": "y"}\n'
    assert list(read_catalog(raw(tmp_path / name, b"\xef\xbb\xbf" + content.encode()))) == [
        Item(id="x", text="y", fields={"text": "y"})
    ]


def test_rows_without_an_id_are_numbered_and_blank_lines_are_not_rows(tmp_path):
    path = raw(tmp_path / "a.csv", "text\r\n\r\na\r\n\r\nb\r\n")
    assert [(item.id, item.text) for item in read_catalog(path)] == [("1", "a"), ("2", "b")]
    path = raw(tmp_path / "a.jsonl", '\n{"text": "a"}\n  \n{"text": "b", "id": 0}\n')
    assert [(item.id, item.text) for item in read_catalog(path)] == [("1", "a"), ("0", "b")]


def test_images_are_found_from_the_catalogues_folder_or_absolutely(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    path = write(tmp_path / "a.jsonl", [{"image": "x.png"}, {"image": "/data/y.png"}, {"image": "../z.png"}])
    assert [item.image for item in read_catalog(path)] == [
        tmp_path / "x.png",
        Path("/data/y.png"),
        tmp_path / "../z.png",
    ]


def test_another_image_column_can_be_named(tmp_path):
    path = write(tmp_path / "a.csv", [{"photo": "x.png", "image": "old.png"}])
    (item,) = read_catalog(path, image="photo")
    assert item == Item(id="1", text=None, image=tmp_path / "x.png", fields={"image": "old.png"}) or item.fields == {}
    assert item.image == tmp_path / "x.png"


# what is embedded as text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title", "Mug"),
        ("{title}", "Mug"),
        ("{title}. {note} {title}", "Mug.  Mug"),
        ("{title} costs {price} €", "Mug costs 0 €"),
        ("{{{title}}}", "{Mug}"),
        ("{the price}", "zero"),
        (None, "plain"),
    ],
)
def test_text_is_a_column_or_a_template(tmp_path, text, expected):
    row = {"title": "Mug", "note": None, "price": 0, "the price": "zero", "text": "plain"}
    assert next(read_catalog(write(tmp_path / "a.jsonl", [row]), text=text)).text == expected


def test_a_value_with_braces_is_not_a_template(tmp_path):
    path = write(tmp_path / "a.csv", [{"title": "{cost} {title} {0} {", "cost": "secret"}])
    assert next(read_catalog(path, text="{title}")).text == "{cost} {title} {0} {"
    assert next(read_catalog(path, text="{title} | {cost}")).text == "{cost} {title} {0} { | secret"


@pytest.mark.parametrize("template", ["{title.__class__}", "{title[0]}", "{title.__init__.__globals__}", "{}", "{0}"])
def test_a_template_reaches_columns_and_nothing_else(tmp_path, template):
    with pytest.raises(CatalogError, match=r"unknown column .*; the columns are title, id"):
        list(read_catalog(write(tmp_path / "a.csv", [{"title": "x", "id": "1"}]), text=template))


@pytest.mark.parametrize("template", ["{title", "title}", "{title!r}", "{title:>99999999}", "{title:{title}}"])
def test_a_template_that_is_more_than_names_says_how_to_write_it(tmp_path, template):
    with pytest.raises(CatalogError, match=r"text template .*\{title\}\. \{description\}"):
        list(read_catalog(write(tmp_path / "a.csv", [{"title": "x"}]), text=template))


@pytest.mark.parametrize("text", [None, "text", "{text}", "{text}. {other}"])
def test_a_row_without_text_and_image_is_named(tmp_path, text):
    rows = [{"text": "a", "other": "b", "image": ""}, {"text": "", "other": "", "image": ""}]
    with pytest.raises(CatalogError, match=r"a\.csv: row 2: neither a text nor an image"):
        list(read_catalog(write(tmp_path / "a.csv", rows), text=text))


# what is wrong with a catalogue


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("options", [{"text": "titel"}, {"text": "{title} {titel}"}, {"image": "titel"}])
def test_an_unknown_column_lists_the_columns(tmp_path, kind, options):
    path = write(tmp_path / f"a.{kind}", [{"title": "x", "photo": "y"}])
    with pytest.raises(CatalogError, match=rf"a\.{kind}: unknown column 'titel'; the columns are title, photo"):
        list(read_catalog(path, **options))


def test_a_catalogue_without_text_and_image_columns_says_how_to_name_them(tmp_path):
    with pytest.raises(CatalogError, match=r"--image COLUMN, --text COLUMN.*the columns are title, photo"):
        list(read_catalog(write(tmp_path / "a.csv", [{"title": "x", "photo": "y"}])))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_duplicate_id_names_both_rows(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", [{"id": name, "text": "x"} for name in ("a", "b", "c", "b")])
    with pytest.raises(CatalogError, match=rf"a\.{kind}: row 4: id 'b' was already used in row 2"):
        list(read_catalog(path))


def test_equal_numbers_and_texts_are_equal_ids(tmp_path):
    with pytest.raises(CatalogError, match="row 2: id '7' was already used in row 1"):
        list(read_catalog(write(tmp_path / "a.jsonl", [{"id": 7, "text": "x"}, {"id": "7", "text": "x"}])))


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ""), ("a.csv", "id,text\n"), ("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.csv", "\n")]
)
def test_an_empty_table_is_refused(tmp_path, name, content):
    with pytest.raises(CatalogError, match=f"{name}: the catalogue is empty"):
        list(read_catalog(raw(tmp_path / name, content)))


def test_an_empty_parquet_table_and_an_empty_folder_are_refused(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(CatalogError, match="the catalogue is empty"):
        list(read_catalog(tmp_path / "a.parquet"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(CatalogError, match=r"folder: no images found; expected .*\.jpg"):
        list(read_catalog(tmp_path / "folder"))


@pytest.mark.parametrize("row", ["b", "b,c,d"])
def test_a_ragged_csv_row_is_named(tmp_path, row):
    path = raw(tmp_path / "a.csv", f"id,text\na,x\n{row}\n")
    with pytest.raises(CatalogError, match=r"a\.csv: row 2: expected 2 columns \(id, text\)"):
        list(read_catalog(path))


def test_a_column_twice_in_the_header_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="a column name occurs twice in the header: id, text, id"):
        list(read_catalog(raw(tmp_path / "a.csv", "id,text,id\n1,2,3\n")))


@pytest.mark.parametrize("content", ['"' + "a" * 200_000, 'text\n"' + "a" * 200_000])
def test_a_quote_that_never_ends_is_named_by_its_line(tmp_path, content):
    with pytest.raises(CatalogError, match=r"a\.csv: line \d+: field larger than"):
        list(read_catalog(raw(tmp_path / "a.csv", content)))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "b"', "not JSON .*column"),
        ("[1]", "expected an object, got list"),
        ("null", "expected an object, got NoneType"),
        ("[" * 100_000, "not usable JSON"),
        ('{"text": ' + "1" * 5000 + "}", "not usable JSON"),
    ],
)
def test_a_broken_json_line_is_named_by_its_number(tmp_path, line, reason):
    path = raw(tmp_path / "a.jsonl", '{"text": "a"}\n\n' + line + "\n")
    with pytest.raises(CatalogError, match=rf"a\.jsonl: line 3: {reason}"):
        list(read_catalog(path))


def test_an_escaped_emoji_is_one_character_and_half_of_one_is_not_fatal(tmp_path):
    path = raw(tmp_path / "a.jsonl", r'{"text": "\ud83d\ude00"}' + "\n" + r'{"text": "\ud83d"}' + "\n")
    assert [item.text for item in read_catalog(path)] == ["😀", "\ud83d"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_line_that_is_not_utf8_is_named_by_its_number(tmp_path, name):
    line = b"x\n" if name.endswith("csv") else b'{"text": "x"}\n'
    content = b"text\n" * name.endswith("csv") + line * 5000 + b'{"text": "gr\xfcn"}\n' + line
    with pytest.raises(CatalogError, match=rf"{name}: line {5001 + name.endswith('csv')}: not UTF-8"):
        list(read_catalog(raw(tmp_path / name, content)))


@pytest.mark.parametrize("position", [0.0, 0.1, 0.5, 1.0])
def test_a_damaged_parquet_file_is_a_catalog_error(tmp_path, position):
    path = write(tmp_path / "a.parquet", [{"text": f"number {number}"} for number in range(500)])
    data = bytearray(path.read_bytes())
    start = int(position * (len(data) - 40))
    data[start : start + 40] = bytes(255 - byte for byte in data[start : start + 40])
    with pytest.raises(CatalogError, match=r"a\.parquet: .*read") as error:
        list(read_catalog(raw(path, bytes(data))))
    assert "\n" not in str(error.value)


def test_a_truncated_or_empty_parquet_file_is_a_catalog_error(tmp_path):
    path = write(tmp_path / "a.parquet", [{"text": "x"}])
    for content in (path.read_bytes()[:-10], b""):
        with pytest.raises(CatalogError, match="not a readable Parquet file"):
            list(read_catalog(raw(path, content)))


@pytest.mark.parametrize(("name", "remedy"), [("no.csv", "no such file"), ("no", "no such file")])
def test_a_missing_catalogue_is_named(tmp_path, name, remedy):
    with pytest.raises(CatalogError, match=f"{name}: {remedy}; give a .csv, .jsonl, .parquet file"):
        list(read_catalog(tmp_path / name))


def test_an_unknown_kind_lists_the_known(tmp_path):
    with pytest.raises(CatalogError, match=r"unknown kind '.xlsx'; expected one of .csv, .jsonl, .parquet"):
        list(read_catalog(raw(tmp_path / "a.xlsx", "x")))


def test_a_folder_where_a_table_is_expected_is_a_catalog_error(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(CatalogError, match=r"a\.csv: cannot be read \(Is a directory\)"):
        list(read_rows(tmp_path / "a.csv"))


def test_file_and_column_names_may_be_odd(tmp_path):
    path = write(tmp_path / "the 'best'\n\"shop\".csv", [{"a 'b'": "x", 'say "hi"\nthere': "y"}])
    assert next(read_catalog(path, text="a 'b'")).text == "x"
    (item,) = read_catalog(path, text='{say "hi"\nthere}')
    assert (item.text, item.fields) == ("y", {"a 'b'": "x", 'say "hi"\nthere': "y"})


def test_reading_a_catalogue_does_not_wait_for_torch(tmp_path):
    path = write(tmp_path / "a.csv", [{"text": "x"}])
    script = (
        "import sys; from fanoise import read_catalog\n"
        "print([item.text for item in read_catalog(sys.argv[1])], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['x'] False"
