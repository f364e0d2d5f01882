"""Images that are the same picture at another size or compression, in three steps, each dearer and surer.

1. dHash (N. Krawetz, "Kind of Like That", 2013) has a bit for each of 8 × 8 pairs of neighbours in a tiny grey copy: is
   the left one brighter? Near hashes are found without comparing all with all.
2. It does not see colour, and in a catalogue the same shirt in blue is another item; so the colours of a 4 × 4 copy
   must agree.
3. Of shirts on the same table, and of invoices of the same firm, even that is alike. What is left is therefore compared
   in detail, by the thumbnails. Over 3,409 photos of clothes, 150 scanned receipts and 822 generated forms, copies (JPEG
   at quality 40 and 60, half the size, 5 % brighter) differ by up to 1.0, and different pictures by at least 1.3.
"""

from collections.abc import Callable, Sequence

import faiss
import numpy as np
from PIL import Image

_HASH_BYTES, _COLOUR_BYTES = 8, 4 * 4 * 3
SIGNATURE_BYTES = _HASH_BYTES + _COLOUR_BYTES
MOST_BITS = 7
"""Hashes of near-duplicates differ in no more of their 64 bits."""
MOST_COLOUR = 24
"""Nor the colours of any of the 4 × 4 fields by more, of 255, in any channel."""
MOST_DIFFERENCE = 1.1
"""Nor, in any of 64 × 64 fields, by more than this many times what a picture's own fields vary by."""
_MOST_CANDIDATES, _MOST_COMPARED = 256, 16
"""How many near hashes and thumbnails a picture is compared with: a bound where a million look alike."""
_GRID = 64
_LEAST_CONTRAST = 4.0
_TABLES = 4
_QUERIES_AT_ONCE = 4096


def signature(image: Image.Image) -> bytes:
    """dHash and colours of an RGB image."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    colours = np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=np.uint8)
    return np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes() + colours.tobytes()


def is_same_picture(a: Image.Image, b: Image.Image) -> bool:
    """Whether two RGB images look the same in detail, at the size of the smaller one."""
    size = min(a.width, b.width), min(a.height, b.height)
    first, second = (_fields(one, size) for one in (a, b))
    contrast = np.sqrt(first.std() * second.std()) + _LEAST_CONTRAST
    return bool(np.abs(first - second).max() <= MOST_DIFFERENCE * contrast)


def first_of_each(
    signatures: np.ndarray, is_same: Callable[[int, int], bool], *, bits: int = MOST_BITS, colour: int = MOST_COLOUR
) -> np.ndarray:
    """For each row the first row that it is a near-duplicate of: int64 [N], its own number for most.

    Rows are compared with such first rows only, so that no chain of small steps joins what is far apart.
    Args:
        signatures: uint8 [N, SIGNATURE_BYTES].
        is_same: the last word on two rows with near signatures.
        bits, colour: how far signatures may differ; `bits` from 0 to 15.
    """
    if not 0 <= bits < 4 * _TABLES:
        raise ValueError(f"bits must be from 0 to {4 * _TABLES - 1}, got {bits}")
    hashes, hash_of = np.unique(signatures[:, :_HASH_BYTES], axis=0, return_inverse=True)
    colours = signatures[:, _HASH_BYTES:].astype(np.int16)
    near = _Neighbours(hashes, bits)
    firsts: dict[int, list[int]] = {}  # of each hash, in the order of their rows
    first_of = np.arange(len(signatures))
    for row, number in enumerate(hash_of.ravel().tolist()):
        candidates = np.array(_first_few(near.of(number), firsts), dtype=np.int64)
        distances = np.abs(colours[candidates] - colours[row])
        alike = (distances <= colour).all(axis=1)
        order = np.lexsort((candidates[alike], distances[alike].sum(axis=1)))[:_MOST_COMPARED]
        same = next((one for one in sorted(candidates[alike][order].tolist()) if is_same(one, row)), None)
        if same is None:
            firsts.setdefault(number, []).append(row)
        else:
            first_of[row] = same
    return first_of


def _fields(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Mean colours of the 64 × 64 fields, or fewer of a tiny picture, after scaling to `size`."""
    image = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    grid = max(1, min(_GRID, size[0] // 2, size[1] // 2))
    return np.asarray(image.resize((grid, grid), Image.Resampling.BOX), dtype=np.float64)


def _first_few(hashes: Sequence[int], firsts: dict[int, list[int]]) -> list[int]:
    found: list[int] = []
    for number in hashes:
        found += firsts.get(number, ())[: _MOST_CANDIDATES - len(found)]
    return found


class _Neighbours:
    """Which of [M, 8] different hashes are within `bits` of each other.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012): two hashes within r bits agree up to r // 4 bits in one of
    four quarters at least, so only those are compared.
    """

    def __init__(self, hashes: np.ndarray, bits: int) -> None:
        index = faiss.IndexBinaryMultiHash(8 * _HASH_BYTES, _TABLES, 8 * _HASH_BYTES // _TABLES)
        index.nflip = bits // _TABLES
        hashes = np.ascontiguousarray(hashes)
        index.add(hashes)
        limits, found = [np.zeros(1, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(hashes), _QUERIES_AT_ONCE):
            ends, distances, rows = index.range_search(hashes[start : start + _QUERIES_AT_ONCE], bits + 1)
            queries = np.repeat(np.arange(len(ends) - 1), np.diff(ends.astype(np.int64)))
            limits.append(ends[1:].astype(np.int64) + limits[-1][-1])
            found.append(rows[np.lexsort((rows, distances, queries))])
        self._limits, self._found = np.concatenate(limits), np.concatenate(found)

    def of(self, number: int) -> list[int]:
        """The nearest first, which is the hash itself."""
        return self._found[self._limits[number] : self._limits[number + 1]].tolist()
