"""Pairs as Arrow columns, as a `PairTable` keeps them, and the keys that say which are equal."""

import os
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Content = tuple[str | None, str | bytes | None]
"""A text, and an image: its path as the file has it, or its own bytes. What is missing is None, never empty."""
SCHEMA = pa.schema(
    [
        (f"{side}_{kind}", cells)
        for side in ("query", "positive")
        for kind, cells in (("text", pa.string()), ("image", pa.string()), ("bytes", pa.binary()))
    ]
    + [
        (f"negative_{kind}", pa.list_(cells))
        for kind, cells in (("text", pa.string()), ("image", pa.string()), ("bytes", pa.binary()))
    ]
    + [("group", pa.string())]
)
"""`_image` is a path, `_bytes` an image that was in the file."""
_KINDS = ("text", "image", "bytes")
_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACE += "\u2028\u2029\u202f\u205f\u3000"
"""What `str.isspace` and `str.strip` take for space; Arrow's own functions need not agree."""


class PairRow(NamedTuple):
    """A checked row of a pair file."""

    query: Content
    positive: Content
    negatives: Sequence[Content] = ()
    group: str = ""


class Side(NamedTuple):
    """Columns of one side's texts and image paths, null where there is none."""

    text: pa.Array
    image: pa.Array


def batch_of_rows(rows: Sequence[PairRow]) -> pa.RecordBatch:
    columns: list[Any] = [*_cells([row.query for row in rows]), *_cells([row.positive for row in rows])]
    columns += zip(*(_cells(row.negatives) for row in rows), strict=True)
    columns.append([row.group for row in rows])
    return pa.record_batch([pa.array(cells, each.type) for cells, each in zip(columns, SCHEMA, strict=True)], SCHEMA)


def batch_of_columns(
    query: Side, positive: Side, negative: Side, parents: np.ndarray, group: pa.Array | None = None
) -> pa.RecordBatch:
    """A batch whose images are all paths.

    Args:
        negative: of all rows one after the other; entries without text and image are left out.
        parents: for each of those the row it belongs to, ascending.
    """
    count = len(query.text)
    kept = pc.or_(negative.text.is_valid(), negative.image.is_valid())
    parents = parents[kept.to_numpy(zero_copy_only=False)]
    negatives = [*(column.filter(kept) for column in negative), pa.nulls(len(parents), pa.binary())]
    no_bytes = pa.nulls(count, pa.binary())
    group = pa.nulls(count, pa.string()) if group is None else group
    columns = [*query, no_bytes, *positive, no_bytes, *_lists(negatives, parents, count), pc.fill_null(group, "")]
    return pa.record_batch(columns, SCHEMA)


def without_equal_negatives(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """The batch without mined negatives that are their own pair's positive, and how many those were."""
    lists = [batch.column(f"negative_{kind}") for kind in _KINDS]
    parents = pc.list_parent_indices(lists[0]).to_numpy()
    equal = np.ones(len(parents), dtype=bool)
    for kind, cells in zip(_KINDS, lists, strict=True):
        negative, positive = cells.flatten(), batch.column(f"positive_{kind}").take(pa.array(parents))
        same = pc.fill_null(pc.equal(negative, positive), pa.scalar(False))
        both_null = pc.and_(negative.is_null(), positive.is_null())
        equal &= pc.or_(same, both_null).to_numpy(zero_copy_only=False)
    if not equal.any():
        return batch, 0
    kept = [cells.flatten().filter(pa.array(~equal)) for cells in lists]
    for kind, cells in zip(_KINDS, _lists(kept, parents[~equal], len(batch)), strict=True):
        place = SCHEMA.get_field_index(f"negative_{kind}")
        batch = batch.set_column(place, SCHEMA.field(place), cells)
    return batch, int(equal.sum())


def names_images(batch: pa.RecordBatch) -> bool:
    """Whether any image of the batch is a path."""
    columns = (batch.column("query_image"), batch.column("positive_image"), batch.column("negative_image").flatten())
    return any(column.null_count < len(column) for column in columns)


def batch_keys(batch: pa.RecordBatch, root: str) -> np.ndarray:
    """[N, 3] int64 keys of query, positive and group, where image paths start in the absolute path `root`."""
    group = batch.column("group")
    columns = [
        *(_content_keys([batch.column(f"{side}_{kind}") for kind in _KINDS], root) for side in ("query", "positive")),
        np.where(pc.equal(group, "").to_numpy(zero_copy_only=False), 0, _hashes(group)),
    ]
    return np.stack(columns, axis=1)


def content_key(text: str | None, image: str | bytes | None) -> int:
    """The key of one content, whose image is an absolute path or the image's bytes."""
    if isinstance(image, bytes):
        image = _fingerprint(image)
    return int(_hashes(pa.array([f"{len(text or '')} {text or ''}{image or ''}"]))[0])


def group_key(group: str) -> int:
    return int(_hashes(pa.array([group]))[0]) if group else 0


class ContentDigest:
    """A digest of a file's batches, the same wherever the file lies and however its rows are cut into batches.

    Of images that are in the file only their sizes count.
    """

    def __init__(self) -> None:
        self._parts = {
            (column, part): blake2b(digest_size=16) for column in SCHEMA.names for part in ("counts", "sizes", "text")
        }

    def update(self, batch: pa.RecordBatch) -> None:
        for name, cells in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_list(cells.type):
                self._parts[name, "counts"].update(pc.list_value_length(cells).to_numpy())
                cells = cells.flatten()
            self._parts[name, "sizes"].update(pc.fill_null(pc.binary_length(cells), -1).to_numpy())
            if pa.types.is_string(cells.type):
                self._parts[name, "text"].update(_together(pc.fill_null(cells, "")))

    def hexdigest(self) -> str:
        return blake2b(b"".join(part.digest() for part in self._parts.values()), digest_size=8).hexdigest()


def without_blanks(texts: pa.Array) -> pa.Array:
    """Null where `str.strip` leaves nothing; else the text as it is."""
    return _null_where(pc.equal(pc.utf8_trim(texts, characters=_SPACE), ""), texts)


def stripped(texts: pa.Array) -> pa.Array:
    """As `str.strip` does, null where nothing is left."""
    texts = pc.utf8_trim(texts, characters=_SPACE)
    return without_empty(texts)


def without_empty(texts: pa.Array) -> pa.Array:
    return _null_where(pc.equal(texts, ""), texts)


def plain_strings(cells: pa.Array) -> pa.Array | None:
    """The cells as UTF-8; None if they are anything else than strings."""
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if not (pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type) or pa.types.is_null(cells.type)):
        return None
    try:
        cells.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return cells.cast(pa.string())


def plain_side(batch: pa.RecordBatch, text: str, image: str) -> Side | None:
    """Two columns of a batch, null where there is no such column; None where they are anything else than strings."""
    nothing = pa.nulls(len(batch), pa.string())
    cells = [plain_strings(batch.column(name)) if name in batch.schema.names else nothing for name in (text, image)]
    return None if cells[0] is None or cells[1] is None else Side(*cells)


def is_filled(side: Side) -> bool:
    """Whether every row has a text or an image."""
    return not pc.any(pc.and_(side.text.is_null(), side.image.is_null())).as_py()


def _null_where(mask: pa.Array, cells: pa.Array) -> pa.Array:
    return pc.if_else(pc.fill_null(mask, pa.scalar(True)), pa.scalar(None, cells.type), cells)


def _lists(flat: Sequence[pa.Array], parents: np.ndarray, count: int) -> list[pa.Array]:
    offsets = np.concatenate([[0], np.cumsum(np.bincount(parents, minlength=count))])
    return [pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), cells) for cells in flat]


def _together(texts: pa.Array) -> pa.Buffer:
    """All texts in one."""
    whole = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    return pc.binary_join(whole, "")[0].as_buffer()


def _cells(contents: Sequence[Content]) -> tuple[list[str | None], list[str | None], list[bytes | None]]:
    return (
        [text for text, _ in contents],
        [image if isinstance(image, str) else None for _, image in contents],
        [image if isinstance(image, bytes) else None for _, image in contents],
    )


def _content_keys(columns: Sequence[pa.Array], root: str) -> np.ndarray:
    texts, paths, data = columns
    texts = pc.fill_null(texts, "")
    images = pc.fill_null(_absolute(paths, root), "")
    if data.null_count < len(data):
        buffers = (cell.as_buffer() for cell in data)  # not a copy
        own = pa.array([None if cell is None else _fingerprint(cell) for cell in buffers], pa.string())
        images = pc.coalesce(own, images)
    lengths = pc.cast(pc.utf8_length(texts), pa.string())
    return _hashes(pc.binary_join_element_wise(lengths, pc.binary_join_element_wise(texts, images, ""), " "))


def _absolute(paths: pa.Array, root: str) -> pa.Array:
    """What os.path.abspath makes of paths that start in `root`."""
    found = pc.binary_join_element_wise(os.path.join(root, ""), paths, "")  # noqa: PTH118  # keeps what Path tidies
    # an empty part, also before or after a slash, or one of dots
    odd = pc.fill_null(pc.match_substring_regex(paths, r"(^|/)\.{0,2}(/|$)"), pa.scalar(False))
    if pc.any(odd).as_py():
        tidy = [os.path.normpath(os.path.join(root, path)) for path in paths.filter(odd).to_pylist()]  # noqa: PTH118
        found = pc.replace_with_mask(found, odd, pa.array(tidy, pa.string()))
    return found


def _fingerprint(data: bytes | pa.Buffer) -> str:
    """Stands for an image's bytes where others have a path, which has no NUL in it."""
    return "\0" + blake2b(data, digest_size=16).hexdigest()


def _hashes(values: pa.Array) -> np.ndarray:
    """64 bits, the same in every process; two of a million values are equal by chance in 1 of 37 million files."""
    found = values.cast(pa.binary()).to_pylist()
    digests = {value: blake2b(value, digest_size=8).digest() for value in set(found)}
    return np.frombuffer(b"".join([digests[value] for value in found]), dtype="<i8")
