"""Of which type fields are once rows of another catalogue were added."""

import json
from datetime import time
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import index.join
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
    opened = Index.open(tmp_path / "index")
    assert opened.values("price").to_pylist() == [0, 1, 2, 3, 4, 5, 5.5, None]
    assert opened.values("sold").to_pylist() == [True, False] * 3 + [True, None]
    assert opened.values("tags").to_pylist() == [[], ["a"], ["a", "b"], [], ["a"], ["a", "b"], ["a"], None]
    (tmp_path / "e.csv").write_text("id,text,price\n11,t11,on request\n")
    change = add_items(embedder, tmp_path / "e.csv", tmp_path / "index", progress=False)
    assert change.notes == ["the field 'price' is text now, for the new rows have other values there than double"]


def test_texts_of_the_index_stay_as_they_are_written(embedder, tmp_path):
    (tmp_path / "c.csv").write_text("id,text,price,code\n1,t1,10.00,12E5\n2,t2,1.10,007\n")
    build_index(embedder, tmp_path / "c.csv", tmp_path / "index", progress=False)
    (tmp_path / "d.jsonl").write_text(json.dumps({"id": "3", "text": "t3", "price": 2.5, "code": 7}))
    add_items(embedder, tmp_path / "d.jsonl", tmp_path / "index", progress=False)
    opened = Index.open(tmp_path / "index")
    assert opened.values("price").to_pylist() == ["10.00", "1.10", "2.5"]
    assert opened.values("code").to_pylist() == ["12E5", "007", "7"]


def test_texts_are_read_as_what_all_of_them_need_though_they_are_read_in_pieces(embedder, tmp_path, monkeypatch):
    """A text of 16 digits is a whole number, but no fraction, and what comes later may be one."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "text": "a", "n": 1, "m": 1}))
    build_index(embedder, tmp_path / "a.jsonl", tmp_path / "index", progress=False)
    (tmp_path / "b.csv").write_text("id,text,n,m\nb,b,1234567890123456,2\nc,c,1.5,2.5\n")
    read_pieces = index.join.read_pieces
    monkeypatch.setattr(
        index.join, "read_pieces", lambda *names: (row for piece in read_pieces(*names) for row in rows_of(piece))
    )
    add_items(embedder, tmp_path / "b.csv", tmp_path / "index", progress=False)
    opened = Index.open(tmp_path / "index")
    assert opened.values("n").to_pylist() == ["1", "1234567890123456", "1.5"]
    assert opened.values("m").to_pylist() == [1, 2, 2.5]


def rows_of(table):
    return (table.slice(row, 1) for row in range(len(table)))


def test_decimals_lists_of_numbers_and_times_of_day_stay_so(embedder, tmp_path):
    price = pa.decimal128(8, 2)

    def table(name, **columns):
        count = len(next(iter(columns.values())))
        ids = [f"{name}{i}" for i in range(count)]
        pq.write_table(pa.table({"id": ids, "text": ids, **columns}), tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    columns = {"price": pa.array([Decimal("19.99"), None], price), "sizes": [[38, 40], []], "at": [time(3, 4), None]}
    first = table("a", **columns, costs=[[Decimal("0.35")], None], code=[Decimal("12345678901234567"), None])
    build_index(embedder, first, tmp_path / "index", progress=False)
    (tmp_path / "b.csv").write_text(
        'id,text,price,sizes,at,costs\nb0,b0,5.255,"[41, 42]",05:06,0.41\nb1,b1,-7,43,,"[0.47, 1]"\n'
    )
    assert add_items(embedder, tmp_path / "b.csv", tmp_path / "index", progress=False).notes == []
    wholes = table("c", price=[5, 2**63 - 1], costs=[[1], [2]])
    assert add_items(embedder, wholes, tmp_path / "index", progress=False).notes == []
    opened = Index.open(tmp_path / "index")
    prices = ["19.990", None, "5.255", "-7.000", "5.000", f"{2**63 - 1}.000"]
    assert opened.values("price").to_pylist() == [None if one is None else Decimal(one) for one in prices]
    assert opened.values("sizes").to_pylist() == [[38, 40], [], [41, 42], [43], None, None]
    assert opened.values("at").to_pylist() == [time(3, 4), None, time(5, 6), None, None, None]
    assert opened.values("costs").to_pylist()[2:] == [[Decimal("0.41")], [Decimal("0.47"), 1], [1], [2]]
    assert [opened.live_ids[row] for row in np.flatnonzero(opened.matching({"price": {"max": "5.255"}}))] == [
        "b0",
        "b1",
        "c0",
    ]
    hits = opened.find(np.eye(16)[:1], 9, {"price": 19.99})[0]
    assert [json.loads(json.dumps(hit.to_json()))["price"] for hit in hits] == ["19.990"]


def test_decimals_among_fractions_are_the_fractions_that_are_written_so(embedder, tmp_path):
    for name, values, kind in (
        ("a", [Decimal("19.99"), Decimal("0.35")], pa.decimal128(8, 2)),
        ("b", [5.25, None], pa.float64()),
        ("c", [Decimal("1234567890123456.7"), None], pa.decimal128(30, 1)),
    ):
        ids = [f"{name}0", f"{name}1"]
        pq.write_table(
            pa.table({"id": ids, "text": ids, "price": pa.array(values, kind)}), tmp_path / f"{name}.parquet"
        )
    build_index(embedder, tmp_path / "a.parquet", tmp_path / "index", progress=False)
    assert add_items(embedder, tmp_path / "b.parquet", tmp_path / "index", progress=False).notes == []
    assert Index.open(tmp_path / "index").values("price").to_pylist() == [19.99, 0.35, 5.25, None]
    change = add_items(embedder, tmp_path / "c.parquet", tmp_path / "index", progress=False)
    assert [note[:28] for note in change.notes] == ["the field 'price' is text no"]
    assert Index.open(tmp_path / "index").values("price").to_pylist()[-2] == "1234567890123456.7"
