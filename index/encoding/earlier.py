"""Rows that are in an index already, for near-duplicates of new rows to be looked for among them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from fanoise.errors import ImageError
from fanoise.images import open_image
from index.encoding.near_duplicates import SIGNATURE_BYTES, signature
from index.encoding.shard import SIGNATURES
from index.manifest import ITEMS
from index.thumbnails import thumbnail_path

_THREADS = 4
_SECONDS_IN_SILENCE = 2.0


def write_earlier(folder: Path, items: pa.Table, *, index: Path, progress: bool) -> None:
    """Make `folder`, with the items.parquet and signatures.npy of the rows that have a picture.

    Every thumbnail is read, since an index keeps no signatures: about 3 ms each. A damaged one is no picture.
    Args:
        items: with the columns `id` and `thumbnail_sha256`.
        index: the index folder, with the thumbnails.
    """
    with_image = items.select(["id", "thumbnail_sha256"]).filter(items["thumbnail_sha256"].is_valid())

    def signature_of(digest: str) -> bytes | None:
        try:
            return signature(open_image(thumbnail_path(index, digest)))
        except ImageError:
            return None

    with (
        ThreadPoolExecutor(_THREADS) as threads,
        tqdm(
            total=len(with_image),
            unit=" images",
            desc="Reading thumbnails",
            delay=_SECONDS_IN_SILENCE,
            disable=not progress,
        ) as bar,
    ):
        signatures = []
        for one in threads.map(signature_of, with_image["thumbnail_sha256"].to_pylist()):
            signatures.append(one)
            bar.update()
    folder.mkdir()
    pq.write_table(with_image.filter(pa.array([one is not None for one in signatures], pa.bool_())), folder / ITEMS)
    raw = b"".join(one for one in signatures if one is not None)
    np.save(folder / SIGNATURES, np.frombuffer(raw, np.uint8).reshape(-1, SIGNATURE_BYTES), allow_pickle=False)
