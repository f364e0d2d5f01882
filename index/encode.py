"""Catalogue items to vectors, thumbnails and a ledger of rejects. The only file here that calls a model."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from fanoise.catalog import Item
from fanoise.errors import ArtifactError, CatalogError, ImageError, InputError
from fanoise.images import open_image
from index.items import ItemWriter, printable_text
from index.manifest import ITEMS, REJECTS, THUMBNAILS, VECTORS, EmbedderRef
from index.thumbnails import thumbnail_jpeg, thumbnail_path

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

# One query at a time per embedder: fast tokenizers and the model's train/eval switch are shared state.
_QUERY_LOCKS: "WeakKeyDictionary[Any, threading.Lock]" = WeakKeyDictionary()
_QUERY_LOCKS_GUARD = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """How many catalogue rows became vectors, and how many went to the ledger."""

    count: int
    rejected: int


def encode_catalog(
    embedder: "Embedder",
    items: Iterable[Item],
    folder: Path,
    *,
    root: Path,
    batch_size: int,
    advance: Callable[[int], Any] = lambda n: None,
) -> Encoded:
    """Write vectors.npy, items.parquet, thumbnails/ and rejects.jsonl of `items` into `folder`, batch by batch.

    A row is rejected when its image cannot be read, it has neither text nor image, or its embedding is not finite.
    Args:
        root: folder of the catalogue; image paths below it are stored relative to it.
        advance: called with the number of rows done since the last call.
    Raises: CatalogError if every row was rejected.
    """
    (folder / THUMBNAILS).mkdir()
    writer = ItemWriter()
    with _VectorFile(folder / VECTORS, embedder.dim) as vectors, _Ledger(folder / REJECTS, root) as rejects:
        for batch in _batches(items, batch_size):
            opened = [item for item in map(rejects.open_image_of, batch) if item is not None]
            for (item, source), vector in zip(opened, _encode_items(embedder, opened, batch_size), strict=True):
                if isinstance(vector, str):
                    rejects.add(source, vector)
                    continue
                sha256 = _write_thumbnail(folder, len(writer), item.image)
                writer.append(
                    id=item.id,
                    text=item.text,
                    image=rejects.path_of(source),
                    thumbnail_sha256=sha256,
                    fields=item.fields,
                )
                vectors.append(vector)
            advance(len(batch))
    if not len(writer):
        raise CatalogError(f"nothing to index: all {rejects.count} rows were rejected, the first being {rejects.first}")
    writer.write(folder / ITEMS)
    return Encoded(count=len(writer), rejected=rejects.count)


def encode_query(embedder: "Embedder", text: str | None, image: Path | str | bytes | Image.Image | None) -> np.ndarray:
    """float32 [1, D] of a query of text, image or both. Raises InputError for neither, ImageError for a bad image."""
    if not (text and text.strip()) and image is None:
        raise InputError("a query needs text, an image or both: got neither")
    opened = None if image is None else open_image(image)
    query = Item(text=printable_text(text) if text else None, image=opened)
    with _QUERY_LOCKS_GUARD:
        lock = _QUERY_LOCKS.setdefault(embedder, threading.Lock())
    with lock:
        return embedder.encode([query], role="query")


def load_embedder(ref: EmbedderRef, folder: Path, *, device: str | None = None) -> "Embedder":
    """The embedder that the manifest of the index in `folder` names."""
    from fanoise.embedder import Embedder

    if ref.path is None:
        return Embedder.from_pretrained(ref.hub_id or ref.name, device=device)
    path = folder / ref.path
    if not path.exists():
        raise ArtifactError(
            f"index {folder} names its embedder as {ref.path} (seen from the index), which is not there; "
            f"pass the embedder {ref.name!r} explicitly (--embedder) or move it back"
        )
    return Embedder.from_pretrained(path.resolve(), device=device)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _encode_items(
    embedder: "Embedder", opened: Sequence[tuple[Item, Item]], batch_size: int
) -> Sequence[np.ndarray | str]:
    """A vector, or the reason why there is none, for each item. A batch that fails is taken item by item."""
    if not opened:
        return []
    try:
        vectors = embedder.encode([item for item, _ in opened], role="item", batch_size=batch_size)
    except ImageError as error:
        if len(opened) == 1:
            return [error.reason]
        return [result for one in opened for result in _encode_items(embedder, [one], 1)]
    return [vector if np.isfinite(vector).all() else "its embedding is not finite" for vector in vectors]


def _write_thumbnail(folder: Path, row: int, image: Any) -> str | None:
    if image is None:
        return None
    data = thumbnail_jpeg(image)
    thumbnail_path(folder, row).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


class _Ledger:
    """rejects.jsonl, written as rows are rejected."""

    def __init__(self, path: Path, root: Path) -> None:
        self.count, self.first = 0, ""
        self._root = root
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def add(self, item: Item, reason: str) -> None:
        entry = {"id": printable_text(item.id), "path": self.path_of(item), "reason": printable_text(reason)}
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.count += 1
        if self.count == 1:
            self.first = f"{entry['id']!r} ({entry['path'] or 'no image'}): {entry['reason']}"

    def open_image_of(self, source: Item) -> tuple[Item, Item] | None:
        """(item ready for the embedder, item as the catalogue gave it), or None and a line in the ledger."""
        text = printable_text(source.text) if source.text else None
        item = replace(source, id=printable_text(source.id), text=text)
        if source.image is None:
            if text is None or not text.strip():
                self.add(source, "it has neither text nor image")
                return None
            return item, source
        try:
            return replace(item, image=open_image(source.image)), source
        except ImageError as error:
            self.add(source, error.reason)
            return None

    def path_of(self, item: Item) -> str | None:
        if not isinstance(item.image, (str, Path)):
            return None
        path = Path(item.image)
        return printable_text(str(path.relative_to(self._root) if path.is_relative_to(self._root) else path))


class _VectorFile:
    """A float32 .npy file that grows row by row, so that the vectors are never all in memory.

    NumPy pads the header of a .npy file so that the first axis can grow in place; we write the final header on close.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self._dim, self._count = dim, 0
        self._file: IO[bytes] = path.open("wb")
        self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        size = self._file.tell() - self._count * self._dim * 4
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == size, "the header of vectors.npy changed its length"
        self._file.close()

    def append(self, vector: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(vector, dtype="<f4").tobytes())
        self._count += 1

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._dim)}
        np.lib.format.write_array_header_1_0(self._file, header)
