from collections.abc import Callable
from pathlib import Path

import pytest

from eval.metrics import METRICS
from eval.retrieval import evaluate
from fanoise.errors import InputError
from fanoise.storage import sha256_file
from index.search import Searcher

Write = Callable[..., Path]


def test_every_metric_of_a_toy_catalogue(searcher: Searcher, write_queries: Write, green_image: Path) -> None:
    path = write_queries(
        {"id": "found", "text": "red mug", "positives": ["red-mug"]},
        {"id": "photo", "text": "lamp", "image": green_image.name, "positives": ["green-lamp"]},
        {"id": "missed", "text": "red mug", "positives": ["blue-lamp"]},  # shares no word: tied last with 3 others
        {"id": "broken", "image": "gone.png", "positives": ["red-mug"]},
    )
    result = evaluate(searcher, path, progress=False, seed=4)
    assert result.per_query["R@1"] == {"found": 1.0, "photo": 1.0, "missed": 0.0, "broken": 0.0}
    assert result.per_query["RR"] == pytest.approx({"found": 1.0, "photo": 1.0, "missed": 1 / 9, "broken": 0.0})
    assert result.metrics["R@1"] == 0.5 and result.metrics["RR"] == pytest.approx((2 + 1 / 9) / 4)
    assert tuple(result.metrics) == METRICS
    assert result.counts == {"queries": 4, "failed": 1, "unreachable": 0, "items": 9}
    assert list(result.failed) == ["broken"] and result.seed == 4
    assert result.queries == {"name": "queries.jsonl", "sha256": sha256_file(path)}
    assert result.embedder["fingerprint"]["weights"] == "words" and result.versions["numpy"]


def test_a_collapsed_embedder_scores_nothing(collapsed_searcher: Searcher, write_queries: Write) -> None:
    ids = [f"{colour}-{kind}" for colour in ("red", "green", "blue") for kind in ("mug", "shoe", "lamp")]
    path = write_queries(*({"id": item_id, "text": "the", "positives": [item_id]} for item_id in ids))
    metrics = evaluate(collapsed_searcher, path, progress=False).metrics
    assert metrics["P@1"] == metrics["R@1"] == metrics["R@5"] == 0.0
    assert metrics["RR"] == pytest.approx(1 / 9)


def test_the_same_evaluation_gives_the_same_result(searcher: Searcher, write_queries: Write) -> None:
    path = write_queries({"id": "q", "text": "red", "positives": ["red-mug"]})
    first, second = evaluate(searcher, path, progress=False), evaluate(searcher, path, progress=False)
    assert (first.metrics, first.run, first.index, first.gallery) == (
        second.metrics,
        second.run,
        second.index,
        second.gallery,
    )


def test_a_filter_changes_the_gallery_and_counts_unreachable_queries(searcher: Searcher, write_queries: Write) -> None:
    path = write_queries(
        {"id": "in", "text": "red", "positives": ["red-mug", "red-lamp"]},
        {"id": "out", "text": "red lamp", "positives": ["red-lamp"]},
    )
    everything = evaluate(searcher, path, progress=False)
    mugs = evaluate(searcher, path, where={"kind": "mug"}, progress=False)
    assert mugs.counts == {"queries": 2, "failed": 0, "unreachable": 1, "items": 3}
    assert mugs.where == {"kind": "mug"} and mugs.gallery["sha256"] != everything.gallery["sha256"]
    assert mugs.per_query["R@5"] == {"in": 0.5, "out": 0.0}


def test_a_positive_outside_the_index_is_refused(searcher: Searcher, write_queries: Write) -> None:
    path = write_queries({"id": "q", "text": "red", "positives": ["pink-mug"]})
    with pytest.raises(InputError, match=r"1 in all: 'pink-mug' \(query 'q'\)"):
        evaluate(searcher, path, progress=False)


def test_too_few_results_for_the_metrics_is_refused(searcher: Searcher, write_queries: Write) -> None:
    path = write_queries({"id": "q", "text": "red", "positives": ["red-mug"]})
    with pytest.raises(InputError, match="k is 9, but R@10 and nDCG@10 need at least 10"):
        evaluate(searcher, path, k=9, progress=False)
