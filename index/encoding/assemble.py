"""Finished shards, one after the other, into one folder, with only a few of them in memory."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from fanoise.errors import CatalogError, ImageError
from fanoise.images import open_image
from index.encoding.near_duplicates import SIGNATURE_BYTES, first_of_each, is_same_picture
from index.encoding.rejects import Reject, images_hint, kinds_of, read_rejects, write_rejects
from index.items import DUPLICATE_OF, SIGNATURE
from index.join import join_items
from index.manifest import ITEMS, REJECTS, VECTORS
from index.parquet import read_parquet
from index.store import Precision, VectorStore, VectorWriter
from index.thumbnails import thumbnail_path

NearDuplicates = Literal["report", "skip"]
_SKIPPED = "near-duplicate of "
_OPENED = 256
_SECONDS_IN_SILENCE = 2.0
_SHOWN_REASONS = 5


@dataclass(frozen=True, kw_only=True)
class Assembled:
    count: int
    rejected: int
    """Near-duplicates that were skipped among them."""
    duplicates: int
    named: int
    """Of these, rows that are kept, and name the first one."""


def assemble(
    shards: Sequence[Path],
    folder: Path,
    *,
    index: Path,
    dim: int,
    precision: Precision,
    near_duplicates: NearDuplicates | None = None,
    never_skipped: Collection[str] = (),
    earlier: Path | None = None,
    max_rejects: float = 1.0,
    progress: bool = False,
) -> Assembled:
    """Write vectors.npy, items.parquet and rejects.jsonl of all shards into `folder`, in their order.

    Args:
        index: the index folder, with the thumbnails.
        near_duplicates: name in the field `duplicate_of`, in place of one that the catalogue has, the first item that
            each is a near-duplicate of; or skip them, with a line in the ledger.
        never_skipped: ids of rows whose near-duplicates are reported even then.
        earlier: a folder of `write_earlier`, with rows that come before those of all shards.
        max_rejects: the share of rows above which nothing is made of them, those that are skipped aside.
    Raises: CatalogError, with the reasons, if too much was rejected or there is nothing to index; that all is skipped,
        since earlier rows have it, is no fault.
    """
    firsts = _first_ids(shards, earlier, index, progress=progress) if near_duplicates else None
    kept, rejected, skipped, named = [], 0, 0, 0
    (folder / REJECTS).write_bytes(b"")
    for number, shard in enumerate(shards):
        rejects = list(read_rejects(shard / REJECTS))
        mask = np.ones(len(VectorStore.open(shard / VECTORS)), dtype=bool)
        if firsts is not None and near_duplicates == "skip":
            mask = _is_kept(shard, firsts[number], never_skipped)
            rejects += _skipped(shard, firsts[number], mask)
            skipped += int((~mask).sum())
        if firsts is not None:
            named += int(firsts[number].is_valid().to_numpy(zero_copy_only=False)[mask].sum())
        write_rejects(folder / REJECTS, rejects)
        kept.append(mask)
        rejected += len(rejects)
    count = sum(int(mask.sum()) for mask in kept)
    _check_rejects(folder / REJECTS, count, rejected, max_rejects, skipped=skipped)
    with VectorWriter(folder / VECTORS, dim, precision) as vectors:
        for shard, mask in zip(shards, kept, strict=True):
            vectors.copy(VectorStore.open(shard / VECTORS, in_passing=True), np.flatnonzero(mask))
    field = (DUPLICATE_OF, firsts) if firsts is not None and (named or near_duplicates == "report") else None
    join_items(folder / ITEMS, [shard / ITEMS for shard in shards], kept, field=field)
    duplicates = 0 if firsts is None else sum(len(ids) - ids.null_count for ids in firsts)
    return Assembled(count=count, rejected=rejected, duplicates=duplicates, named=named)


def _first_ids(shards: Sequence[Path], earlier: Path | None, index: Path, *, progress: bool) -> list[pa.Array]:
    """For each shard, the id of the first item that each row is a near-duplicate of, null for most.

    Earlier rows are not compared with each other, so that an add takes no longer the more it is the last of many.
    Memory: some 460 bytes a row (443 MiB for a million pictures), and 80 MB of thumbnails.
    """
    shards = shards if earlier is None else [earlier, *shards]
    sizes = [pq.read_metadata(shard / ITEMS).num_rows for shard in shards]
    digests = _column(shards, "thumbnail_sha256")
    with_image = np.flatnonzero(digests.is_valid().to_numpy(zero_copy_only=False))
    # rows with equal thumbnails need no comparing
    encoded = digests.drop_null().dictionary_encode()
    number_of, distinct = encoded.indices.to_numpy(), encoded.dictionary
    _, at = np.unique(number_of, return_index=True)
    signatures = np.empty((len(at), SIGNATURE_BYTES), np.uint8)
    rows, start = with_image[at], 0
    for shard, size in zip(shards, sizes, strict=True):
        low, high = np.searchsorted(rows, (start, start + size))
        signatures[low:high] = _signatures(shard, rows[low:high] - start)
        start += size

    @lru_cache(maxsize=_OPENED)
    def thumbnail(number: int) -> Image.Image:
        return open_image(thumbnail_path(index, distinct[number].as_py()))

    def is_same(a: int, b: int) -> bool:
        try:
            return is_same_picture(thumbnail(a), thumbnail(b))
        except ImageError:  # a thumbnail is gone, which costs a picture and is what `verify` reports, but no build
            return False

    before = 0 if earlier is None else int(np.searchsorted(rows, sizes[0]))
    with tqdm(
        total=len(rows) - before,
        unit=" images",
        desc="Near-duplicates",
        delay=_SECONDS_IN_SILENCE,
        disable=not progress,
    ) as bar:
        first = first_of_each(signatures, is_same, earlier=before, advance=bar.update)
    first_of = np.arange(len(digests))
    first_of[with_image] = rows[first[number_of]]
    ids = _column(shards, "id").take(pa.array(first_of, mask=first_of == np.arange(len(digests))))
    parts = [ids[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    return parts if earlier is None else parts[1:]


def _signatures(shard: Path, rows: np.ndarray) -> np.ndarray:
    """uint8 [n, SIGNATURE_BYTES] of these rows, each of which has an image."""
    if not len(rows):  # of a shard without images, which has no such column
        return np.empty((0, SIGNATURE_BYTES), np.uint8)
    column = read_parquet(shard / ITEMS, columns=[SIGNATURE])[SIGNATURE].take(pa.array(rows))
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, SIGNATURE_BYTES)


def _column(shards: Sequence[Path], name: str) -> pa.Array:
    columns = (read_parquet(shard / ITEMS, columns=[name])[name] for shard in shards)
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).combine_chunks()


def _is_kept(shard: Path, firsts: pa.Array, never_skipped: Collection[str]) -> np.ndarray:
    """bool [n] of a shard's rows."""
    ids = read_parquet(shard / ITEMS, columns=["id"])["id"].combine_chunks()
    kept = pc.or_(firsts.is_null(), pc.is_in(ids, value_set=pa.array(list(never_skipped), pa.string())))
    return kept.to_numpy(zero_copy_only=False)


def _skipped(shard: Path, firsts: pa.Array, kept: np.ndarray) -> Iterator[Reject]:
    table = read_parquet(shard / ITEMS, columns=["id", "image"])
    for row, first, is_kept in zip(table.to_pylist(), firsts.to_pylist(), kept, strict=True):
        if not is_kept:
            yield Reject(row["id"], row["image"], f"{_SKIPPED}{first!r}")


def _check_rejects(ledger: Path, count: int, rejected: int, most: float, *, skipped: int) -> None:
    faults, rows = rejected - skipped, count + rejected
    if count + skipped and faults / rows <= most:
        return
    if not rows:
        raise CatalogError("nothing to index: the catalogue has no rows")
    what = (
        f"{faults} of {rows} rows were rejected, more than the share of {most:g} that is allowed"
        if count + skipped
        else f"nothing to index: all {rejected} rows were rejected"
    )
    first = next(reject for reject in read_rejects(ledger) if not reject.reason.startswith(_SKIPPED))
    kinds = [kind for kind in kinds_of(ledger) if not kind.reason.startswith(_SKIPPED)]
    reasons = [f"{kind.count}× {kind.reason}" for kind in kinds[:_SHOWN_REASONS]]
    reasons += filter(None, [images_hint(kinds, count)])
    raise CatalogError(f"{what}, the first being {first}; by reason: {'; '.join(reasons)}")
