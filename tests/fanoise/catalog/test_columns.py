import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fanoise.catalog import Item, read_catalog
from fanoise.errors import CatalogError
from tests.fanoise.catalog.files import png, raw, read, write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title", "Mug"),
        ("{title}", "Mug"),
        ("{title}. {note} {title}", "Mug.  Mug"),
        ("{title} costs {price} €", "Mug costs 0 €"),
        ("{{{title}}}", "{Mug}"),
        ("{the price}", "zero"),
        ("{tags}", "red, 2"),
        ("tags", "red, 2"),
        (None, "plain"),
    ],
)
def test_text_is_a_column_or_a_template(tmp_path, text, expected):
    row = {"title": "Mug", "note": None, "price": 0, "the price": "zero", "text": "plain", "tags": ["red", None, 2]}
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


@pytest.mark.parametrize("text", ["{info}", "info"])
def test_a_text_that_is_no_text_is_a_reject(tmp_path, text):
    path = write(tmp_path / "a.jsonl", [{"info": {"a": 1}}, {"info": "fine"}])
    items, rejects = read(path, text=text)
    assert [item.text for item in items] == ["fine"]
    assert rejects == [("1", "a.jsonl", "column 'info' is a dict, must be a text, number or list of them")]


@pytest.mark.parametrize("text", [None, "text", "{text}", "{text}. {other}"])
def test_a_row_without_text_and_image_is_named(tmp_path, text):
    rows = [{"text": "a", "other": "b", "image": ""}, {"text": "", "other": "", "image": ""}]
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(CatalogError, match=r"/a\.csv: row 2: neither a text nor an image; fill one"):
        list(read_catalog(path, text=text))
    items, rejects = read(path, text=text)
    assert ([item.id for item in items], [reject[:2] for reject in rejects]) == (["1"], [("2", "a.csv")])


def test_the_nan_that_pandas_writes_is_an_empty_cell(tmp_path):
    pq.write_table(
        pa.table({"id": [1.5, math.nan], "text": ["a", "b"], "image": [math.nan, math.nan]}), tmp_path / "a.parquet"
    )
    assert [(item.id, item.text, item.image) for item in read_catalog(tmp_path / "a.parquet")] == [
        ("1.5", "a", None),
        ("2", "b", None),
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("options", [{"text": "titel"}, {"text": "{title} {titel}"}, {"image": ["photo", "titel"]}])
def test_an_unknown_column_lists_the_columns(tmp_path, kind, options):
    path = write(tmp_path / f"a.{kind}", [{"title": "x", "photo": "y"}])
    with pytest.raises(CatalogError, match=rf"a\.{kind}: unknown column 'titel'; the columns are title, photo"):
        list(read_catalog(path, **options))


def test_a_catalogue_without_text_and_image_columns_says_how_to_name_them(tmp_path):
    with pytest.raises(CatalogError, match=r"--image COLUMN, --text COLUMN.*the columns are title, photo"):
        list(read_catalog(write(tmp_path / "a.csv", [{"title": "x", "photo": "y"}])))


@pytest.mark.parametrize("image", [[], ["a", "a"]])
def test_image_columns_are_at_least_one_and_differ(tmp_path, image):
    with pytest.raises(CatalogError, match="name at least one, and each once"):
        list(read_catalog(write(tmp_path / "a.csv", [{"a": "x"}]), image=image))


def test_another_image_column_can_be_named(tmp_path):
    path = write(tmp_path / "a.csv", [{"photo": "x.png", "image": "old.png"}])
    assert list(read_catalog(path, image="photo")) == [
        Item(id="1", image=tmp_path / "x.png", fields={"image": "old.png"})
    ]


def test_each_image_of_a_list_is_an_item_that_says_whose_it_is(tmp_path):
    rows = [
        {"id": "a", "image": ["1.png", None, "2.png"], "text": "mug"},
        {"id": "b", "image": ["3.png"], "text": None},
        {"id": "c", "image": [], "text": "words"},
    ]
    fields = {"text": "mug", "item": "a"}
    assert list(read_catalog(write(tmp_path / "a.jsonl", rows))) == [
        Item(id="a#0", text="mug", image=tmp_path / "1.png", fields=fields),
        Item(id="a#2", text="mug", image=tmp_path / "2.png", fields=fields),
        Item(id="b#0", image=tmp_path / "3.png", fields={"text": None, "item": "b"}),
        Item(id="c", text="words", fields={"text": "words", "item": "c"}),
    ]


def test_several_image_columns_are_one_list(tmp_path):
    rows = [{"front": "f.png", "more": ["x.png", "y.png"]}, {"front": None, "more": ["z.png", None]}]
    items = list(read_catalog(write(tmp_path / "a.parquet", rows), image=("front", "more")))
    assert [(item.id, item.image.name, dict(item.fields)) for item in items] == [
        ("1#0", "f.png", {"item": "1"}),
        ("1#1", "x.png", {"item": "1"}),
        ("1#2", "y.png", {"item": "1"}),
        ("2#1", "z.png", {"item": "2"}),
    ]


def test_each_row_of_several_image_columns_is_a_list_even_of_one(tmp_path):
    rows = [{"front": "f.png", "back": "b.png"}, {"front": "", "back": "x.png"}]
    items = list(read_catalog(write(tmp_path / "a.csv", rows), image=["front", "back"]))
    assert [(item.id, item.fields) for item in items] == [
        ("1#0", {"item": "1"}),
        ("1#1", {"item": "1"}),
        ("2#1", {"item": "2"}),
    ]


def test_one_bad_image_of_several_is_one_reject(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": "a", "image": ["1.png", "ftp://x/2.png", "3.png"]}])
    items, rejects = read(path)
    assert [item.id for item in items] == ["a#0", "a#2"]
    assert [(id, name) for id, name, _ in rejects] == [("a#1", "ftp://x/2.png")]


def test_a_list_of_nothing_is_a_reject(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"image": [None, ""]}, {"image": ["x.png"]}])
    items, rejects = read(path)
    assert ([item.id for item in items], [id for id, *_ in rejects]) == (["2#0"], ["1"])


def test_binary_values_are_never_fields(tmp_path):
    image = {"bytes": png(), "path": "/home/someone/a.png"}
    row = {"id": "1", "image": image, "mask": image, "views": [image], "lazy": {"bytes": None, "path": "/home/x.png"}}
    row |= {"raw": b"x", "deep": {"a": [{"b": b"x"}]}, "size": {"w": 4}, "tags": ["a"], "price": 1.5}
    (item,) = read_catalog(write(tmp_path / "a.parquet", [row]))
    assert item.fields == {"size": {"w": 4}, "tags": ["a"], "price": 1.5}


def test_file_and_column_names_may_be_odd(tmp_path):
    path = write(tmp_path / "the 'best'\n\"shop\".csv", [{"a 'b'": "x", 'say "hi"\nthere': "y"}])
    assert next(read_catalog(path, text="a 'b'")).text == "x"
    (item,) = read_catalog(path, text='{say "hi"\nthere}')
    assert (item.text, item.fields) == ("y", {"a 'b'": "x", 'say "hi"\nthere': "y"})


def test_rows_without_an_id_are_numbered(tmp_path):
    path = raw(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b", "id": 0}\n{"text": "c", "id": ""}\n')
    assert [item.id for item in read_catalog(path)] == ["1", "0", "3"]


@pytest.mark.parametrize("text", [None, "title"])
@pytest.mark.parametrize("row", ["1;mug;2", "1;mug, red;2"])
def test_a_table_with_other_separators_says_so(tmp_path, text, row):
    (tmp_path / "a.csv").write_text(f"id;title;price\n{row}\n")
    with pytest.raises(CatalogError, match=r"id;title;price \(one column: is ';' what separates them\?"):
        list(read_catalog(tmp_path / "a.csv", text=text))


def test_a_whole_number_that_pandas_made_a_fraction_of_is_an_id_without_one(tmp_path):
    table = pa.table({"id": pa.array([7.0, None, 1.5]), "text": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "c.parquet")
    assert [item.id for item in read_catalog(tmp_path / "c.parquet")] == ["7", "2", "1.5"]
