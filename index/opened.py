"""An opened index folder: every file checked, then read; searched by vector."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise.errors import ArtifactError
from index.backends.base import checked_queries
from index.exact import search_exact_groups
from index.generations import read_current
from index.grouping import search_groups
from index.hits import Hit
from index.items import Items
from index.manifest import REBUILD, CatalogRef, EmbedderRef, Manifest
from index.memory import free_memory
from index.nearest import Nearest
from index.parts import open_ann, open_deleted, open_items, open_vectors
from index.selection import Selection, Selections
from index.store import VectorStore
from index.thumbnails import thumbnail_path

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

_ROWS_AT_ONCE = 65536
_KEPT_SHARE = 8
"""One part in so many of the free memory keeps fields that hits were made of."""
_KEPT_BYTES = 1 << 30
"""Where the system does not say what is free."""


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
        self.folder = path
        self.manifest = manifest
        self.generation_folder = manifest.generation_in(path)
        """The folder of the files of this generation."""
        self.vectors = vectors
        """What was indexed, whatever the FAISS index made of it."""
        self.live = np.ones(manifest.count, dtype=bool)
        """bool [N]: False for deleted rows."""
        self.live[deleted] = False
        self._is_verified = is_verified
        self._items = items
        self._nearest = Nearest(ann, vectors)
        self._selections = Selections(items, self.live)

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
        vectors, deleted = open_vectors(folder, manifest), open_deleted(folder, manifest)
        free = free_memory()
        keep_bytes = _KEPT_BYTES if free is None else free // _KEPT_SHARE
        items = open_items(folder, manifest, deleted, keep_bytes=keep_bytes)
        # FAISS trusts what it reads: this line stays after the checksums
        ann = open_ann(folder, manifest)
        return cls(path, manifest, items, ann, vectors, deleted, is_verified=verify)

    def current(self) -> Self:
        """This index while it is the folder's current generation, else that one, newly opened. Raises as `open`."""
        # the whole manifest: the number alone may be that of another index, put in its place
        if Manifest.read(self.folder) == self.manifest:
            return self
        return read_current(
            self.folder,
            lambda manifest: self._load(self.folder, manifest, verify=self._is_verified, before=self.manifest),
        )

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def embedder(self) -> EmbedderRef:
        return self.manifest.embedder

    @property
    def catalog(self) -> CatalogRef:
        return self.manifest.catalog

    @property
    def group_by(self) -> str | None:
        return self.manifest.group_by

    @property
    def ann(self) -> faiss.Index:
        """The FAISS index in the memory of the CPU, with the search parameters of the manifest."""
        return self._nearest.ann

    @property
    def is_exact(self) -> bool:
        """Whether every search compares all vectors as they are."""
        return isinstance(self.ann, faiss.IndexFlat)

    @property
    def device(self) -> str:
        """What searches: the CPU or GPUs."""
        return self._nearest.device

    @property
    def ids(self) -> list[str]:
        """Id of each row, deleted ones among them; an id may then occur twice, but only once alive."""
        return self._items.ids

    @cached_property
    def live_ids(self) -> list[str]:
        """Ids of the items that a search can return, by row."""
        return self._items.id_column.filter(pa.array(self.live)).to_pylist()

    @property
    def field_names(self) -> list[str]:
        return self._items.field_names

    def values(self, name: str) -> pa.Array:
        """A field of the items that a search can return, parallel to `live_ids`. Raises InputError if unknown."""
        return self._items.column(name).filter(pa.array(self.live))

    def item_table(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of items.parquet, by row, read anew: also where commits since have removed this generation."""
        return self._items.table(columns)

    def item_pieces(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `item_table`, of the items that a search can return, a few of them in memory at a time."""
        start = 0
        for piece in self._items.pieces(columns):
            stop = start + len(piece)
            if self.live[start:stop].any():
                yield piece.filter(pa.array(self.live[start:stop]))
            start = stop

    @property
    def item_schema(self) -> pa.Schema:
        """Of all columns of items.parquet."""
        return self._items.schema

    def thumbnail_digest(self, row: int) -> str | None:
        """SHA-256 of the row's thumbnail; None for an item without an image."""
        digest: str | None = self._items.thumbnail_column[row].as_py()
        return digest

    def rows_showing(self, digest: str) -> list[int]:
        """Rows, of those that a search can return, whose thumbnail has this SHA-256."""
        shows = pc.fill_null(pc.equal(self._items.thumbnail_column, digest), False)
        rows: list[int] = np.flatnonzero(shows.to_numpy(zero_copy_only=False) & self.live).tolist()
        return rows

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each id that is not deleted."""
        return dict(zip(self.live_ids, np.flatnonzero(self.live).tolist(), strict=True))

    @property
    def most_hits(self) -> int:
        return len(self)

    def __len__(self) -> int:
        """Number of items that a search can return."""
        return self.manifest.live

    def matching(self, where: Mapping[str, Any] | None) -> np.ndarray:
        """bool [N]: rows that a search with this filter can return. Raises InputError, as `search`."""
        selection = self._selections.of(where)
        return self.live if selection is None else selection.mask

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        where: Mapping[str, Any] | None = None,
        *,
        group_by: str | None = None,
        min_score: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best rows for each query, best first.

        Args:
            vectors: float [Q, D], unit rows; those of the embedder are cut to the dimension of the index.
            where: only items that meet these conditions, see `index.where`.
            group_by: the best row only for each value of this field; rows without a value stand alone. None is the
                manifest's `group_by`, "" is no grouping.
            min_score: only rows with at least this cosine similarity.
        Returns: scores float32 [Q, K] and rows int64 [Q, K], where K is the smaller of `k` and the number of items.
            Where fewer match, the rest is filled with -inf and -1. An approximate index that finds fewer than match is
            completed by exact search.
        Raises: InputError for vectors of another shape, an unknown field, or a condition that does not suit its field.
        """
        queries = self._checked(vectors, k, min_score)
        selection = self._selections.of(where)
        width = min(k, len(self))
        group_by = self.group_by if group_by is None else group_by
        count = len(self) if selection is None else selection.count
        groups = None
        if group_by:
            groups, count = self.groups(group_by), self._selections.group_count(group_by, where)
        wanted = min(width, count)
        scores = np.full((len(queries), width), -np.inf, np.float32)
        rows = np.full((len(queries), width), -1, np.int64)
        if wanted and len(queries):
            if groups is None:
                found = self._nearest.search(queries, wanted, selection)
            else:
                found = self._search_groups(queries, wanted, groups, selection)
            scores[:, :wanted], rows[:, :wanted] = found
        if min_score is not None:
            low = scores < min_score
            scores[low], rows[low] = -np.inf, -1
        return scores, rows

    def find(
        self,
        vectors: np.ndarray,
        k: int,
        where: Mapping[str, Any] | None = None,
        *,
        group_by: str | None = None,
        min_score: float | None = None,
    ) -> list[list[Hit]]:
        """The hits of each query; arguments as in `search`."""
        found = self.search(vectors, k, where, group_by=group_by, min_score=min_score)
        return [self.hits(scores, rows) for scores, rows in zip(*found, strict=True)]

    def hits(self, scores_row: Sequence[float] | np.ndarray, rows_row: Sequence[int] | np.ndarray) -> list[Hit]:
        """Hits of one query from its line of `search`; rows of -1 are left out."""
        found = [(float(score), int(row)) for score, row in zip(scores_row, rows_row, strict=True) if row >= 0]
        fields = self._items.fields_of([row for _, row in found])
        return [
            Hit(self._items.id_column[row].as_py(), score, position, values, self.thumbnail(row))
            for position, ((score, row), values) in enumerate(zip(found, fields, strict=True), start=1)
        ]

    def similarities(self, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Cosines float32 [Q, R] of query vectors, as in `search`, and these rows."""
        queries = self._checked(vectors)
        blocks = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, max(1, len(rows)), _ROWS_AT_ONCE)]
        return np.concatenate([queries @ self.vectors.rows(block).T for block in blocks], axis=1)

    def notes(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """See `Backend.notes`."""
        notes = self._selections.notes(where) if where else []
        selection = self._selections.of(where) if where else None
        if selection is not None and selection.count and self._nearest.falls_back(selection):
            notes.append(
                f"FAISS cannot filter an index of type {self.manifest.factory}: all {selection.count:,} items that "
                "match were compared one by one"
            )
        if self._nearest.note is not None and (selection is None or selection.count):
            notes.append(self._nearest.note)
        return notes

    def thumbnail(self, row: int) -> Path | None:
        sha256 = self.thumbnail_digest(row)
        return None if sha256 is None else thumbnail_path(self.folder, sha256)

    def groups(self, name: str) -> np.ndarray:
        """int64 [N]: equal for rows with the same value of a field. Raises InputError if unknown, or of lists."""
        return self._selections.groups(name)

    def _search_groups(
        self, queries: np.ndarray, k: int, groups: np.ndarray, selection: Selection | None
    ) -> tuple[np.ndarray, np.ndarray]:
        return search_groups(
            queries,
            k,
            groups,
            rows=len(self) if selection is None else selection.count,
            search=lambda queries, depth: self._nearest.search(queries, depth, selection),
            search_all=lambda queries, k: search_exact_groups(
                self.vectors, queries, k, groups, None if selection is None else selection.rows
            ),
        )

    def _checked(self, vectors: np.ndarray, k: int = 1, min_score: float | None = None) -> np.ndarray:
        return checked_queries(vectors, k, min_score, dim=self.manifest.dim, embedder_dim=self.manifest.embedder_dim)
