import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.queries import Query, check_positives, read_queries
from fanoise.errors import InputError

EXPECTED = [
    Query(id="q1", text="red mug", image=None, positives=("a", "b")),
    Query(id="q2", text="this, in green", image=Path("shots/1.jpg"), positives=("c",)),
]


def _relative(queries: list[Query], folder: Path) -> list[Query]:
    return [
        Query(
            id=query.id,
            text=query.text,
            image=query.image.relative_to(folder) if query.image else None,
            positives=query.positives,
        )
        for query in queries
    ]


def _jsonl(folder: Path) -> Path:
    path = folder / "q.jsonl"
    path.write_text(
        '{"id": "q1", "text": "red mug", "positives": ["a", "b", "a"]}\n\n'
        '{"id": "q2", "text": "this, in green", "image": "shots/1.jpg", "positives": ["c"]}\n'
    )
    return path


def _csv(folder: Path) -> Path:
    path = folder / "q.csv"
    path.write_text('id,text,image,positives\nq1,red mug,,a|b\nq2,"this, in green",shots/1.jpg,c\n')
    return path


def _parquet(folder: Path) -> Path:
    path = folder / "q.parquet"
    rows = {
        "id": ["q1", "q2"],
        "text": ["red mug", "this, in green"],
        "image": [None, "shots/1.jpg"],
        "positives": [["a", "b"], ["c"]],
    }
    pq.write_table(pa.table(rows), path)
    return path


@pytest.mark.parametrize("write", [_jsonl, _csv, _parquet])
def test_three_formats_hold_the_same_queries(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    assert _relative(read_queries(write(tmp_path)), tmp_path) == EXPECTED


def test_parquet_positives_may_be_joined_by_bars(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["q"], "text": ["x"], "positives": ["a|b"]}), tmp_path / "q.parquet")
    assert read_queries(tmp_path / "q.parquet")[0].positives == ("a", "b")


def test_a_bar_inside_a_json_id_is_kept(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "q", "text": "x", "positives": ["a|b"]}')
    assert read_queries(tmp_path / "q.jsonl")[0].positives == ("a|b",)


def test_whole_numbers_are_taken_as_ids(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": 7, "text": "x", "positives": [12]}')
    query = read_queries(tmp_path / "q.jsonl")[0]
    assert (query.id, query.positives) == ("7", ("12",))


GOOD = '{"id": "q1", "text": "red mug", "positives": ["a"]}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"no queries in it; write"),
        (GOOD + GOOD, r"row 2: id 'q1' was already used in row 1; give"),
        (GOOD + '{"id": "q2", "text": " ", "positives": ["a"]}', r"row 2 \(query 'q2'\): neither text nor image; give"),
        (GOOD + '{"id": "q2", "text": "x"}', r"row 2 \(query 'q2'\): no positives; list"),
        (GOOD + '{"id": "q2", "text": "x", "positives": []}', r"row 2 \(query 'q2'\): no positives; list"),
        (GOOD + '{"id": "q2", "text": "x", "positives": "a"}', r"must be a list of item ids, got 'a'; write \[\"a\"\]"),
        (GOOD + '{"id": "q2", "text": "x", "positives": [["a"]]}', r"positives must be a string, got \['a'\]"),
        (
            GOOD + '{"id": "q2", "text": "x", "positive": ["a"]}',
            r"row 2: unknown column positive; the columns are id, ",
        ),
        ('{"text": "x", "positives": ["a"]}', r"row 1: the query has no id"),
        ('{"id": true, "text": "x", "positives": ["a"]}', r"id must be a string, got True"),
        ('{"id": "q", "text": 1.5, "positives": ["a"]}', r"text must be a string, got 1.5"),
        ('{"id": "q\\ud800", "text": "x", "positives": ["a"]}', r"not valid Unicode"),
        ('{"id": "q1", ', r"line 1: not JSON"),
    ],
)
def test_a_bad_query_file_is_refused_with_its_row(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_queries(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("none.jsonl", "no such file"), ("q.txt", "unknown kind '.txt'")])
def test_a_missing_or_unknown_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "q.txt").write_text("x")
    with pytest.raises(InputError, match=message):
        read_queries(tmp_path / name)


def test_positives_outside_the_index_are_listed_up_to_five() -> None:
    queries = [Query(id=f"q{i}", text="x", positives=("known", f"gone{i}")) for i in range(7)]
    with pytest.raises(InputError, match=r"f\.jsonl: .* 7 in all: 'gone0' \(query 'q0'\), .*'gone4' .* and 2 more"):
        check_positives(queries, ["known"], "f.jsonl")
    check_positives(queries, ["known", *(f"gone{i}" for i in range(7))], "f.jsonl")


def test_a_row_number_counts_rows_not_lines(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(GOOD + "\n\n" + json.dumps({"id": "q2"}))
    with pytest.raises(InputError, match="row 2"):
        read_queries(tmp_path / "q.jsonl")
