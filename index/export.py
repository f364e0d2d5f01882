"""The items and vectors of an index as plain files, for other tools: Parquet, and NumPy with a list of ids."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fanoise.errors import InputError
from fanoise.storage import staged_directory
from index.items import read_items
from index.manifest import ITEMS
from index.search import Index
from index.store import VectorWriter

EXPORTED_ITEMS = "items.parquet"
EXPORTED_VECTORS = "vectors.npy"
EXPORTED_IDS = "ids.json"
_ROWS_AT_ONCE = 16384


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
    with staged_directory(out) as stage:
        table = read_items(index.generation_folder / ITEMS)
        columns = [name for name in ("id", "text", "image", "fields") if name in table.column_names]
        table = table.select(columns).filter(pa.array(index.live))
        kind = pa.list_(pa.float32(), index.manifest.dim)
        schema = table.schema.append(pa.field("vector", kind)).with_metadata({"fanoise": _about(index)})
        with (
            VectorWriter(stage / EXPORTED_VECTORS, index.manifest.dim) as vectors,
            pq.ParquetWriter(stage / EXPORTED_ITEMS, schema, compression="zstd") as items,
        ):
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                block = index.vectors.rows(rows[start : start + _ROWS_AT_ONCE])
                vectors.append(block)
                column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), type=kind)
                part = table.slice(start, _ROWS_AT_ONCE).append_column("vector", column)
                items.write_table(part.cast(schema))
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
