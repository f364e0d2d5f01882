"""Items straight into a folder, for catalogues that are appended to an index: all of it or nothing, no going on."""

import shutil
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from fanoise.catalog import Item
from index.encoding.assemble import Assembled, assemble
from index.encoding.cut import cut
from index.encoding.encode import Encoder, settle_workers
from index.encoding.known import KnownRows
from index.encoding.rejects import Reject
from index.encoding.shard import ShardOptions
from index.store import Precision

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

_SHARDS = "shards"


def encode_items(
    embedder: "Embedder",
    items: Iterable[Item | Reject],
    folder: Path,
    *,
    thumbnails: Path,
    root: Path,
    batch_size: int,
    dim: int | None = None,
    precision: Precision = "fp32",
    workers: int | None = None,
    vectors: str | None = None,
    known: KnownRows | None = None,
    advance: Callable[[int], object] = lambda rows: None,
) -> Assembled:
    """Write vectors.npy, items.parquet and rejects.jsonl of `items`, in their order, into `folder`.

    A row is rejected when its image cannot be read, it has neither text nor image, or its embedding is not finite.
    Args:
        thumbnails: the index folder, which the thumbnails go to directly.
        root: folder of the catalogue; image paths below it are stored relative to it.
        dim: keep the first dimensions of each vector only; default all.
        workers: processes that prepare rows; default by the cores, none for a few rows.
        vectors: take each row's vector from this field of it.
        known: rows whose vectors are copied.
        advance: called with the number of rows done since the last call.
    Raises: CatalogError if every row was rejected.
    """
    dim = embedder.dim if dim is None else dim
    number, rows = settle_workers(workers, iter(items))
    options = ShardOptions(dim=dim, precision=precision, vectors=vectors)
    shards = []
    with (
        Encoder(
            embedder, options, batch_size=batch_size, workers=number, index=thumbnails, root=root, known=known
        ) as encoder,
        closing(encoder.encode(cut(rows), advance=advance)) as encoded,
    ):
        for shard in encoded:
            shards.append(folder / _SHARDS / f"{shard.number:05d}")
            shards[-1].mkdir(parents=True)
            shard.write(shards[-1])
    assembled = assemble(shards, folder, index=thumbnails, dim=dim, precision=precision)
    shutil.rmtree(folder / _SHARDS)
    return assembled
