"""All shards of a plan, by as many processes as work on it."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath

from fanoise.catalog import Item
from fanoise.errors import CatalogError
from index.claims import Claims
from index.encoding.cut import Shard, cut
from index.encoding.encode import Encoder
from index.encoding.plan import PlanFolder
from index.encoding.progress import Progress
from index.encoding.rejects import Reject
from index.encoding.shard import EncodedShard
from index.thumbnails import sync_thumbnails

_COUNTS = "counts.json"
_ROWS = "rows.sha256"
"""Which catalogue rows a shard holds, as `Shard.digest`."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Where the vectors of a shard, or of several, come from."""

    encoded: int = 0
    reused: int = 0
    is_grouped: bool = False
    """Whether some items are one of several images of a thing."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            encoded=self.encoded + other.encoded,
            reused=self.reused + other.reused,
            is_grouped=self.is_grouped or other.is_grouped,
        )


class ShardRun:
    """What this process does of a plan."""

    def __init__(self, folder: PlanFolder, claims: Claims, *, shard_rows: int, progress: Progress) -> None:
        self._folder, self._claims, self._progress = folder, claims, progress
        self._shard_rows = shard_rows
        self._cut: dict[int, str] = {}
        """Digest of each shard, as this process has read the catalogue."""
        self._put_aside: set[int] = set()
        self.encoded_here = 0
        """Rows, by this process, since it began."""
        self.seconds = 0.0
        """How long this process has been encoding,"""
        self.model_seconds = 0.0
        """how long of it its model was at work,"""
        self.deaths = 0
        """and how many of its workers have died."""
        self.passed_over = Counter[str]()
        """How many files of each suffix are not read, see `Taken`."""

    def encode(self, encoder: Encoder, rows: Iterable[Item | Reject]) -> None:
        """Encode all shards that are neither done nor claimed by another process."""
        self._cut = {}
        encoded = encoder.encode(self._unclaimed(rows), advance=self._progress.done)
        with ThreadPoolExecutor(1) as thread, closing(encoded) as shards:
            committed: Future[None] | None = None
            for shard in shards:
                if committed is not None:
                    committed.result()
                committed = thread.submit(self._commit, shard)  # the model need not wait for the disk
            if committed is not None:
                committed.result()
        self.seconds += encoder.seconds
        self.model_seconds += encoder.model_seconds
        self.deaths += encoder.deaths

    def _commit(self, shard: EncodedShard) -> None:
        with self._folder.committing(shard.number) as stage:
            shard.write(stage)
            counts = Counts(encoded=shard.encoded, reused=shard.reused, is_grouped=shard.is_grouped)
            (stage / _COUNTS).write_text(json.dumps(asdict(counts)))
            (stage / _ROWS).write_text(shard.digest)
            sync_thumbnails(self._folder.index, shard.new_thumbnails)  # a finished shard is not looked at again
        self.encoded_here += shard.encoded
        self._claims.release(shard.number)

    def pass_over(self, name: str) -> None:
        self.passed_over[PurePath(name).suffix.lower()] += 1

    def missing(self) -> list[int]:
        """Shards that are not done, after a pass over the catalogue."""
        return [number for number in self._cut if not self._is_done(number)]

    def is_left_to_others(self) -> bool:
        """True if other processes are at work on all that is missing, or have made an index of the shards already."""
        if self._claims.are_void():
            return True
        return not any(self._claims.take(number) for number in self.missing())

    def shards(self) -> list[Path]:
        """All of them, in order."""
        return [self._folder.shard(number) for number in sorted(self._cut)]

    def counts(self) -> Counts:
        """Of all shards."""
        files = (shard / _COUNTS for shard in self.shards())
        return sum((Counts(**json.loads(file.read_text())) for file in files), Counts())

    def _unclaimed(self, rows: Iterable[Item | Reject]) -> Iterator[Shard]:
        """Runs in a thread of the encoder."""
        for shard in cut(rows, self._shard_rows):
            self._cut[shard.number] = shard.digest
            if self._take(shard.number):
                yield shard
            else:
                self._progress.skip(len(shard.rows))

    def _take(self, number: int) -> bool:
        if self._is_done(number) or not self._claims.take(number):
            return False
        if self._is_done(number) or self._claims.are_void():
            self._claims.release(number)  # done by another process between the two looks, or all are in an index
            return False
        if not self._folder.is_done(number):
            return True
        # Of other rows: a damaged tar, say, that can be read now is many rows instead of one reject, so that all shards
        # behind it begin elsewhere. It stays ours, and is missing after this pass; for the next, its rows are known.
        if number in self._put_aside:
            raise CatalogError(
                f"the catalogue has other rows in shard {number} than another process reads there; look whether all of "
                "its files can be read everywhere, and run the command again"
            )
        self._put_aside.add(number)
        self._folder.put_aside(number)
        return False

    def _is_done(self, number: int) -> bool:
        """Whether a shard is done with the rows that this process has read for it."""
        try:
            return (self._folder.shard(number) / _ROWS).read_text() == self._cut[number]
        except FileNotFoundError:
            return False
