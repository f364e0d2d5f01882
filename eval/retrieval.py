"""Evaluate one index with one query file: rank, score, and describe what was measured."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fanoise
from eval.metrics import DEEPEST_CUTOFF, means, score_run
from eval.queries import check_positives, read_queries
from eval.ranking import rank, reachable_ids
from eval.result import Result
from fanoise.errors import InputError
from fanoise.storage import sha256_file

if TYPE_CHECKING:
    from index.search import Index, Searcher

_PACKAGES = ("torch", "transformers", "numpy", "ir_measures", "pytrec_eval-terrier")


def evaluate(
    searcher: "Searcher",
    queries: Path | str,
    *,
    where: Mapping[str, Any] | None = None,
    k: int = 100,
    batch_size: int = 32,
    seed: int | None = None,
    progress: bool = True,
) -> Result:
    """Every metric of `eval.metrics.METRICS` for every query of a file.

    With a filter, a query whose positives all lie outside it stays in the mean with 0 and is counted as "unreachable".
    Args:
        queries: a query file, see `eval.queries`.
        where: rank only items that meet these conditions, see `index.where`.
        k: how many items to retrieve for each query; RR is 0 beyond it.
        seed: seed the embedder was trained with; only recorded.
    Raises: InputError for a query file that cannot be used; ArtifactError for embeddings or scores that are not finite.
    """
    if k < DEEPEST_CUTOFF:
        raise InputError(f"k is {k}, but R@10 and nDCG@10 need at least {DEEPEST_CUTOFF} retrieved items; raise k")
    path = Path(queries)
    asked = read_queries(path)
    check_positives(asked, searcher.index.live_ids, path)
    gallery = set(reachable_ids(searcher.index, where))
    ranking = rank(searcher, asked, k=k, where=where, batch_size=batch_size, progress=progress)
    qrels = {query.id: list(query.positives) for query in asked}
    per_query = score_run(ranking.run, qrels)
    return Result(
        metrics=means(per_query),
        counts={
            "queries": len(asked),
            "failed": len(ranking.failed),
            "unreachable": sum(gallery.isdisjoint(query.positives) for query in asked),
            "items": len(gallery),
        },
        k=k,
        where=dict(where or {}),
        embedder={
            "name": searcher.embedder.name,
            "fingerprint": dict(searcher.embedder.fingerprint),
            "noise": dict(searcher.embedder.noise),
        },
        index=_describe_index(searcher.index),
        gallery={"count": len(gallery), "sha256": _digest(sorted(gallery))},
        queries={"name": path.name, "sha256": sha256_file(path)},
        seed=seed,
        versions=_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        failed=ranking.failed,
        qrels=qrels,
        per_query=per_query,
        run=ranking.run,
    )


def _describe_index(index: "Index") -> dict[str, Any]:
    """Name without its folder, so that a result may be published; the digest covers the content of every file."""
    files = {name: record.sha256 for name, record in index.manifest.files.items()}
    return {
        "name": index.folder.name,
        "fingerprint": _digest(sorted(files.items())),
        "factory": index.manifest.factory,
    }


def _digest(parts: Iterable[object]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"fanoise": fanoise.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
