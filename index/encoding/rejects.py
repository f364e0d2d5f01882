"""The ledger: every catalogue row that could not be indexed, and why."""

import json
import re
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from fanoise.errors import ArtifactError, one_line
from fanoise.values import printable_text
from index.checked import UNFIT

_VARIABLE = re.compile(r"'[^']*'|\d[\d,.]*\d|\d")
"""What differs among reasons of one kind: names and figures."""


@dataclass(frozen=True)
class Reject:
    id: str
    path: str | None
    """The image's, relative to the catalogue; None for a row without one."""
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", printable_text(self.id))
        object.__setattr__(self, "path", None if self.path is None else printable_text(self.path))
        object.__setattr__(self, "reason", printable_text(self.reason))

    def __str__(self) -> str:
        return f"{self.id!r} ({self.path or 'no image'}): {self.reason}"


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in rejects)


def read_rejects(path: Path) -> Iterable[Reject]:
    """Raises ArtifactError, when it comes to it, for a line that is no reject."""
    number = 0
    with path.open(encoding="utf-8") as file:  # str.splitlines would also split at U+2028, which JSON leaves alone
        try:
            for line in file:
                row = json.loads(line)
                yield Reject(row["id"], row["path"], row["reason"])
                number += 1
        except UNFIT as error:
            raise ArtifactError(f"{path}: line {number + 1} is no reject ({one_line(error)})") from error


@dataclass(frozen=True)
class Kind:
    """Rejects of which the reasons are alike; names and figures in which they differ become `…`."""

    reason: str
    count: int
    first: Reject


def kinds_of(path: Path, *, last: int | None = None) -> list[Kind]:
    """Those in a ledger, or among its `last` rejects, the most frequent first."""
    counts, first, varied = Counter[str](), dict[str, Reject](), set[str]()
    rejects = read_rejects(path)
    for reject in rejects if last is None else deque(rejects, maxlen=last):
        reason = _VARIABLE.sub("…", reject.reason)
        counts[reason] += 1
        if first.setdefault(reason, reject).reason != reject.reason:
            varied.add(reason)
    return [
        Kind(reason if reason in varied else first[reason].reason, count, first[reason])
        for reason, count in counts.most_common()
    ]


def images_hint(kinds: Iterable[Kind], taken: int) -> str:
    """Where images are looked for, to be said where more of them are not there than rows were taken; else empty."""
    missing = sum(kind.count for kind in kinds if kind.reason == "file not found")
    return "relative image paths start in the catalogue's folder, or where --images FOLDER says" * (missing > taken)
