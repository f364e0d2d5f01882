"""Rows that are in an index already, for near-duplicates of new rows to be looked for among them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from fanoise.errors import ImageError
from fanoise.images import open_image
from index.encoding.near_duplicates import SIGNATURE_BYTES, signature
from index.items import SIGNATURE
from index.manifest import ITEMS
from index.thumbnails import thumbnail_path

_THREADS = 4
_SECONDS_IN_SILENCE = 2.0


def write_earlier(folder: Path, items: pa.Table, *, index: Path, progress: bool) -> None:
    """Make `folder`, with an items.parquet of the rows that have a picture: id, thumbnail_sha256, signature.

    Of a row without a signature the thumbnail is read, which takes 3 ms. A damaged one is no picture.
    Args:
        items: with the columns `id`, `thumbnail_sha256`, and `signature` if there is one.
        index: the index folder, with the thumbnails.
    """
    items = items.filter(items["thumbnail_sha256"].is_valid())
    thumbnails = items["thumbnail_sha256"].to_pylist()
    signatures = items[SIGNATURE].to_pylist() if SIGNATURE in items.column_names else [None] * len(items)
    missing = [row for row, one in enumerate(signatures) if one is None or len(one) != SIGNATURE_BYTES]

    def signature_of(row: int) -> bytes | None:
        try:
            return signature(open_image(thumbnail_path(index, thumbnails[row])))
        except ImageError:
            return None

    with (
        ThreadPoolExecutor(_THREADS) as threads,
        tqdm(
            total=len(missing),
            unit=" images",
            desc="Reading thumbnails",
            delay=_SECONDS_IN_SILENCE,
            disable=not progress,
        ) as bar,
    ):
        for row, found in zip(missing, threads.map(signature_of, missing), strict=True):
            signatures[row] = found
            bar.update()
    folder.mkdir()
    columns = {"id": items["id"], "thumbnail_sha256": items["thumbnail_sha256"]}
    table = pa.table(columns | {SIGNATURE: pa.array(signatures, pa.binary())})
    pq.write_table(table.filter(table[SIGNATURE].is_valid()), folder / ITEMS)
