"""How far a build is: rows done of all, rows a second, and when it will be over."""

import os
import sys
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from fanoise.catalog import count_rows
from fanoise.errors import CatalogError
from fanoise.images import IMAGE_SUFFIXES


class Progress:
    """A bar on stderr. Rows that were done before count as done, but not as work of now."""

    def __init__(self, name: str, total: int | None, *, shown: bool) -> None:
        self._name, self._total, self._shown = name, total, shown
        self._bar: tqdm | None = None  # until there is something to show: an error comes first, alone
        self._skipped = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.done(0)
        if self._bar is not None:
            self._bar.close()

    def skip(self, rows: int) -> None:
        """Rows done before, or by another process. Any thread may say so."""
        with self._lock:
            self._skipped += rows

    def done(self, rows: int) -> None:
        with self._lock:
            skipped, self._skipped = self._skipped, 0
        if self._shown and self._bar is None:
            self._bar = tqdm(total=self._total, unit=" items", desc=f"Encoding {self._name}", file=sys.stderr)
        if self._bar is not None:
            for name in ("n", "initial", "last_print_n"):  # what tqdm's rates are reckoned from
                setattr(self._bar, name, getattr(self._bar, name) + skipped)
            self._bar.update(rows)


def estimate_rows(catalog: Path) -> int | None:
    """About how many rows a catalogue has, where that takes no more than counting lines or names."""
    try:
        if catalog.is_file() and catalog.suffix.lower() in (".csv", ".tsv", ".jsonl"):
            with catalog.open("rb") as file:
                lines = sum(not line.isspace() for line in file)
            return max(0, lines - (catalog.suffix.lower() != ".jsonl"))
        if (rows := count_rows(catalog)) is not None or not catalog.is_dir():
            return rows
    except (OSError, CatalogError):  # the reader says what is wrong
        return None
    suffixes = Counter(Path(name).suffix.lower() for _, _, names in os.walk(catalog) for name in names)
    return sum(suffixes[one] for one in IMAGE_SUFFIXES) or None
