"""Images that are the same picture at another size or compression, in three steps, each dearer and surer.

1. dHash (N. Krawetz, "Kind of Like That", 2013) has a bit for each of 8 × 8 pairs of neighbours in a tiny grey copy: is
   the left one brighter? All are compared with all: of a million in minutes, 64 bits being one machine word.
2. It does not see colour, and in a catalogue the same shirt in blue is another item; so the colours of a 4 × 4 copy
   must agree.
3. Of shirts on the same table, and of invoices of the same firm, even that is alike. What is left is therefore
   compared in detail, by the thumbnails. Over 3,409 photos of clothes, 150 scanned receipts and 822 generated forms,
   copies (JPEG at quality 40 and 60, half the size, 5 % brighter) differ by up to 1.0, and different pictures by at
   least 1.3.
"""

from collections.abc import Callable

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
_BLOCK = 1024


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
    signatures: np.ndarray,
    is_same: Callable[[int, int], bool],
    *,
    bits: int = MOST_BITS,
    colour: int = MOST_COLOUR,
    earlier: int = 0,
    advance: Callable[[int], object] = lambda rows: None,
) -> np.ndarray:
    """For each row the first row that it is a near-duplicate of: int64 [N], its own number for most.

    Rows are compared with such first rows only, so that no chain of small steps joins what is far apart.
    Memory: 81 bytes a row, the signatures among them. Time grows with the rows times those that are not `earlier`.
    Args:
        signatures: uint8 [N, SIGNATURE_BYTES].
        is_same: the last word on two rows with near signatures.
        bits, colour: how far signatures may differ.
        earlier: how many of the rows, which come before the others, are first ones whatever they look like.
        advance: called with the number of rows done since the last call.
    """
    hashes = np.ascontiguousarray(signatures[:, :_HASH_BYTES])
    keys = hashes.view(np.uint64)[:, 0]
    first_of = np.arange(len(signatures))
    firsts = np.arange(earlier)
    index = faiss.IndexBinaryFlat(8 * _HASH_BYTES)  # of the hashes of `firsts`
    index.add(hashes[:earlier])
    for start in range(earlier, len(signatures), _BLOCK):
        block = slice(start, start + _BLOCK)
        is_first = np.ones(len(keys[block]), dtype=bool)
        for at, places in enumerate(_near_places(index, hashes[block], bits)):
            row = start + at
            near = np.bitwise_count(keys[start:row] ^ keys[row]) <= bits
            here = start + np.flatnonzero(near & is_first[:at])
            candidates = _nearest_in_colour(signatures, row, np.concatenate([firsts[places], here]), colour)
            first_of[row] = next((one for one in candidates if is_same(one, row)), row)
            is_first[at] = first_of[row] == row
        index.add(hashes[block][is_first])
        firsts = np.concatenate([firsts, start + np.flatnonzero(is_first)])
        advance(len(is_first))
    return first_of


def _near_places(index: faiss.IndexBinaryFlat, hashes: np.ndarray, bits: int) -> list[np.ndarray]:
    """For each hash the places in the index of the nearest within so many bits."""
    if not index.ntotal:
        return [np.empty(0, np.int64)] * len(hashes)
    distances, places = index.search(hashes, _MOST_CANDIDATES)
    return [row[(row >= 0) & (distance <= bits)] for row, distance in zip(places, distances, strict=True)]


def _nearest_in_colour(signatures: np.ndarray, row: int, candidates: np.ndarray, most: int) -> list[int]:
    """Those whose colours differ by no more than `most`, the first ones first; too many, and only the nearest."""
    if not len(candidates):
        return []
    colours = signatures[candidates, _HASH_BYTES:].astype(np.int16)
    distances = np.abs(colours - signatures[row, _HASH_BYTES:])
    alike = (distances <= most).all(axis=1)
    order = np.lexsort((candidates[alike], distances[alike].sum(axis=1)))[:_MOST_COMPARED]
    return sorted(candidates[alike][order].tolist())


def _fields(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Mean colours of the 64 × 64 fields, or fewer of a tiny picture, after scaling to `size`."""
    image = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    grid = max(1, min(_GRID, size[0] // 2, size[1] // 2))
    return np.asarray(image.resize((grid, grid), Image.Resampling.BOX), dtype=np.float64)
