"""From vectors to index.faiss: the type chosen, trained, filled, tuned to a recall and measured.

A flat index has its vectors twice on the disk, in index.faiss and in vectors.npy. In memory they are there once: of
vectors.npy, which is mapped, only what is asked for is read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from index.factory import choose_factory, train_index
from index.faiss_file import write_index
from index.held_out import OVERLAP_SEED, QUERIES, HeldOut, measure_overlap
from index.manifest import FAISS_INDEX, VECTORS
from index.store import VectorStore
from index.tuning import RECALL, tune

Queries = Callable[[], tuple[np.ndarray, str] | None]
"""Gives the vectors [Q, D] of held-out queries and their source, when they are needed; None if there are none."""


def write_ann(
    stage: Path,
    factory: str,
    *,
    recall: float = RECALL,
    queries: Queries | None = None,
    rows_recall: float | None = None,
) -> dict[str, Any]:
    """Make index.faiss of the vectors.npy in `stage`; returns what the manifest says of it.

    Args:
        factory: `auto` or a FAISS factory string.
        recall: the share of the ten nearest that a search is to find.
        queries: to tune with; without any, sampled rows are.
        rows_recall: what is to be reached for sampled rows, measured as `ann_overlap` is; default `recall`.
    Raises: InputError for a factory that does not suit the vectors, or the memory.
    """
    vectors = VectorStore.open(stage / VECTORS, in_passing=True)
    choice = choose_factory(factory, len(vectors), vectors.dim, precision=vectors.precision, recall=recall)
    index = train_index(choice.factory, vectors)
    measured = tune_and_measure(index, vectors, recall=recall, queries=queries, rows_recall=rows_recall)
    write_index(index, stage / FAISS_INDEX)
    return {"factory": choice.factory, "factory_reason": choice.reason} | measured


def tune_and_measure(
    index: faiss.Index,
    vectors: VectorStore,
    *,
    recall: float = RECALL,
    queries: Queries | None = None,
    rows_recall: float | None = None,
) -> dict[str, Any]:
    """Set the cheapest search parameters that surely reach `recall`; returns what the manifest says of them.

    Recall on sampled rows (`ann_overlap`) is measured with the same parameters, so that both can be seen.
    """
    if isinstance(index, faiss.IndexFlat):
        return {"ann_overlap": 1.0, "search": {}, "curve": [], "tuning": {}}
    given = None if queries is None else queries()
    if given is not None:
        held_out = HeldOut.of_vectors(vectors, *given)
        tuned = tune(index, held_out, target=recall)
    elif rows_recall is None:
        held_out = HeldOut.of_rows(vectors, most=2 * QUERIES)
        tuned = tune(index, held_out, target=recall)
    else:
        held_out = HeldOut.of_rows(vectors, seed=OVERLAP_SEED)
        tuned = tune(index, held_out, target=rows_recall, margin=False)
    overlap = measure_overlap(index, vectors)
    return {
        "ann_overlap": overlap,
        "search": tuned.parameters,
        "curve": [point.to_json() for point in tuned.curve],
        "tuning": {
            "target": recall,
            "recall": round(tuned.recall, 4),
            "queries": tuned.measured_by or tuned.chosen_by,
            "source": held_out.source,
            "others": tuned.chosen_by if tuned.measured_by else 0,
            "reached": tuned.lower >= recall,
            "overlap": overlap,
        },
    }
