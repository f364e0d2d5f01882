import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.result import Result
from index.search import Searcher

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch, searcher: Searcher, collapsed_searcher: Searcher) -> None:
    """The embedders are no run folders, so opening an index by path hands out the ones of the fixtures."""
    by_path = {str(one.index.folder): one for one in (searcher, collapsed_searcher)}
    monkeypatch.setattr(Searcher, "open", lambda path, **options: by_path[str(path)])


@pytest.fixture
def queries(write_queries: Write) -> Path:
    rows: list[dict[str, Any]] = [
        {"id": f"{colour} {kind}", "text": f"{colour} {kind}", "positives": [f"{colour}-{kind}"]}
        for colour in ("red", "green", "blue")
        for kind in ("mug", "shoe", "lamp")
    ]
    return write_queries(*rows)


def _retrieval(searcher: Searcher, queries: Path, out: Path, *options: str) -> int:
    return main(
        ["retrieval", "--index", str(searcher.index.folder), "--queries", str(queries), "--out", str(out), *options]
    )


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr of a call that ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_retrieval_writes_the_result_and_prints_a_table(
    searcher: Searcher, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _retrieval(searcher, queries, tmp_path / "r.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["P@1", "100.0"] and lines[-1].startswith("9 queries over 9 items")
    assert Result.load(tmp_path / "r.json").metrics["R@1"] == 1.0
    assert (tmp_path / "r.trec").read_text().startswith("red%20mug Q0 red-mug 1 ")


def test_retrieval_prints_json_and_warnings_apart(
    searcher: Searcher, write_queries: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_queries(
        {"id": "q", "text": "red mug", "positives": ["red-mug"]},
        {"id": "broken", "image": "gone.png", "positives": ["red-lamp"]},
    )
    assert _retrieval(searcher, path, tmp_path / "r.json", "--json", "--where", "kind=mug") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["metrics"]["P@1"] == 0.5
    assert json.loads(captured.out)["counts"] == {"queries": 2, "failed": 1, "unreachable": 1, "items": 3}
    assert "query 'broken' scores 0" in captured.err and "left no positive, scored 0: 1" in captured.err
    assert Result.load(tmp_path / "r.json").where == {"kind": "mug"}


def test_compare_answers_by_exit_status(
    searcher: Searcher,
    collapsed_searcher: Searcher,
    queries: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    _retrieval(searcher, queries, good)
    _retrieval(collapsed_searcher, queries, bad)
    capsys.readouterr()
    assert main(["compare", str(bad), str(good)]) == 0
    output = capsys.readouterr().out
    assert "B is better by 100.0 points of R@1" in output and "9/0/0" in output
    assert main(["compare", str(good), str(bad)]) == 1
    assert "B is worse by 100.0 points of R@1" in capsys.readouterr().out
    assert main(["compare", str(good), str(good), "--metric", "RR"]) == 1
    output = capsys.readouterr().out
    assert "warning: both results are of the same embedder" in output and "no difference can be told" in output
    assert main(["compare", str(bad), str(good), "--metric", "nDCG@10", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["metric"] == "nDCG@10" and "points of nDCG@10" in content["verdict"]
    assert content["is_better"] is True and content["differences"]["R@1"]["wins"] == 9


def test_bad_input_is_one_line_and_status_2(
    searcher: Searcher, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, out = str(searcher.index.folder), tmp_path / "r.json"
    common = ("retrieval", "--index", index, "--queries", str(queries), "--out", str(out))
    assert "as in category=shoes" in _fails(capsys, *common, "--where", "mug")
    assert "given twice" in _fails(capsys, *common, "--where", "kind>=mug", "--where", "kind>=shoe")
    assert "kind=tea" in _fails(capsys, *common, "--where", "kind=tea")
    assert "unknown field 'size'" in _fails(capsys, *common, "--where", "size=3")
    assert "k is 3" in _fails(capsys, *common, "--k", "3")
    assert "must end in .json" in _fails(capsys, *common[:-1], str(tmp_path / "r.txt"))
    assert "no such file" in _fails(capsys, *common[:4], str(tmp_path / "none.jsonl"), *common[5:])
    assert "required: --queries" in _fails(capsys, "retrieval", "--index", index, "--out", str(out))
    assert "invalid choice" in _fails(capsys, "retrieve")
    assert "no such result file" in _fails(capsys, "compare", str(out), str(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["queries.jsonl"]  # nothing half-written


def test_a_damaged_result_is_refused_by_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text('{"format": "fanoise-res')
    assert "damaged or truncated" in _fails(capsys, "compare", str(tmp_path / "r.json"), str(tmp_path / "r.json"))


@pytest.mark.parametrize("command", ["retrieval", "compare"])
def test_help_has_examples_and_exit_status(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    output = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"python -m eval {command}" in output.split("examples:")[1] and "exit status: 0" in output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom eval.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'faiss', 'ir_measures'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "retrieval" in done.stdout
