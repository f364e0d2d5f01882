"""Open an index folder, after checking every file, and search it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import faiss
import numpy as np
from PIL import Image

from fanoise.errors import ArtifactError, InputError
from index.encode import encode_query, load_embedder
from index.filters import FieldFilter, search_parameters
from index.items import Items, json_value
from index.manifest import FAISS_INDEX, ITEMS, REBUILD, VECTORS, Manifest
from index.thumbnails import thumbnail_path

if TYPE_CHECKING:
    from fanoise.embedder import Embedder


@dataclass(frozen=True)
class Hit:
    id: str
    score: float
    """Cosine similarity of query and item."""
    position: int
    """Place in the result list, from 1."""
    fields: dict[str, Any]
    image: Path | None
    """The thumbnail, None for an item without an image."""

    def to_json(self) -> dict[str, Any]:
        """id, score, position and the fields beside them; a field with one of those names becomes `field.<name>`."""
        own = {"id": self.id, "score": self.score, "position": self.position}
        fields = {f"field.{name}" if name in own else name: json_value(value) for name, value in self.fields.items()}
        return own | fields


@dataclass(frozen=True)
class Answer:
    hits: list[Hit]
    latency_ms: dict[str, float]
    """Milliseconds to `encode` the query (its image opened, turns waited for) and to `search` the index."""

    def to_json(self) -> dict[str, Any]:
        return {"hits": [hit.to_json() for hit in self.hits], "latency_ms": self.latency_ms}


class Index:
    """Vectors and items of one catalogue. Reading only, so several threads may search at once."""

    def __init__(self, path: Path, manifest: Manifest, items: Items, ann: faiss.Index, vectors: np.ndarray) -> None:
        self.path = path
        self.manifest = manifest
        self.vectors = vectors
        """float32 [N, D], memory-mapped: what was indexed, whatever the FAISS index made of it."""
        self._items = items
        self._ann = ann
        self._filter = FieldFilter(items)

    @classmethod
    def open(cls, path: Path | str, *, embedder: "Embedder | None" = None, verify: bool = True) -> Self:
        """Open after checking the manifest, each file's size and SHA-256, and that all agree on N and D.

        Args:
            embedder: also refuse an index that this embedder did not make.
            verify: False checks sizes but not checksums, for an index of many gigabytes on a trusted disk.
        Raises: InputError if there is no index; ArtifactError naming the file, or the part of the fingerprint.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        if embedder is not None:
            manifest.check_embedder(path, embedder)
        for problem in manifest.file_problems(path, checksums=verify):
            raise ArtifactError(f"{problem}; restore it or rebuild the index with {REBUILD}")
        vectors = _read(path / VECTORS, lambda file: np.load(file, mmap_mode="r", allow_pickle=False))
        if vectors.shape != (manifest.count, manifest.dim) or vectors.dtype != np.float32:
            raise _disagreement(path / VECTORS, f"{vectors.dtype} {vectors.shape}", manifest)
        items = _read(path / ITEMS, Items.read)
        if len(items) != manifest.count:
            raise _disagreement(path / ITEMS, f"{len(items)} items", manifest)
        # FAISS trusts what it reads: this line stays after the checksums
        ann = _read(path / FAISS_INDEX, lambda file: faiss.read_index(str(file)))
        if (ann.ntotal, ann.d, ann.metric_type) != (manifest.count, manifest.dim, faiss.METRIC_INNER_PRODUCT):
            raise _disagreement(path / FAISS_INDEX, f"{ann.ntotal} vectors of dim {ann.d}", manifest)
        return cls(path, manifest, items, ann, np.asarray(vectors))

    @property
    def ids(self) -> list[str]:
        return self._items.ids

    @property
    def field_names(self) -> list[str]:
        return self._items.field_names

    @property
    def thumbnail_digests(self) -> list[str | None]:
        """SHA-256 of each row's thumbnail, None for an item without an image."""
        return self._items.thumbnails

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each id."""
        return {id: row for row, id in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self._items)

    def search(
        self, vectors: np.ndarray, k: int, where: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The K best rows for each query, best first.

        Args:
            vectors: float [Q, D], unit rows.
            where: only items whose fields equal these values (compared as text).
        Returns: scores float32 [Q, K] and rows int64 [Q, K], where K is the smaller of `k` and the number of
            (matching) items. An approximate index that finds fewer is completed by exact search.
        """
        queries = self._checked(vectors, k)
        mask = self._filter.mask(where) if where else None
        k = min(k, len(self) if mask is None else int(mask.sum()))
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        try:
            params = None if mask is None else search_parameters(self._ann, mask)
            scores, rows = self._ann.search(queries, k, params=params)
        except RuntimeError as error:
            if mask is None:
                raise
            raise InputError(
                f"index {self.path} has the factory {self.manifest.factory!r}, which FAISS cannot filter; "
                "search without where, or build it with Flat, IVF or HNSW"
            ) from error
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            scores[short], rows[short] = self._search_exact(queries[short], k, mask)
        return scores, rows

    def hits(self, scores_row: Sequence[float] | np.ndarray, rows_row: Sequence[int] | np.ndarray) -> list[Hit]:
        """Hits of one query from its line of `search`; rows of -1 are left out."""
        found = [(float(score), int(row)) for score, row in zip(scores_row, rows_row, strict=True) if row >= 0]
        fields = self._items.fields_of([row for _, row in found])
        return [
            Hit(self.ids[row], score, position, values, self.thumbnail(row))
            for position, ((score, row), values) in enumerate(zip(found, fields, strict=True), start=1)
        ]

    def thumbnail(self, row: int) -> Path | None:
        return None if self._items.thumbnails[row] is None else thumbnail_path(self.path, row)

    def _search_exact(self, queries: np.ndarray, k: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(len(self)) if mask is None else np.flatnonzero(mask)
        candidates = self.vectors if mask is None else self.vectors[rows]
        scores, places = faiss.knn(queries, candidates, k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, rows[places]

    def _checked(self, vectors: np.ndarray, k: int) -> np.ndarray:
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise InputError(f"query vectors must have shape [Q, {self.manifest.dim}], got {list(queries.shape)}")
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        if not np.isfinite(queries).all():
            raise InputError("query vectors must be finite, got NaN or infinity")
        return queries


class Searcher:
    """An index with the embedder that made it: text, an image or both in, hits out."""

    def __init__(self, index: Index, embedder: "Embedder") -> None:
        index.manifest.check_embedder(index.path, embedder)
        self.index = index
        self.embedder = embedder

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        embedder: "Embedder | Path | str | None" = None,
        device: str | None = None,
        verify: bool = True,
    ) -> Self:
        """Open the index and load its embedder: by default the one that the manifest names."""
        index = Index.open(path, verify=verify)
        if embedder is None:
            embedder = load_embedder(index.manifest.embedder, index.path, device=device)
        elif isinstance(embedder, (str, Path)):
            from fanoise.embedder import Embedder

            embedder = Embedder.from_pretrained(embedder, device=device)
        return cls(index, embedder)

    def search(
        self,
        *,
        text: str | None = None,
        image: Path | str | bytes | Image.Image | None = None,
        k: int = 10,
        where: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The `k` items nearest to the text, the image, or both as one query.

        Raises: InputError for neither, for an unknown field in `where`, or k < 1; ImageError for a bad image.
        """
        start = time.perf_counter()
        vector = encode_query(self.embedder, text, image)
        encoded = time.perf_counter()
        scores, rows = self.index.search(vector, k, where)
        hits = self.index.hits(scores[0], rows[0])
        done = time.perf_counter()
        return Answer(hits, {"encode": (encoded - start) * 1000, "search": (done - encoded) * 1000})


def _read(file: Path, reader: Any) -> Any:
    try:
        return reader(file)
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # pyarrow's errors are ValueErrors, FAISS's Runtime-
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{file} cannot be read ({reason}); rebuild the index with {REBUILD}") from error


def _disagreement(file: Path, found: str, manifest: Manifest) -> ArtifactError:
    return ArtifactError(
        f"{file} holds {found}, but the manifest says {manifest.count} items of dim {manifest.dim}; "
        f"rebuild the index with {REBUILD}"
    )
