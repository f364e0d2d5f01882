"""The FAISS index over the vectors: chosen, trained, filled, and measured against exact search."""

from dataclasses import dataclass

import faiss
import numpy as np

from fanoise.errors import InputError
from index.exact import search_exact
from index.faiss_file import check_types, faiss_reason, reserve
from index.store import VectorStore

OVERLAP_QUERIES = 256
OVERLAP_K = 10
_TRAINING_ROWS = 262_144
_TRAINING_ROWS_A_CLUSTER = 64


@dataclass(frozen=True)
class Choice:
    """A factory string as FAISS takes it, and why it was taken."""

    factory: str
    reason: str


def choose_factory(factory: str, dim: int) -> Choice:
    """Settle `auto` and check that FAISS and we know the string, before hours of encoding. Raises InputError."""
    choice = Choice(factory, "as asked for")
    if factory == "auto":
        choice = Choice("Flat", "auto: exact, and fast enough up to about a million vectors")
    check_types(_empty_index(choice.factory, dim), choice.factory)
    return choice


def train_index(factory: str, vectors: VectorStore, *, seed: int = 0) -> faiss.Index:
    """An index of inner products over the rows, labelled by row; trained on a sample. Raises InputError."""
    index = _empty_index(factory, vectors.dim)
    try:
        if not index.is_trained:
            index.train(vectors.rows(_training_rows(index, len(vectors), seed)))
        add_rows(index, vectors)
    except RuntimeError as error:
        raise InputError(
            f"factory {factory!r} does not suit {len(vectors)} vectors of dim {vectors.dim}: {faiss_reason(error)}; "
            "use --factory auto or one with fewer clusters"
        ) from error
    return index


def add_rows(index: faiss.Index, vectors: VectorStore) -> None:
    """Add all rows of a file after those that the index has. Raises FAISS's RuntimeError."""
    reserve(index, len(vectors))
    for _, block in vectors.blocks():
        index.add(np.ascontiguousarray(block))


def _training_rows(index: faiss.Index, count: int, seed: int) -> np.ndarray | slice:
    ivf = faiss.try_extract_index_ivf(index)
    wanted = max(_TRAINING_ROWS, 0 if ivf is None else _TRAINING_ROWS_A_CLUSTER * ivf.nlist)
    if count <= wanted:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(count, size=wanted, replace=False))


def measure_overlap(index: faiss.Index, vectors: VectorStore, *, seed: int = 0) -> float:
    """Share of the ten nearest other rows that `index` finds, over up to 256 sampled rows as queries.

    A found row counts if its true similarity reaches the tenth best one, so equal rows cannot lower the figure.
    """
    k = min(OVERLAP_K, len(vectors) - 1)
    if isinstance(index, faiss.IndexFlat) or k == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(len(vectors), size=min(OVERLAP_QUERIES, len(vectors)), replace=False))
    queries = np.ascontiguousarray(vectors.rows(sample))
    exact_scores, exact_rows = search_exact(vectors, queries, k + 1)
    _, found_rows = index.search(queries, k + 1)
    shares = []
    for query, own, scores, best, found in zip(queries, sample, exact_scores, exact_rows, found_rows, strict=True):
        others = scores[best != own][:k]
        candidates = [row for row in found if row not in (own, -1)][:k]
        good = vectors.rows(np.array(candidates, np.int64)) @ query >= others[-1] - 1e-6
        shares.append(good.sum() / k)
    return float(np.mean(shares))


def _empty_index(factory: str, dim: int) -> faiss.Index:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"factory {factory!r} is not one that FAISS can build for inner products and dim {dim}: "
            f"{faiss_reason(error)}; use auto, Flat, or for example HNSW32 or IVF256,Flat"
        ) from error
