"""The FAISS index over the vectors: chosen, trained, filled, and measured against exact search."""

from dataclasses import dataclass

import faiss
import numpy as np

from fanoise.errors import InputError

OVERLAP_QUERIES = 256
OVERLAP_K = 10


@dataclass(frozen=True)
class Choice:
    """A factory string as FAISS takes it, and why it was taken."""

    factory: str
    reason: str


def choose_factory(factory: str, dim: int) -> Choice:
    """Settle `auto` and check that FAISS knows the string, before hours of encoding. Raises InputError."""
    choice = Choice(factory, "as asked for")
    if factory == "auto":
        choice = Choice("Flat", "auto: exact, and fast enough up to about a million vectors")
    _empty_index(choice.factory, dim)
    return choice


def train_index(factory: str, vectors: np.ndarray) -> faiss.Index:
    """An index of inner products over `vectors` (float32 [N, D]), labelled by row. Raises InputError."""
    index = _empty_index(factory, vectors.shape[1])
    try:
        index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        raise InputError(
            f"factory {factory!r} does not suit {len(vectors)} vectors of dim {vectors.shape[1]}: {_reason(error)}; "
            "use --factory auto or one with fewer clusters"
        ) from error
    return index


def measure_overlap(index: faiss.Index, vectors: np.ndarray, *, seed: int = 0) -> float:
    """Share of the ten nearest other rows that `index` finds, over up to 256 sampled rows as queries.

    A found row counts if its true similarity reaches the tenth best one, so equal rows cannot lower the figure.
    """
    k = min(OVERLAP_K, len(vectors) - 1)
    if isinstance(index, faiss.IndexFlat) or k == 0:
        return 1.0
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(len(vectors), size=min(OVERLAP_QUERIES, len(vectors)), replace=False))
    queries = np.ascontiguousarray(vectors[sample])
    exact_scores, exact_rows = faiss.knn(queries, vectors, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    _, found_rows = index.search(queries, k + 1)
    shares = []
    for query, own, scores, best, found in zip(queries, sample, exact_scores, exact_rows, found_rows, strict=True):
        others = scores[best != own][:k]
        candidates = [row for row in found if row not in (own, -1)][:k]
        good = vectors[candidates] @ query >= others[-1] - 1e-6
        shares.append(good.sum() / k)
    return float(np.mean(shares))


def _empty_index(factory: str, dim: int) -> faiss.Index:
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"factory {factory!r} is not one that FAISS can build for inner products and dim {dim}: {_reason(error)}; "
            "use auto, Flat, or for example HNSW32 or IVF256,Flat"
        ) from error


def _reason(error: RuntimeError) -> str:
    """FAISS's message without its C++ signature and file."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0].split(".cpp:", 1)[-1].split(": ", 1)[-1].removeprefix("Error: ").strip()
