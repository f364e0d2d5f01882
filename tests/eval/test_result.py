import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ir_measures
import pytest

from eval.metrics import METRICS
from eval.result import Result, check_result_path
from eval.retrieval import evaluate
from fanoise.errors import ArtifactError, InputError
from index.search import Searcher


@pytest.fixture
def result(searcher: Searcher, write_queries: Callable[..., Path]) -> Result:
    path = write_queries(
        {"id": "first", "text": "red mug", "positives": ["red-mug", "red-lamp"]},
        {"id": "second one", "text": "lamp", "positives": ["blue-lamp"]},  # tied with two other lamps
        {"id": "50%", "text": "the", "positives": ["green-shoe"]},
    )
    return evaluate(searcher, path, progress=False, seed=1)


def test_a_result_survives_writing_and_loading(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "deep" / "r.json")
    loaded = Result.load(tmp_path / "deep" / "r.json")
    assert loaded == replace(result, run={})
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["r.json", "r.qrels", "r.trec"]


def test_the_trec_files_give_the_same_metrics_in_any_trec_eval(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "r.json")
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "r.qrels")))
    run = list(ir_measures.read_trec_run(str(tmp_path / "r.trec")))
    assert {qrel.query_id for qrel in qrels} == {"first", "second%20one", "50%25"}
    measures = [ir_measures.parse_measure(name) for name in METRICS]
    again = {str(m): value for m, value in ir_measures.calc_aggregate(measures, qrels, run).items()}
    assert again == pytest.approx(result.metrics, abs=1e-12)
    assert 0 < again["RR"] < 1


def test_the_means_are_those_of_the_queries(result: Result) -> None:
    for name in METRICS:
        assert result.metrics[name] == pytest.approx(sum(result.per_query[name].values()) / 3)
        assert list(result.per_query[name]) == ["first", "second one", "50%"]


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.99])
def test_a_truncated_file_is_refused(result: Result, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "r.json"
    result.write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ArtifactError, match="damaged or truncated"):
        Result.load(path)


def _edit(content: dict[str, Any], *keys: str, to: Any) -> None:
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = to


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["format"], "other", "not a result file"),
        (["format_version"], 99, "format version 99, this program reads 1"),
        (["metrics", "R@1"], 0.99, r"metrics R@1 is 0.99 but the mean of per_query is"),
        (["metrics", "R@1"], None, r"metrics R@1 is None"),
        (["per_query", "RR", "first"], 1.5, "RR of query 'first' is 1.5, not a number from 0 to 1"),
        (["per_query", "RR", "first"], "1", "RR of query 'first' is '1'"),
        (["per_query", "RR"], {"first": 1.0}, "per_query RR does not cover the queries"),
        (["qrels"], {}, "qrels is empty"),
        (["gallery"], [], "gallery must be an object"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    result: Result, tmp_path: Path, keys: list[str], value: Any, message: str
) -> None:
    path = tmp_path / "r.json"
    result.write(path)
    content = json.loads(path.read_text())
    _edit(content, *keys, to=value)
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=message):
        Result.load(path)


def test_a_missing_key_is_named(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    result.write(path)
    content = json.loads(path.read_text())
    del content["gallery"], content["k"]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="without gallery, k; run the evaluation again"):
        Result.load(path)


def test_other_files_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such result file"):
        Result.load(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ArtifactError, match="not a result file"):
        Result.load(tmp_path / "list.json")


def test_a_result_must_be_called_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.json; write .*r\.json"):
        check_result_path(tmp_path / "r.trec")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_result_path(tmp_path / "folder.json")


def test_a_failed_write_leaves_the_old_result(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    result.write(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(result, metrics=result.metrics | {"RR": float("nan")}).write(path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".partial*"))


def test_no_folder_of_this_machine_is_in_the_file(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "r.json")
    assert str(tmp_path.parent) not in (tmp_path / "r.json").read_text()
