"""The items and vectors of an index as plain files, for other tools: Parquet, and NumPy with a list of ids."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from fanoise.errors import InputError
from fanoise.storage import staged_directory
from index.generations import room_needed
from index.parquet import PieceWriter
from index.search import Index
from index.store import VectorWriter

EXPORTED_ITEMS = "items.parquet"
EXPORTED_VECTORS = "vectors.npy"
EXPORTED_IDS = "ids.json"


def export_index(path: Path | str, out: Path | str) -> int:
    """Write what a search of the index can return, in row order, into the new folder `out`; returns how many items.

    - items.parquet: id, text, image, fields (a struct) and vector (float32, a fixed-size list of D); the embedder and
      its fingerprint are in the schema's metadata under `fanoise`.
    - vectors.npy: the same vectors, float32 [N, D], unit rows; ids.json: their ids, a list of N strings.
    Raises: InputError for an `out` that holds something; ArtifactError for a damaged index.
    """
    out = Path(os.path.normpath(Path(out).absolute()))
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out} is not empty; name a new folder")
    index = Index.open(path)
    rows = np.flatnonzero(index.live)
    ids = index.live_ids
    names = [name for name in ("id", "text", "image", "fields") if name in index.item_schema.names]
    kind = pa.list_(pa.float32(), index.manifest.dim)
    schema = pa.schema([index.item_schema.field(name) for name in names] + [pa.field("vector", kind)])
    with room_needed(out), staged_directory(out) as stage:
        with (
            VectorWriter(stage / EXPORTED_VECTORS, index.manifest.dim) as vectors,
            PieceWriter(stage / EXPORTED_ITEMS, schema.with_metadata({"fanoise": _about(index)})) as items,
        ):
            start = 0
            for piece in index.item_pieces(names):
                block = index.vectors.rows(rows[start : start + len(piece)])
                vectors.append(block)
                column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), type=kind)
                items.write(piece.append_column("vector", column))
                start += len(piece)
        (stage / EXPORTED_IDS).write_text(json.dumps(ids, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return len(rows)


def _about(index: Index) -> str:
    manifest = index.manifest
    about = {
        "embedder": manifest.embedder.name,
        "fingerprint": manifest.embedder.fingerprint,
        "metric": manifest.metric,
        "dim": manifest.dim,
        "embedder_dim": manifest.embedder_dim,
        "generation": manifest.generation,
    }
    return json.dumps(about, ensure_ascii=False)
