"""Does index.faiss hold the vectors of vectors.npy, each under its row, and does it find them as well as it is said?

Checksums tell a damaged file from a whole one, but not a file over other vectors, or over the same in another order.
"""

from collections.abc import Iterator

import faiss
import numpy as np

from index.faiss_file import faiss_reason
from index.held_out import HeldOut
from index.manifest import FAISS_INDEX
from index.opened import Index

SAMPLED = 256
_WORSE = 1.25
"""How many times as far from its vector as a code made anew a code may be: a tie may have gone to another list."""
_ROUNDING = 1e-3
"""Of a vector's length, on top: what arithmetic differs by between processors."""
_SLACK = 0.02
_SIGMAS = 4


def agreement_faults(index: Index) -> Iterator[str]:
    """A line for each way in which index.faiss and vectors.npy disagree, as up to SAMPLED live rows show it.

    What is stored for a row is decoded and must be as near to the row's vector as a code that is made of it now: exact
    for flat types, up to the rounding or the codes of the others. That tells nothing of graphs and lists, through which
    a search comes to it; for these, and one type that FAISS cannot read back, the recall on sampled rows is measured
    again.
    """
    file = index.generation_folder / FAISS_INDEX
    live = np.flatnonzero(index.live)
    rows = np.sort(np.random.default_rng(0).choice(live, size=min(SAMPLED, len(live)), replace=False))
    vectors = np.ascontiguousarray(index.vectors.rows(rows))
    for part, transformed in _stores(index.ann, vectors):
        try:
            odd = rows[_misplaced(part, transformed, rows)]
        except RuntimeError as error:  # such as of a row that is in no list
            yield f"{file}: vectors cannot be read back from its {type(part).__name__} ({faiss_reason(error)})"
            return
        if len(odd):
            yield (
                f"{file}: {len(odd)} of {len(rows)} rows looked at are not those of vectors.npy, the first being row "
                f"{odd[0]} (id {index.ids[odd[0]]!r})"
            )
            return
    if isinstance(index.ann, faiss.IndexFlat):
        return
    stated = index.manifest.ann_overlap
    found = HeldOut.of_rows(index.vectors, seed=1).recalls(index.ann)
    # the rows may be others than those that were measured, as after an `add`
    spread = np.sqrt(2 / len(found)) * float(found.std())
    if found.mean() < stated - _SIGMAS * spread - _SLACK:
        yield (
            f"{file}: a search finds {found.mean():.3f} of the nearest rows of sampled ones, but the manifest says "
            f"{stated:.3f}"
        )


def _stores(index: faiss.Index, vectors: np.ndarray) -> Iterator[tuple[faiss.Index, np.ndarray]]:
    """Each part that holds something of every row, with the vectors as it is given them."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            vectors = index.chain.at(i).apply(vectors)
        yield from _stores(index.index, vectors)
    elif isinstance(index, faiss.IndexRefine):
        yield from _stores(index.base_index, vectors)
        yield from _stores(index.refine_index, vectors)
    elif isinstance(index, faiss.IndexHNSW):
        yield from _stores(index.storage, vectors)
    # FAISS 1.15 reads back others than the rows asked for from this type's lists, beyond their first 32
    elif not isinstance(index, faiss.IndexIVFRaBitQFastScan):
        yield index, vectors


def _misplaced(index: faiss.Index, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Positions of the rows for which something else than their vector is stored. Raises FAISS's RuntimeError."""
    if isinstance(index, faiss.IndexIVF):
        index.make_direct_map()
    if isinstance(index, faiss.IndexIVFPQFastScan):
        index.fine_quantizer = index.pq  # FAISS 1.15 forgets it when it reads a file, and then decodes with nothing
    stored = np.stack([index.reconstruct(int(row)) for row in rows])
    anew = index.sa_decode(index.sa_encode(vectors))
    lengths = np.linalg.norm(vectors, axis=1)
    allowed = _WORSE * np.linalg.norm(anew - vectors, axis=1) + _ROUNDING * lengths
    return np.flatnonzero(~(np.linalg.norm(stored - vectors, axis=1) <= allowed))  # NaN compares false
