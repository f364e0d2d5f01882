"""`manifest.json`: which generation of an index is current, what it holds, and which embedder its vectors belong to.

Layout of an index folder, all of it relocatable, nothing pickled:

    manifest.json        replaced in one step, which is the commit; carries the size and SHA-256 of the five files below
                         and a digest of itself
    generation-000003/   never changed once committed (see `index.generations`)
        vectors.npy      [N, D] unit rows, in catalogue order (see `index.store`)
        items.parquet    row, id, text, image, thumbnail_sha256, content_sha256, fields (a struct: a member per field),
                         and signature, where near-duplicates were looked for
        index.faiss      the FAISS index over the vectors; row numbers are its labels
        rejects.jsonl    id, path, reason of every catalogue row that could not be indexed
        deleted.npy      int64, ascending: rows that are gone
    thumbnails/ab/<sha256>.jpg     by content, shared by all generations; their SHA-256 sit in items.parquet
    encoding/            finished parts of a build, add or update that is not
    .lock                held by who changes the index
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

import fanoise
from fanoise.errors import ArtifactError, InputError, one_line
from fanoise.storage import sha256_file, write_atomic
from index.checked import UNFIT, Checked, record_of
from index.store import Precision

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
VECTORS = "vectors.npy"
ITEMS = "items.parquet"
FAISS_INDEX = "index.faiss"
REJECTS = "rejects.jsonl"
DELETED = "deleted.npy"
GENERATION_FILES = (VECTORS, ITEMS, FAISS_INDEX, REJECTS, DELETED)
THUMBNAILS = "thumbnails"
ENCODING = "encoding"
REBUILD = "`python -m index build --embedder … --catalog … --out …`"

LONGEST_FACTORY = 256
"""Characters of a FAISS factory string, which FAISS takes apart with regular expressions that recurse."""
_MOST_DIM = 1 << 20
"""FAISS counts dimensions, and bytes of a vector, in 32 bits."""
_MOST_MS = 1e6


class CatalogOptions(TypedDict, total=False):
    """As in `index.encoding.intake.Intake`; `images` is relative to the index folder."""

    image: str | list[str]
    images: str
    allow_outside: bool
    allow_urls: bool
    vectors: str
    near_duplicates: str


class CurvePoint(TypedDict):
    """What one setting of the search parameters does: `parameters` as "nprobe=8", `ms` a query."""

    parameters: str
    recall: float
    ms: float


class Tuning(TypedDict, total=False):
    """What search parameters were tuned to: the `target`, and the `recall` reached for a number of `queries`."""

    target: float
    recall: float
    queries: int
    source: str
    others: int
    """Number of other queries, of the same source, that the parameters were chosen with; 0 for these very ones."""
    reached: bool
    """Whether the target is below the recall's interval of one standard error, for the queries that chose."""
    overlap: float
    """`ann_overlap` right after tuning: what additions are judged by, however many there are."""


@dataclass(frozen=True, kw_only=True)
class FileRecord(Checked):
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(sha256=sha256_file(path), size_bytes=path.stat().st_size)


@dataclass(frozen=True, kw_only=True)
class EmbedderRef(Checked):
    """Where the embedder is (`path` relative to the index folder, or a `hub_id`) and what it was."""

    name: str
    path: str | None
    hub_id: str | None
    fingerprint: dict[str, str]
    noise: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.path or self.hub_id or self.name


@dataclass(frozen=True, kw_only=True)
class CatalogRef(Checked):
    """The catalogue, `path` relative to the index folder; `text` is the column or template, None the default.

    `options` are the other arguments of `fanoise.catalog.read_catalog` that differ from their defaults; `vectors`, the
    column that the vectors were taken from, where there is one; and `near_duplicates`, if they were looked for.
    """

    name: str
    path: str
    text: str | None
    options: CatalogOptions = field(default_factory=CatalogOptions)


@dataclass(frozen=True, kw_only=True)
class Manifest(Checked):
    """Everything `Index.open` checks, and what a reader of results needs to know. See the module for the folder."""

    format_version: int = FORMAT_VERSION
    generation: int
    """1 for the first; every change is the next."""
    embedder: EmbedderRef
    catalog: CatalogRef
    added: list[CatalogRef] = field(default_factory=list)
    """Catalogues that `add` and `update` took rows from, since the build."""
    metric: Literal["ip"] = "ip"
    factory: str
    factory_reason: str
    ann_overlap: float
    """Share of the exact ten nearest rows that the index finds for sampled rows; 1.0 for an exact index."""
    count: int
    """Rows, deleted ones among them."""
    deleted: int
    rejected: int
    dim: int
    """Dimension of the stored vectors: the first of the embedder's `embedder_dim`."""
    embedder_dim: int
    precision: Precision
    group_by: str | None = None
    """Field by which hits are grouped unless a search says otherwise."""
    search: dict[str, int] = field(default_factory=dict)
    """FAISS search parameters as tuned, such as nprobe and efSearch."""
    curve: list[CurvePoint] = field(default_factory=list)
    """At several search parameters."""
    tuning: Tuning = field(default_factory=Tuning)
    """Empty for an exact index, which has nothing to tune."""
    created: str
    versions: dict[str, str]
    files: dict[str, FileRecord]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("generation", 1),
            ("count", 1),
            ("dim", 1),
            ("embedder_dim", 1),
            ("deleted", 0),
            ("rejected", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if self.deleted >= self.count:
            raise ValueError(f"deleted must be below count {self.count}, got {self.deleted}")
        if len(self.factory) > LONGEST_FACTORY:
            raise ValueError(f"factory must have at most {LONGEST_FACTORY} characters, got {len(self.factory)}")
        if self.embedder_dim > _MOST_DIM:
            raise ValueError(f"embedder_dim must be at most {_MOST_DIM}, got {self.embedder_dim}")
        if self.dim > self.embedder_dim:
            raise ValueError(f"dim must be at most embedder_dim {self.embedder_dim}, got {self.dim}")
        recalls = [self.ann_overlap, *(point["recall"] for point in self.curve)]
        if self.tuning:
            missing = sorted({"target", "recall", "queries", "source"} - set(self.tuning))
            if missing:
                raise ValueError(f"tuning lacks {', '.join(missing)}")
            recalls += [self.tuning["target"], self.tuning["recall"]]
        if not all(0 <= recall <= 1 for recall in recalls):
            raise ValueError(f"ann_overlap and recalls must be from 0 to 1, got {recalls}")
        if not all(0 <= point["ms"] <= _MOST_MS for point in self.curve):
            raise ValueError(f"ms of the curve must be from 0 to {_MOST_MS:g}, got {[p['ms'] for p in self.curve]}")
        # A fixed set: a file name taken from the manifest can therefore never lead out of the folder.
        if sorted(self.files) != sorted(GENERATION_FILES):
            raise ValueError(f"files must be {', '.join(GENERATION_FILES)}, got {', '.join(map(str, self.files))}")

    @property
    def live(self) -> int:
        """Rows that a search can return."""
        return self.count - self.deleted

    def generation_in(self, folder: Path) -> Path:
        """The folder of this generation's files."""
        return generation_path(folder, self.generation)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, folder: Path) -> None:
        content = self.to_dict()
        text = json.dumps(content | {"digest": _digest(content)}, indent=2, ensure_ascii=False)
        write_atomic(folder / MANIFEST, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check the manifest alone.

        Raises: InputError if there is no index, ArtifactError if it is damaged, OSError where it may not be read.
        """
        file = folder / MANIFEST
        if os.path.lexists(file) and not file.is_file():  # else its generations would be taken for leftovers
            raise ArtifactError(f"{file} is no file; put the index's own back, or rebuild the index with {REBUILD}")
        if not file.is_file():
            if (folder / ENCODING).is_dir():
                raise InputError(
                    f"{folder} is not finished: run the same `index build` again, which goes on where it was"
                )
            what = "has no manifest.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
            raise InputError(f"{folder} is not an index: it {what}; build one with {REBUILD}")
        try:
            content = json.loads(file.read_bytes())
            version = content["format_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{file} is damaged ({one_line(error)}); rebuild the index with {REBUILD}") from error
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{file} has format version {version!r}, this version reads {FORMAT_VERSION}; rebuild it with {REBUILD}"
            )
        try:
            if content.pop("digest", None) != _digest(content):
                raise ValueError("its digest does not match its content")
            json.dumps(content, ensure_ascii=False).encode()  # UnicodeEncodeError for half a character
            content["embedder"] = record_of(EmbedderRef, content["embedder"])
            content["catalog"] = record_of(CatalogRef, content["catalog"])
            content["added"] = [record_of(CatalogRef, catalog) for catalog in content["added"]]
            content["files"] = {name: record_of(FileRecord, record) for name, record in content["files"].items()}
            return record_of(cls, content)
        except UNFIT as error:
            raise ArtifactError(f"{file} is damaged ({one_line(error)}); rebuild the index with {REBUILD}") from error

    def file_problems(
        self, folder: Path, *, checksums: bool = True, names: Iterable[str] = GENERATION_FILES
    ) -> Iterator[str]:
        """One line for each file that is missing, of another size or (`checksums`) of other content."""
        for name in names:
            path, record = self.generation_in(folder) / name, self.files[name]
            if not path.is_file():
                yield f"{path} is missing"
            elif path.stat().st_size != record.size_bytes:
                yield f"{path} has {path.stat().st_size} bytes instead of {record.size_bytes}"
            elif checksums and sha256_file(path) != record.sha256:
                yield f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}"

    def check_embedder(self, folder: Path, embedder: "Embedder") -> None:
        """As the function of this name, for the index in `folder`."""
        check_embedder(self.embedder, str(folder), embedder)


def check_embedder(ref: EmbedderRef, index: str, embedder: "Embedder") -> None:
    """Raise ArtifactError naming each part of the fingerprint in which `embedder` is not the one that made `index`."""
    ours, theirs = ref.fingerprint, dict(embedder.fingerprint)
    parts = [part for part in (*ours, *(set(theirs) - set(ours))) if ours.get(part) != theirs.get(part)]
    if not parts:
        return
    first = parts[0]
    also = f" (and another {', '.join(parts[1:])})" if parts[1:] else ""
    raise ArtifactError(
        f"index {index} was built with other {first} ({_short(ours.get(first))}) than embedder {embedder.name!r} "
        f"({_short(theirs.get(first))}){also}; rebuild it with {REBUILD} or pass the embedder it names: {ref}"
    )


def library_versions() -> dict[str, str]:
    """What the files of an index were written with."""
    import faiss  # not at the top: `info` needs nothing of it

    versions = {"python": platform.python_version(), "fanoise": fanoise.__version__, "faiss": faiss.__version__}
    for package in ("numpy", "pyarrow", "pillow", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def generation_path(folder: Path, number: int) -> Path:
    return folder / f"generation-{number:06d}"


def relative_to_index(path: Path, folder: Path) -> str:
    """`path` as seen from the index folder, so that both can move together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value if len(value) <= 12 else f"{value[:12]}…"
