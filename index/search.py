"""Open an index folder, after checking every file, and search it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import faiss
import numpy as np
import pyarrow as pa
from PIL import Image

from fanoise.errors import ArtifactError, InputError
from index.encoding.query import encode_query, load_embedder
from index.exact import search_exact
from index.faiss_file import read_index
from index.filters import FieldFilter, can_filter, search_parameters
from index.generations import read_current
from index.items import Items, json_value
from index.manifest import DELETED, FAISS_INDEX, ITEMS, REBUILD, VECTORS, Manifest
from index.store import VectorStore, read_deleted, truncated
from index.thumbnails import thumbnail_path

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

T = TypeVar("T")

_MOST_MORE = 4096


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
    """Vectors and items of one generation. Reading only, so several threads may search at once.

    Rows are positions in the vectors. Those that were deleted keep their number but are returned by nothing.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        items: Items,
        ann: faiss.Index,
        vectors: VectorStore,
        deleted: np.ndarray,
        *,
        is_verified: bool,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.generation = manifest.generation_in(path)
        """The folder of the files of this generation."""
        self.vectors = vectors
        """What was indexed, whatever the FAISS index made of it."""
        self.live = np.ones(manifest.count, dtype=bool)
        """bool [N]: False for deleted rows."""
        self.live[deleted] = False
        self._is_verified = is_verified
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
        return read_current(path, lambda manifest: cls._load(path, manifest, embedder=embedder, verify=verify))

    @classmethod
    def _load(
        cls,
        path: Path,
        manifest: Manifest,
        *,
        verify: bool,
        embedder: "Embedder | None" = None,
        before: Manifest | None = None,
    ) -> Self:
        """Open a generation; files that it shares with the one `before` are not compared with their checksums again."""
        if embedder is not None:
            manifest.check_embedder(path, embedder)
        changed = [name for name, record in manifest.files.items() if before is None or record != before.files[name]]
        for problem in chain(
            manifest.file_problems(path, checksums=False),
            manifest.file_problems(path, names=changed if verify else ()),
        ):
            raise ArtifactError(f"{problem}; restore it or rebuild the index with {REBUILD}")
        folder = manifest.generation_in(path)
        vectors = _read(folder / VECTORS, VectorStore.open)
        if vectors.shape != (manifest.count, manifest.dim) or vectors.precision != manifest.precision:
            found = f"{vectors.shape[0]} {vectors.precision} vectors of dim {vectors.dim}"
            raise _disagreement(folder / VECTORS, found, manifest)
        deleted = _read(folder / DELETED, lambda file: read_deleted(file, manifest.count))
        if len(deleted) != manifest.deleted:
            raise _disagreement(folder / DELETED, f"{len(deleted)} deleted rows", manifest)
        items = _read(folder / ITEMS, lambda file: Items.read(file, deleted))
        if len(items) != manifest.count:
            raise _disagreement(folder / ITEMS, f"{len(items)} items", manifest)
        # FAISS trusts what it reads: this line stays after the checksums
        ann = _read(folder / FAISS_INDEX, lambda file: read_index(file, rows=manifest.count, dim=manifest.dim))
        return cls(path, manifest, items, ann, vectors, deleted, is_verified=verify)

    def current(self) -> Self:
        """This index while it is the folder's current generation, else that one, newly opened. Raises as `open`."""
        if Manifest.read(self.path).generation == self.manifest.generation:
            return self
        return read_current(
            self.path,
            lambda manifest: self._load(self.path, manifest, verify=self._is_verified, before=self.manifest),
        )

    def refresh(self) -> bool:
        """Turn into the folder's current generation; True if it is another one.

        Rows found before belong to the generation before. Where threads share an index, use `Searcher.refresh`.
        """
        current = self.current()
        if current is self:
            return False
        self.__dict__ = vars(current)
        return True

    @property
    def ids(self) -> list[str]:
        """Id of each row, deleted ones among them; an id may then occur twice, but only once alive."""
        return self._items.ids

    @cached_property
    def live_ids(self) -> list[str]:
        """Ids of the items that a search can return, by row."""
        return [self.ids[row] for row in np.flatnonzero(self.live)]

    @property
    def field_names(self) -> list[str]:
        return self._items.field_names

    def values(self, name: str) -> pa.Array:
        """A field of the items that a search can return, parallel to `live_ids`. Raises InputError if unknown."""
        return self._items.column(name).filter(pa.array(self.live))

    @property
    def thumbnail_digests(self) -> list[str | None]:
        """SHA-256 of each row's thumbnail, None for an item without an image."""
        return self._items.thumbnails

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each id that is not deleted."""
        return {self.ids[row]: int(row) for row in np.flatnonzero(self.live)}

    def __len__(self) -> int:
        """Number of items that a search can return."""
        return self.manifest.live

    def matching(self, where: Mapping[str, Any] | None) -> np.ndarray:
        """bool [N]: rows that a search with this filter can return. Raises InputError for an unknown field."""
        return self.live & self._filter.mask(where) if where else self.live

    def search(
        self, vectors: np.ndarray, k: int, where: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best rows for each query, best first.

        Args:
            vectors: float [Q, D], unit rows; those of the embedder are cut to the dimension of the index.
            where: only items whose fields equal these values (compared as text).
        Returns: scores float32 [Q, K] and rows int64 [Q, K], where K is the smaller of `k` and the number of items.
            Where fewer match, the rest is filled with -inf and -1. An approximate index that finds fewer than match is
            completed by exact search.
        """
        queries = self._checked(vectors, k)
        width = min(k, len(self))
        mask = self.matching(where) if where or self.manifest.deleted else None
        wanted = width if mask is None else min(width, int(mask.sum()))
        scores = np.full((len(queries), width), -np.inf, np.float32)
        rows = np.full((len(queries), width), -1, np.int64)
        if wanted and len(queries):
            scores[:, :wanted], rows[:, :wanted] = self._search(queries, wanted, mask)
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
        sha256 = self._items.thumbnails[row]
        return None if sha256 is None else thumbnail_path(self.path, sha256)

    def _search(self, queries: np.ndarray, k: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best of the rows in `mask`, of which there are at least `k`."""
        if mask is None or can_filter(self._ann):
            params = None if mask is None else search_parameters(self._ann, mask)
            scores, rows = self._ann.search(queries, k, params=params)
        else:
            scores, rows = self._search_more(queries, k, mask)
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            scores[short], rows[short] = self._search_exact(queries[short], k, mask)
        return scores, rows

    def _search_more(self, queries: np.ndarray, k: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Search for `k` and as many more as there are rows to leave out, for types that FAISS cannot filter.

        Where those are many, nothing is searched: all rows are -1.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        outside = len(mask) - int(mask.sum())
        if outside > _MOST_MORE:
            return scores, rows
        for i, (line_scores, line) in enumerate(zip(*self._ann.search(queries, k + outside), strict=True)):
            good = np.flatnonzero((line >= 0) & mask[line])[:k]
            scores[i, : len(good)], rows[i, : len(good)] = line_scores[good], line[good]
        return scores, rows

    def _search_exact(self, queries: np.ndarray, k: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return search_exact(self.vectors, queries, k, None if mask is None else np.flatnonzero(mask))

    def _checked(self, vectors: np.ndarray, k: int) -> np.ndarray:
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        dim, embedder_dim = self.manifest.dim, self.manifest.embedder_dim
        if queries.ndim != 2 or queries.shape[1] not in (dim, embedder_dim):
            shape = f"[Q, {dim}]" if dim == embedder_dim else f"[Q, {dim}] or [Q, {embedder_dim}]"
            raise InputError(f"query vectors must have shape {shape}, got {list(queries.shape)}")
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        if not np.isfinite(queries).all():
            raise InputError("query vectors must be finite, got NaN or infinity")
        return np.ascontiguousarray(np.nan_to_num(truncated(queries, dim)))


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

    def refresh(self) -> bool:
        """Search the folder's current generation from now on; True if it is another one. Threads may be searching.

        Raises: ArtifactError, and the generation before stays, for one that cannot be read or of another embedder.
        """
        current = self.index.current()
        if current is self.index:
            return False
        current.manifest.check_embedder(current.path, self.embedder)
        self.index = current
        return True

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
        index = self.index  # one generation for all of it, should `refresh` be called meanwhile
        start = time.perf_counter()
        vector = encode_query(self.embedder, text, image)
        encoded = time.perf_counter()
        scores, rows = index.search(vector, k, where)
        hits = index.hits(scores[0], rows[0])
        done = time.perf_counter()
        return Answer(hits, {"encode": (encoded - start) * 1000, "search": (done - encoded) * 1000})


def _read(file: Path, reader: Callable[[Path], T]) -> T:
    try:
        return reader(file)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; rebuild the index with {REBUILD}") from error
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{file} cannot be read ({reason}); rebuild the index with {REBUILD}") from error


def _disagreement(file: Path, found: str, manifest: Manifest) -> ArtifactError:
    return ArtifactError(
        f"{file} holds {found}, but the manifest says {manifest.count} items ({manifest.deleted} deleted) of dim "
        f"{manifest.dim} at {manifest.precision}; rebuild the index with {REBUILD}"
    )
