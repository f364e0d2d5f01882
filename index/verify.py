"""Is an index folder still what was built? Every fault in a line, not only the first."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fanoise.errors import ArtifactError
from fanoise.storage import sha256_file
from index.manifest import REJECTS, VECTORS, Manifest
from index.search import Index

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

_ROWS_AT_ONCE = 65536


def verify_index(path: Path | str, *, embedder: "Embedder | None" = None) -> list[str]:
    """Every fault found, one line each; an empty list is a sound index.

    Checks the manifest, all checksums (thumbnails too), counts, that vectors are finite unit rows, and the fingerprint
    of `embedder` if given. Raises InputError if `path` is no index at all.
    """
    path = Path(path)
    try:
        manifest = Manifest.read(path)
    except ArtifactError as error:
        return [str(error)]
    faults = list(manifest.file_problems(path))
    if embedder is not None:
        try:
            manifest.check_embedder(path, embedder)
        except ArtifactError as error:
            faults.append(str(error))
    if faults:
        return faults
    try:
        index = Index.open(path, verify=False)  # the checksums have just been compared
    except ArtifactError as error:
        return [str(error)]
    return [*_ledger_faults(path, manifest), *_vector_faults(index), *_thumbnail_faults(index)]


def _ledger_faults(path: Path, manifest: Manifest) -> Iterator[str]:
    lines = (path / REJECTS).read_text(encoding="utf-8").splitlines()
    if len(lines) != manifest.rejected:
        yield f"{path / REJECTS} has {len(lines)} lines, but the manifest counts {manifest.rejected} rejects"
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError:
            yield f"{path / REJECTS}: line {number} is not JSON"


def _vector_faults(index: Index) -> Iterator[str]:
    for start in range(0, len(index), _ROWS_AT_ONCE):
        lengths = np.linalg.norm(index.vectors[start : start + _ROWS_AT_ONCE], axis=1)
        bad = np.flatnonzero(~(np.abs(lengths - 1) < 1e-3))
        if len(bad):
            row = start + int(bad[0])
            yield (
                f"{index.path / VECTORS}: {len(bad)} rows are not unit vectors, the first being row {row} "
                f"(id {index.ids[row]!r}, length {lengths[bad[0]]:.4g})"
            )
            return


def _thumbnail_faults(index: Index) -> Iterator[str]:
    for row, expected in enumerate(index.thumbnail_digests):
        file = index.thumbnail(row)
        if file is None:
            continue
        if not file.is_file():
            yield f"{file} is missing"
        elif sha256_file(file) != expected:
            yield f"{file} is damaged: its SHA-256 is not the one in items.parquet"
