"""What rows of an index would lose to those that take their place: a list of new prices has no pictures."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from fanoise.catalog import Item
from fanoise.catalog.columns import ITEM
from fanoise.errors import InputError
from fanoise.values import printable_text
from index.encoding.rejects import Reject
from index.filters import Field
from index.items import DUPLICATE_OF, Items

_SAID_BY_ID = (ITEM, "document", "page")
"""Fields that read_catalog makes of images of a row and of documents; the id is made of the same."""


@dataclass
class Given:
    """What the rows of a catalogue have at all, found as they go by."""

    names: set[str] = field(default_factory=set)
    """Of fields."""
    has_text: bool = False
    has_image: bool = False

    def see(self, row: Item | Reject) -> Item | Reject:
        if isinstance(row, Item):
            self.names.update(row.fields)
            self.has_text |= row.text is not None
            self.has_image |= row.image is not None
        return row


def check_losses(items: Items, replaced: np.ndarray, given: Given, catalog: Path) -> None:
    """Raise InputError where rows have what the catalogue that replaces them has in no row, naming it.

    Args:
        replaced: int64 [R], the rows, ascending.
    """
    names = {printable_text(name) for name in given.names} | {DUPLICATE_OF}
    missing = [name for name in items.field_names if name not in names]
    own = {"text": "text"} if not given.has_text else {}
    own |= {"image": "thumbnail_sha256"} if not given.has_image else {}
    if not len(replaced) or not (missing or own):
        return
    lost: Counter[str] = Counter()
    start = 0
    for piece in items.pieces(["id", *own.values(), *(f"fields.{name}" for name in missing)]):
        low, high = np.searchsorted(replaced, (start, start + len(piece)))
        rows = piece.take(pa.array(replaced[low:high] - start))
        start += len(piece)
        has = {name: rows[column].is_valid().to_numpy() for name, column in own.items()}
        has |= {name: _has(rows, name) for name in missing if name not in has}
        lost.update({name: int(np.count_nonzero(mask)) for name, mask in has.items()})
    if +lost:
        listed = ", ".join(f"{name} ({count:,} row{'s' * (count > 1)})" for name, count in (+lost).items())
        raise InputError(
            f"{catalog} has nothing for what rows that it replaces would lose: {listed}; give these columns as well, "
            "or pass --drop-columns if they may go"
        )


def _has(rows: pa.Table, name: str) -> np.ndarray:
    """bool [N]: which rows have something in a field that their id does not say."""
    values = rows["fields"].combine_chunks().field(name)
    present = Field(name, values).present
    if name not in _SAID_BY_ID:
        return present
    pairs = zip(rows["id"].to_pylist(), values.to_pylist(), strict=True)
    return present & [str(value) not in id.rpartition("#")[::2] for id, value in pairs]
