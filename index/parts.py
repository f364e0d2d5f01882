"""The files of a generation, each read and compared with what the manifest says of it.

Raises: ArtifactError for a file that cannot be read or disagrees, whatever its checksum says: whoever wrote the files
may have written the manifest as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np

from fanoise.errors import ArtifactError, one_line
from index.faiss_file import read_index
from index.items import Items
from index.manifest import DELETED, FAISS_INDEX, ITEMS, REBUILD, VECTORS, Manifest
from index.parquet import UNREADABLE
from index.store import VectorStore, read_deleted
from index.tuning import set_parameters

T = TypeVar("T")


def open_vectors(folder: Path, manifest: Manifest, *, in_passing: bool = False) -> VectorStore:
    """Args: `folder` is the generation's; `in_passing` as in `VectorStore.open`."""
    vectors = _read(folder / VECTORS, lambda file: VectorStore.open(file, in_passing=in_passing))
    if vectors.shape != (manifest.count, manifest.dim) or vectors.precision != manifest.precision:
        found = f"{vectors.shape[0]} {vectors.precision} vectors of dim {vectors.dim}"
        raise _disagreement(folder / VECTORS, found, manifest)
    return vectors


def open_deleted(folder: Path, manifest: Manifest) -> np.ndarray:
    deleted = _read(folder / DELETED, lambda file: read_deleted(file, manifest.count))
    if len(deleted) != manifest.deleted:
        raise _disagreement(folder / DELETED, f"{len(deleted)} deleted rows", manifest)
    return deleted


def open_items(folder: Path, manifest: Manifest, deleted: np.ndarray, **options: int) -> Items:
    """Args: `deleted` and `options` as in `Items.read`."""
    items = _read(folder / ITEMS, lambda file: Items.read(file, deleted, **options))
    if len(items) != manifest.count:
        raise _disagreement(folder / ITEMS, f"{len(items)} items", manifest)
    return items


def open_ann(folder: Path, manifest: Manifest) -> faiss.Index:
    """With the search parameters of the manifest. FAISS trusts what it reads, so the checksum is compared before."""
    return _read(folder / FAISS_INDEX, lambda file: _read_tuned(file, manifest))


def _read_tuned(file: Path, manifest: Manifest) -> faiss.Index:
    ann = read_index(file, rows=manifest.count, dim=manifest.dim, factory=manifest.factory)
    set_parameters(ann, manifest.search)
    return ann


def _read(file: Path, reader: Callable[[Path], T]) -> T:
    try:
        return reader(file)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; rebuild the index with {REBUILD}") from error
    except UNREADABLE as error:
        raise ArtifactError(f"{file} cannot be read ({one_line(error)}); rebuild the index with {REBUILD}") from error


def _disagreement(file: Path, found: str, manifest: Manifest) -> ArtifactError:
    return ArtifactError(
        f"{file} holds {found}, but the manifest says {manifest.count} items ({manifest.deleted} deleted) of dim "
        f"{manifest.dim} at {manifest.precision}; rebuild the index with {REBUILD}"
    )
