"""Result files: what an evaluation measured, of what, in a form that another evaluation can be compared with.

`X.json` is complete in itself: means and per-query values of every metric, the positives, and the fingerprints of
embedder, index, gallery and query file. `X.trec` (the run) and `X.qrels` beside it are for other programs; trec_eval on
the two gives the values of `X.json`. TREC files are split at white space, so white space and "%" in an id are written
as in a URL ("my mug" -> "my%20mug").
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from eval.metrics import METRICS, break_ties, means
from fanoise.errors import ArtifactError, InputError
from fanoise.storage import write_atomic

FORMAT = "fanoise-result"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation. The fields are the keys of the JSON file, in this order."""

    metrics: dict[str, float]
    """Metric -> mean over all queries."""
    counts: dict[str, int]
    """queries, failed (image unreadable, scored 0), unreachable (all positives outside the filter, scored 0), items."""
    k: int
    """How many items were retrieved for each query."""
    where: dict[str, Any]
    """The filter, empty if there was none."""
    embedder: dict[str, Any]
    """name, fingerprint (equal fingerprints are the same embedder), noise it was trained with."""
    index: dict[str, Any]
    """name, fingerprint, factory."""
    gallery: dict[str, Any]
    """count and sha256 of the sorted ids of the items that could be found."""
    queries: dict[str, str]
    """name and sha256 of the query file."""
    seed: int | None = None
    """Seed the embedder was trained with, if the caller knew it."""
    versions: dict[str, str]
    """Package -> version."""
    created: str
    """Time in UTC, ISO 8601."""
    failed: dict[str, str] = field(default_factory=dict)
    """Query id -> why it could not be encoded."""
    qrels: dict[str, list[str]]
    """Query id -> ids of its positives."""
    per_query: dict[str, dict[str, float]]
    """Metric -> query id -> value."""
    run: dict[str, list[tuple[str, float]]] = field(default_factory=dict, repr=False, compare=False)
    """Query id -> (item id, score); goes to the TREC file, not to the JSON, and is empty in a loaded result."""

    def to_json(self) -> dict[str, Any]:
        """The content of the JSON file."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION} | {
            name: value for name, value in asdict(self).items() if name != "run"
        }

    def write(self, path: Path | str) -> None:
        """Write `X.json` with `X.trec` and `X.qrels` beside it, each whole or not at all, the JSON last.

        Raises: InputError if `path` does not end in `.json`.
        """
        path = check_result_path(path)
        tag = _trec_id(self.embedder.get("name") or "run")
        run_lines = [
            f"{_trec_id(query_id)} Q0 {_trec_id(item_id)} {position} {score:.9g} {tag}\n"
            for query_id, hits in break_ties(self.run, self.qrels).items()
            for position, (item_id, score) in enumerate(hits, start=1)
        ]
        qrels_lines = [
            f"{_trec_id(query_id)} 0 {_trec_id(item_id)} 1\n"
            for query_id, positives in self.qrels.items()
            for item_id in positives
        ]
        write_atomic(path.with_suffix(".trec"), "".join(run_lines))
        write_atomic(path.with_suffix(".qrels"), "".join(qrels_lines))
        write_atomic(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read and check a result file; `run` stays empty.

        Raises: InputError if there is no such file; ArtifactError if it is damaged, no result file, of another
            version, or its means are not the means of its per-query values.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such result file; write one with `python -m eval retrieval --out {path}`")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtifactError(f"{path}: damaged or truncated ({error}); run the evaluation again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ArtifactError(f"{path}: not a result file; give one written by `python -m eval retrieval`")
        if content.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"{path}: format version {content.get('format_version')}, this program reads {FORMAT_VERSION}; "
                "run the evaluation again"
            )
        stored = {spec.name for spec in fields(cls)} - {"run"}
        missing = stored - content.keys()
        if missing:
            raise ArtifactError(f"{path}: without {', '.join(sorted(missing))}; run the evaluation again")
        for name in ("where", "embedder", "index", "gallery", "queries", "failed", "metrics", "per_query", "qrels"):
            if not isinstance(content[name], dict):
                raise ArtifactError(f"{path}: {name} must be an object; run the evaluation again")
        _check_scores(path, content)
        return cls(**{name: content[name] for name in stored})


def check_result_path(path: Path | str) -> Path:
    """The path, if a result may be written under this name.

    Raises: InputError otherwise. Call it before a long evaluation.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise InputError(f"{path}: a result file must end in .json; write {path.with_suffix('.json')}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file")
    return path


def _check_scores(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a file whose parts contradict each other, as after an edit by hand."""
    metrics, per_query, qrels = content["metrics"], content["per_query"], content["qrels"]
    if not qrels:
        raise ArtifactError(f"{path}: qrels is empty; run the evaluation again")
    for name in METRICS:
        values = per_query.get(name)
        if not isinstance(values, dict) or values.keys() != qrels.keys():
            raise ArtifactError(
                f"{path}: per_query {name} does not cover the queries of qrels; run the evaluation again"
            )
        for query_id, value in values.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ArtifactError(
                    f"{path}: {name} of query {query_id!r} is {value!r}, not a number from 0 to 1; "
                    "run the evaluation again"
                )
    for name, mean in means({name: per_query[name] for name in METRICS}).items():
        stored = metrics.get(name)
        if not isinstance(stored, int | float) or not math.isclose(stored, mean, abs_tol=1e-9):
            raise ArtifactError(
                f"{path}: metrics {name} is {stored!r} but the mean of per_query is {mean}; run the evaluation again"
            )


def _trec_id(name: str) -> str:
    return re.sub(r"[\s%]", lambda match: quote(match[0]), name)
