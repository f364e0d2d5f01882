"""Of which type fields are once rows of another catalogue were added."""

import json

from index.build import build_index
from index.search import Index
from index.update import add_items


def test_a_field_that_becomes_text_is_said(embedder, tmp_path):
    def catalog(name, **values):
        (tmp_path / name).write_text(json.dumps({"id": name, "text": name, **values}))
        return tmp_path / name

    folder = tmp_path / "index"
    build_index(embedder, catalog("a.jsonl", price=1, size=1, tags=["x"], note="n"), folder, progress=False)
    change = add_items(
        embedder, catalog("b.jsonl", price="cheap", size=1.5, tags={"y": 1}, new=1), folder, progress=False
    )
    assert [note.split(" is text now")[0] for note in change.notes] == ["the field 'price'", "the field 'tags'"]
    assert add_items(embedder, catalog("c.jsonl", price=2), folder, progress=False).notes == []


def test_numbers_and_lists_of_a_table_of_texts_are_those_of_the_index(embedder, tmp_path):
    rows = [
        {"id": str(i), "text": f"t{i}", "price": i, "sold": i % 2 == 0, "tags": ["a", "b"][: i % 3]} for i in range(6)
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    (tmp_path / "d.csv").write_text("id,text,price,sold,tags\n9,t9,5.5,True,a\n10,t10,,,\n")
    change = add_items(embedder, tmp_path / "d.csv", tmp_path / "index", progress=False)
    assert change.notes == []
    index = Index.open(tmp_path / "index")
    assert index.values("price").to_pylist() == [0, 1, 2, 3, 4, 5, 5.5, None]
    assert index.values("sold").to_pylist() == [True, False] * 3 + [True, None]
    assert index.values("tags").to_pylist() == [[], ["a"], ["a", "b"], [], ["a"], ["a", "b"], ["a"], None]
    (tmp_path / "e.csv").write_text("id,text,price\n11,t11,on request\n")
    change = add_items(embedder, tmp_path / "e.csv", tmp_path / "index", progress=False)
    assert change.notes == ["the field 'price' is text now, for the new rows have other values there than double"]


def test_texts_of_the_index_stay_as_they_are_written(embedder, tmp_path):
    (tmp_path / "c.csv").write_text("id,text,price,code\n1,t1,10.00,12E5\n2,t2,1.10,007\n")
    build_index(embedder, tmp_path / "c.csv", tmp_path / "index", progress=False)
    (tmp_path / "d.jsonl").write_text(json.dumps({"id": "3", "text": "t3", "price": 2.5, "code": 7}))
    add_items(embedder, tmp_path / "d.jsonl", tmp_path / "index", progress=False)
    index = Index.open(tmp_path / "index")
    assert index.values("price").to_pylist() == ["10.00", "1.10", "2.5"]
    assert index.values("code").to_pylist() == ["12E5", "007", "7"]
