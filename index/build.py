"""Catalogue and embedder in, index folder out: all of it, or nothing."""

import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np
from tqdm import tqdm

import fanoise
from fanoise.catalog import Item, read_catalog
from fanoise.errors import InputError
from fanoise.storage import staged_directory
from index.encode import encode_catalog
from index.factory import choose_factory, measure_overlap, train_index
from index.manifest import (
    CHECKED_FILES,
    FAISS_INDEX,
    MANIFEST,
    THUMBNAILS,
    VECTORS,
    CatalogRef,
    EmbedderRef,
    FileRecord,
    Manifest,
    relative_to_index,
)

if TYPE_CHECKING:
    from fanoise.embedder import Embedder


def build_index(
    embedder: "Embedder",
    catalog: str | Path,
    out: str | Path,
    *,
    factory: str = "auto",
    text: str | None = None,
    image: str = "image",
    batch_size: int = 32,
    progress: bool = True,
) -> Manifest:
    """Encode the catalogue and write the index folder `out`, replacing an index that is there in one step.

    Args:
        factory: `auto`, or any FAISS factory string; its agreement with exact search goes into the manifest.
        text, image: which columns are embedded, as in `read_catalog`.
    A row that cannot be indexed goes to rejects.jsonl and is counted in the manifest.
    Raises: InputError for a bad option or an `out` that is not ours to replace, CatalogError for a bad catalogue;
        `out` is then as it was.
    """
    catalog, out = Path(catalog), Path(out).resolve()
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    _check_replaceable(out)
    choice = choose_factory(factory, embedder.dim)
    # Read once before encoding: a duplicate id in the last row is found in seconds, and the bar knows the end.
    total = _count(read_catalog(catalog, text=text, image=image))
    with staged_directory(out) as stage:
        items = read_catalog(catalog, text=text, image=image)
        root = catalog if catalog.is_dir() else catalog.parent
        with tqdm(total=total, unit=" items", desc=f"Encoding {catalog.name}", disable=not progress) as bar:
            encoded = encode_catalog(embedder, items, stage, root=root, batch_size=batch_size, advance=bar.update)
        vectors = np.asarray(np.load(stage / VECTORS, mmap_mode="r", allow_pickle=False))
        ann = train_index(choice.factory, vectors)
        faiss.write_index(ann, str(stage / FAISS_INDEX))
        manifest = Manifest(
            embedder=_embedder_ref(embedder, out),
            catalog=CatalogRef(name=catalog.resolve().name, path=relative_to_index(catalog, out), text=text),
            factory=choice.factory,
            factory_reason=choice.reason,
            ann_overlap=measure_overlap(ann, vectors),
            count=encoded.count,
            rejected=encoded.rejected,
            dim=embedder.dim,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            files={name: FileRecord.of(stage / name) for name in CHECKED_FILES},
        )
        manifest.write(stage)
    return manifest


def _check_replaceable(out: Path) -> None:
    """Only a missing or empty folder, or one with nothing but an index in it, may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    names = {entry.name for entry in out.iterdir()}
    if names and MANIFEST not in names:
        raise InputError(f"--out {out} is not empty and not an index; name another folder or empty it")
    foreign = sorted(names - {MANIFEST, THUMBNAILS, *CHECKED_FILES})
    if foreign:
        raise InputError(f"--out {out} also holds {foreign[0]!r}, which is no part of an index; move it away first")


def _count(items: Iterable[Item]) -> int:
    return sum(1 for _ in items)


def _embedder_ref(embedder: "Embedder", out: Path) -> EmbedderRef:
    is_local = Path(embedder.path).is_dir()
    return EmbedderRef(
        name=embedder.name,
        path=relative_to_index(Path(embedder.path), out) if is_local else None,
        hub_id=None if is_local else str(embedder.path),
        fingerprint=dict(embedder.fingerprint),
        noise=dict(embedder.noise),
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "fanoise": fanoise.__version__, "faiss": faiss.__version__}
    for package in ("numpy", "pyarrow", "pillow", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
