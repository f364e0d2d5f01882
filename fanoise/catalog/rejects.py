"""Faults of single rows: to the caller's ledger where there is one, else an error."""

from collections.abc import Callable
from pathlib import Path

from fanoise.catalog.item import image_name
from fanoise.errors import CatalogError

OnReject = Callable[[str, str, str], None]
"""Called with id, path and reason of a row that is left out."""

OnOther = Callable[[str], object]
"""Called with the name of a file that is not read, and is no fault either."""


class Fault(Exception):
    """Something wrong with one row; `source` is the image at fault as the row names it, None if it is not one."""

    def __init__(self, source: object | None, reason: str) -> None:
        super().__init__(reason)
        self.source, self.reason = source, reason


class Rejects:
    """Passes a fault on, or raises it as a CatalogError when nobody listens; and names what is passed over."""

    def __init__(self, root: Path, on_reject: OnReject | None, on_other: OnOther | None = None) -> None:
        self._root, self._on_reject = root, on_reject
        self.pass_over: OnOther = on_other or (lambda name: None)
        self.count = 0

    def __call__(self, id: str, path: object, reason: str, *, place: str | None = None) -> None:
        """
        Args:
            path: the image or file at fault.
            place: where that is, for the error; by default `path`.
        """
        if self._on_reject is None:
            raise CatalogError(f"{path if place is None else place}: {reason}")
        self.count += 1
        self._on_reject(id, image_name(path, self._root) or "", reason)
