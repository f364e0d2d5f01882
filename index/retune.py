"""Tune an index anew: a generation with the same files and other search parameters."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from fanoise.errors import ArtifactError, InputError
from index.ann import tune_and_measure
from index.faiss_file import read_index
from index.generations import writing
from index.manifest import FAISS_INDEX, GENERATION_FILES, REBUILD, VECTORS, Manifest
from index.store import VectorStore
from index.tuning import RECALL, check_recall

QueriesOf = Callable[[Manifest, Path], tuple[np.ndarray, str] | None]
"""Of an index with this manifest and the files of this folder, as `index.ann.Queries`."""


def tune_index(folder: str | Path, *, recall: float | None = None, queries: QueriesOf | None = None) -> Manifest:
    """Find and keep the cheapest search parameters that reach `recall`.

    Args:
        recall: of the ten nearest; default what the index was tuned to before.
        queries: asked for once no other writer can change the index.
    Raises: InputError for an index that is exact, or a recall out of range; ArtifactError for a damaged one.
    """
    if recall is not None:
        check_recall(recall)
    with writing(Path(folder), "tune", create=False) as writer:
        assert writer.manifest is not None and writer.current is not None
        old = writer.manifest
        for problem in old.file_problems(writer.folder, names=(VECTORS, FAISS_INDEX)):
            raise ArtifactError(f"{problem}; restore it or rebuild the index with {REBUILD}")
        index = read_index(writer.current / FAISS_INDEX, rows=old.count, dim=old.dim, factory=old.factory)
        vectors = VectorStore.open(writer.current / VECTORS, in_passing=True)
        target = old.tuning.get("target", RECALL) if recall is None else recall
        queries_of_it = None if queries is None else partial(queries, old, writer.current)
        measured = tune_and_measure(index, vectors, recall=target, queries=queries_of_it)
        if not measured["search"]:
            raise InputError(f"{folder} has nothing to tune: factory {old.factory} looks at every vector")
        writer.keep(*GENERATION_FILES)
        return writer.commit(**measured)
