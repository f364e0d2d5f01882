"""The embedder that an index names, and the vector of a query."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from fanoise.catalog import Item
from fanoise.errors import ArtifactError, InputError
from fanoise.images import open_image
from fanoise.values import printable_text
from index.manifest import EmbedderRef

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

# One query at a time per embedder: fast tokenizers and the model's train/eval switch are shared state.
_QUERY_LOCKS: "WeakKeyDictionary[Any, threading.Lock]" = WeakKeyDictionary()
_QUERY_LOCKS_GUARD = threading.Lock()


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
    """The embedder that the manifest of the index in `folder` names.

    Raises: ArtifactError if it names no place, or one that there is not.
    """
    from fanoise.embedder import Embedder

    if ref.path is None:
        if ref.hub_id is None:  # the name is for people: on the hub it may be anybody's
            raise ArtifactError(
                f"index {folder} does not say where its embedder {ref.name!r} is, neither as a path nor as a hub id; "
                "pass it explicitly (--embedder)"
            )
        return Embedder.from_pretrained(ref.hub_id, device=device)
    path = folder / ref.path
    if not path.exists():
        raise ArtifactError(
            f"index {folder} names its embedder as {ref.path} (seen from the index), which is not there; "
            f"pass the embedder {ref.name!r} explicitly (--embedder) or move it back"
        )
    return Embedder.from_pretrained(path.resolve(), device=device)
