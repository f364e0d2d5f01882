"""All shards of a plan, by as many processes as work on it."""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from fanoise.catalog import Item
from index.encoding.claims import Claims
from index.encoding.cut import Shard, cut
from index.encoding.encode import Encoder
from index.encoding.plan import PlanFolder
from index.encoding.progress import Progress
from index.encoding.rejects import Reject

_COUNTS = "counts.json"


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
        self._number = 0

    def encode(self, encoder: Encoder, rows: Iterable[Item | Reject]) -> None:
        """Encode all shards that are neither done nor claimed by another process."""
        with closing(encoder.encode(self._unclaimed(rows), advance=self._progress.done)) as shards:
            for shard in shards:
                with self._folder.committing(shard.number) as stage:
                    shard.write(stage)
                    counts = Counts(encoded=shard.encoded, reused=shard.reused, is_grouped=shard.is_grouped)
                    (stage / _COUNTS).write_text(json.dumps(asdict(counts)))
                self._claims.release(shard.number)

    def missing(self) -> list[int]:
        """Shards that are not done, after a pass over the catalogue."""
        return [number for number in range(self._number) if not self._folder.is_done(number)]

    def is_left_to_others(self) -> bool:
        """True if other processes are at work on all that is missing, or have made an index of the shards already."""
        if self._claims.are_void():
            return True
        return not any(self._claims.take(number) for number in self.missing())

    def shards(self) -> list[Path]:
        """All of them, in order."""
        return [self._folder.shard(number) for number in range(self._number)]

    def counts(self) -> Counts:
        """Of all shards."""
        files = (shard / _COUNTS for shard in self.shards())
        return sum((Counts(**json.loads(file.read_text())) for file in files), Counts())

    def _unclaimed(self, rows: Iterable[Item | Reject]) -> Iterator[Shard]:
        """Runs in a thread of the encoder."""
        for shard in cut(rows, self._shard_rows):
            self._number = max(self._number, shard.number + 1)
            if self._take(shard.number):
                yield shard
            else:
                self._progress.skip(len(shard.rows))

    def _take(self, number: int) -> bool:
        if self._folder.is_done(number) or not self._claims.take(number):
            return False
        if not self._folder.is_done(number) and not self._claims.are_void():
            return True
        self._claims.release(number)  # done by another process between the two looks, or all of them are in an index
        return False
