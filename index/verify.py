"""Is an index folder still what was built? Every fault in a line, not only the first."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from fanoise.catalog import Item
from fanoise.catalog.cells import LEADS_OUT, NO_URLS
from fanoise.errors import ArtifactError, CatalogError, FANoiseError, ImageError
from fanoise.storage import sha256_file
from fanoise.values import printable_text
from index.agreement import agreement_faults
from index.encoding.cut import NotAllowedError, referenced_rows
from index.encoding.rejects import Reject, read_rejects
from index.exact import search_exact
from index.manifest import REJECTS, VECTORS, Manifest
from index.search import Index
from index.store import rounding_loss, truncated

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

REENCODED = 16
_ROWS_AT_ONCE = 65536
_ENCODING_LOSS = 0.005
"""How far from 1 the cosine of two encodings of one item may be: half precision on another device costs some 0.001."""
_NEARER = 0.001
"""By how much another item's vector may be more similar to an encoding than its own, before that is no chance."""


def verify_index(
    path: Path | str,
    *,
    embedder: "Embedder | None" = None,
    reencode: int = 0,
    allow_outside: bool = False,
    allow_urls: bool = False,
    progress: bool = False,
) -> list[str]:
    """Every fault found, one line each; an empty list is a sound index.

    Checks the manifest, all checksums (thumbnails too), counts, ids, that vectors are finite unit rows, tombstones, the
    FAISS index's type, size, and agreement with the vectors, and the fingerprint of `embedder` if given.
    Args:
        reencode: how many items, drawn with a fixed seed, to encode again by `embedder` from the catalogues that the
            manifest names, and to compare with their vectors.
        allow_outside, allow_urls: as in `read_catalog`, for these catalogues; what the build's was allowed is not
            passed on, so that no index can have this machine read or fetch what its user did not allow.
    Raises: InputError if `path` is no index at all; where nothing is wrong so far, CatalogError if a catalogue cannot
        be read, NotAllowedError if encoding again needs one of these.
    """
    path = Path(path)
    permissions = {"allow_outside": allow_outside, "allow_urls": allow_urls}
    while True:
        try:
            manifest = Manifest.read(path)
        except ArtifactError as error:
            return [str(error)]
        faults: list[str] = []
        try:
            faults.extend(_faults(path, manifest, embedder, reencode, permissions, progress))
        except CatalogError as error:
            if not faults:
                raise
            faults.append(str(error))
        except FileNotFoundError:
            if Manifest.read(path) == manifest:
                raise
            continue
        try:
            if not faults or Manifest.read(path) == manifest:
                return faults
        except ArtifactError as error:
            return [str(error)]
        # a writer has replaced and removed what we were reading


def _faults(
    path: Path,
    manifest: Manifest,
    embedder: "Embedder | None",
    reencode: int,
    permissions: Mapping[str, bool],
    progress: bool,
) -> Iterator[str]:
    faults = list(manifest.file_problems(path))
    if embedder is not None:
        try:
            manifest.check_embedder(path, embedder)
        except ArtifactError as error:
            faults.append(str(error))
    yield from faults
    if faults:
        return
    try:
        index = Index.open(path, verify=False)  # the checksums have just been compared
    except ArtifactError as error:  # which includes ids, tombstones, counts and types
        yield str(error)
        return
    yield from _ledger_faults(index)
    vector_faults = list(_vector_faults(index))
    yield from vector_faults or agreement_faults(index)
    yield from _thumbnail_faults(index, progress)
    if embedder is not None and reencode:
        yield from _encoding_faults(index, embedder, reencode, permissions, progress)


def _ledger_faults(index: Index) -> Iterator[str]:
    file = index.generation_folder / REJECTS
    try:
        count = sum(1 for _ in read_rejects(file))
    except ArtifactError as error:
        yield str(error)
        return
    if count != index.manifest.rejected:
        yield f"{file} has {count} lines, but the manifest counts {index.manifest.rejected} rejects"


def _vector_faults(index: Index) -> Iterator[str]:
    file = index.generation_folder / VECTORS
    for start in range(0, index.manifest.count, _ROWS_AT_ONCE):
        bad = start + index.vectors.faulty(slice(start, start + _ROWS_AT_ONCE))
        if len(bad):
            row = int(bad[0])
            length = np.linalg.norm(index.vectors.stored(slice(row, row + 1)).astype(np.float64))
            yield (
                f"{file}: {len(bad)} rows are not unit vectors, the first being row {row} (id {index.ids[row]!r}, "
                f"length {length:.4g} as stored at {index.manifest.precision})"
            )
            return


def _thumbnail_faults(index: Index, progress: bool) -> Iterator[str]:
    rows = np.flatnonzero(index.live)
    for row in map(int, tqdm(rows, unit=" items", desc="Thumbnails", disable=not progress, leave=False)):
        file = index.thumbnail(row)
        if file is None:
            continue
        if not file.is_file():
            yield f"{file} is missing"
        elif sha256_file(file) != index.thumbnail_digest(row):
            yield f"{file} is damaged: its SHA-256 is not the one in items.parquet"


def _encoding_faults(
    index: Index, embedder: "Embedder", number: int, permissions: Mapping[str, bool], progress: bool
) -> Iterator[str]:
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(np.flatnonzero(index.live), size=min(number, len(index)), replace=False))
    wanted = {index.ids[row]: int(row) for row in rows}
    try:
        items = _find_items(index, set(wanted), permissions)
    except NotAllowedError:
        raise
    except (FANoiseError, OSError) as error:
        raise CatalogError(
            f"{index.folder}: nothing can be encoded again ({error}); --reencode 0 checks the files alone"
        ) from error
    for id, row in tqdm(wanted.items(), unit=" items", desc="Encoding again", disable=not progress, leave=False):
        fault = (
            "it is no longer in the catalogue" if id not in items else _encode_again(index, embedder, row, items[id])
        )
        if fault:
            yield f"row {row} (id {id!r}) cannot be confirmed: {fault}"


def _encode_again(index: Index, embedder: "Embedder", row: int, item: Item | Reject) -> str | None:
    """What is wrong with a row's vector, if anything. Raises: NotAllowedError.

    The tolerance is that of encoding, and what rounding to the stored precision costs. Truncation leaves only a share
    of the vector's square, in which what differs weighs the more.
    """
    if isinstance(item, Reject):
        if item.reason in (LEADS_OUT, NO_URLS):
            raise NotAllowedError(f"{index.folder}: {item.path!r}, of id {item.id!r}, {item.reason}")
        return item.reason
    try:
        full = embedder.encode([item], role="item", batch_size=1)
    except ImageError as error:
        return error.reason
    dim, precision = index.manifest.dim, index.manifest.precision
    vector = truncated(full, dim)
    [rounding] = rounding_loss(vector, precision)
    own = float(vector[0] @ index.vectors.rows(np.array([row]))[0])
    if not own >= 1 - _ENCODING_LOSS / float(np.square(full[0, :dim]).sum()) - rounding:
        return f"encoded again it has similarity {own:.4f} to its vector; if its content has changed, update it"
    [[best]], [[nearest]] = search_exact(index.vectors, vector, 1, np.flatnonzero(index.live))
    if best > own + _NEARER + rounding:
        return (
            f"encoded again it is nearer ({best:.4f}) to the vector of {index.ids[nearest]!r} than to its ({own:.4f})"
        )
    return None


def _find_items(index: Index, ids: set[str], permissions: Mapping[str, bool]) -> dict[str, Item | Reject]:
    """The rows with these ids, read as the build did, each from the catalogue that named it last."""
    found: dict[str, Item | Reject] = {}
    for ref in (*reversed(index.manifest.added), index.manifest.catalog):
        here: dict[str, Item | Reject] = {}
        for row in referenced_rows(ref, index.folder, **permissions):
            id = printable_text(row.id)
            if id in ids:
                here[id] = row
        found = here | found
        if len(found) == len(ids):
            break
    return found
