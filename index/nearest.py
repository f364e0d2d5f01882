"""The nearest rows by the FAISS index or by comparing all, whichever is right and fast: k rows when k exist.

A filter that lets a share s of the rows through makes an approximate index poor without a word: of what it looks at,
only that share counts. With 200,000 clustered vectors of dim 256, HNSW32 at efSearch 64 finds 98 % of the ten nearest,
still 98 % at s = 0.5, but 89 % at 0.1 and 14 % at 0.01. So, where f is the share of the rows that a search without a
filter looks at:

    s² ≤ f     all matching rows are compared: that costs no more than FAISS looking at f/s of the rows
    else       FAISS looks at 0.5/s times as many rows as without the filter, if that is more
"""

import faiss
import numpy as np

from index.devices import serve
from index.exact import by_row, search_exact
from index.selection import Selection
from index.store import VectorStore

_HNSW_STEP = 64
"""Rows that are compared one after the other in the time in which HNSW handles one of its efSearch candidates."""
_LOSSY_SPEED = 16
"""How many times as fast codes are compared as vectors."""
_SLACK = 0.5
"""The share of matching rows down to which recall was seen not to suffer."""
_MOST_EXTRA = 2048


class Nearest:
    """A FAISS index whose labels are the rows of `vectors`. Threads may search one at once."""

    def __init__(self, ann: faiss.Index, vectors: VectorStore) -> None:
        self.ann = ann
        """In the memory of the CPU, whatever searches."""
        self._served = serve(ann)
        # the rows that FAISS has in memory, where it has them as they are: no need for them to be there twice
        self._rows = _rows_within(ann) or vectors

    def search(self, queries: np.ndarray, k: int, selection: Selection | None) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best of the selected rows, of which there are at least `k`.

        Args:
            queries: float32 [Q, D], contiguous.
        Returns: cosine similarities float32 [Q, k] and rows int64 [Q, k], best first, equal ones by row.
        """
        # a GPU leaves rows out by searching for as many more, which costs recall where they are many
        mask = None if selection is None or selection.share < _SLACK else selection.mask
        if selection is not None and self.compares_all(selection) and not self._served.takes(k, mask):
            return search_exact(self._rows, queries, k, selection.rows)
        if selection is None:
            scores, rows = self._served.search(queries, k)
        elif can_filter(self.ann):
            effort = max(1.0, _SLACK / selection.share)
            params = search_parameters(self.ann, selection.bits, effort=effort)
            scores, rows = self._served.search(queries, k, params, mask)
        else:
            scores, rows = self._search_more(queries, k, selection)
        if self._served.is_half or not keeps_vectors(self.ann):
            scores, rows = self._rescored(queries, rows)
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            chosen = None if selection is None else selection.rows
            scores[short], rows[short] = search_exact(self._rows, queries[short], k, chosen)
        return by_row(scores, rows)

    @property
    def device(self) -> str:
        """What searches: the CPU or GPUs."""
        return self._served.device

    @property
    def note(self) -> str | None:
        """That, and why, the CPU did this thread's last search in place of a GPU."""
        return self._served.note

    def compares_all(self, selection: Selection) -> bool:
        """Whether a search within these rows goes through all of them."""
        return selection.share**2 <= share_looked_at(self.ann)

    def falls_back(self, selection: Selection) -> bool:
        """Whether all selected rows are compared because FAISS can filter no index of this type."""
        return self.compares_all(selection) and not can_filter(self.ann)

    def _search_more(self, queries: np.ndarray, k: int, selection: Selection) -> tuple[np.ndarray, np.ndarray]:
        """Search for more and leave out what is not selected, for types that FAISS cannot filter; -1 for too few."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        depth = min(len(selection.mask), int(1.5 * k / selection.share) + 16, k + _MOST_EXTRA)
        for i, (line_scores, line) in enumerate(zip(*self.ann.search(queries, depth), strict=True)):
            good = np.flatnonzero((line >= 0) & selection.mask[line])[:k]
            scores[i, : len(good)], rows[i, : len(good)] = line_scores[good], line[good]
        return scores, rows

    def _rescored(self, queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same rows with their cosines, ordered by them, in place of what FAISS makes of smaller vectors."""
        scores = np.full(rows.shape, -np.inf, np.float32)
        for i, (query, line) in enumerate(zip(queries, rows, strict=True)):
            found = line >= 0
            scores[i, found] = self._rows.rows(line[found]) @ query
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def can_filter(index: faiss.Index) -> bool:
    """Whether FAISS can keep a search of this type to chosen rows: PQ and fast-scan cannot without IVF."""
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
        return can_filter(_inner(index))
    return not isinstance(index, (faiss.IndexPQ, faiss.IndexFastScan))


def keeps_vectors(index: faiss.Index) -> bool:
    """Whether the scores of this type are those of the vectors themselves, not of something smaller."""
    return isinstance(index, (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat, faiss.IndexRefineFlat))


def share_looked_at(index: faiss.Index) -> float:
    """Which share of the vectors could be compared in the time of a search without a filter."""
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
        return share_looked_at(_inner(index))
    share = 1.0
    if isinstance(index, faiss.IndexIVF):
        share = index.nprobe / index.nlist
    if isinstance(index, faiss.IndexHNSW):
        share = _HNSW_STEP * index.hnsw.efSearch / max(1, index.ntotal)
    return min(1.0, share) if keeps_vectors(index) else min(1.0, share) / _LOSSY_SPEED


def search_parameters(index: faiss.Index, bits: np.ndarray, *, effort: float = 1.0) -> faiss.SearchParameters:
    """FAISS search parameters that keep `index` to the rows of `bits`.

    Args:
        bits: packed, as `Selection.bits`.
        effort: times as many candidates (lists of IVF, efSearch of HNSW) as the index looks at by itself.
    """
    return _parameters(index, faiss.IDSelectorBitmap(bits), effort)


def _parameters(index: faiss.Index, selector: faiss.IDSelector, effort: float) -> faiss.SearchParameters:
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(_inner(index), selector, effort))
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(_inner(index), selector, effort)
        return faiss.IndexRefineSearchParameters(base_index_params=inner, k_factor=index.k_factor)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=min(index.nlist, round(index.nprobe * effort)))
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=round(index.hnsw.efSearch * effort))
    return faiss.SearchParameters(sel=selector)


def _inner(index: faiss.Index) -> faiss.Index:
    return faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index)


def _rows_within(index: faiss.Index) -> VectorStore | None:
    """The rows that a flat or HNSW index holds as they are; a view that lives no longer than the index."""
    if isinstance(index, faiss.IndexHNSWFlat):
        index = faiss.downcast_index(index.storage)
    if not isinstance(index, faiss.IndexFlat):
        return None
    rows = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return VectorStore(rows.reshape(index.ntotal, index.d))
