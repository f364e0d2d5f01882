"""A catalogue on its way into an index: how it is read, and its rows as shards. For build, add and update alike."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fanoise.catalog import Item, catalog_root
from fanoise.catalog.patterns import is_pattern, pattern_root
from fanoise.errors import CatalogError, InputError
from index.claims import Claims
from index.encoding.assemble import Assembled, assemble
from index.encoding.cut import SHARD_ROWS, catalog_rows, cut
from index.encoding.encode import Encoder, settle_workers
from index.encoding.known import KnownRows
from index.encoding.plan import Plan, PlanFolder, catalog_state
from index.encoding.progress import Progress
from index.encoding.rejects import Reject
from index.encoding.run import ShardRun
from index.encoding.shard import ShardOptions
from index.generations import sweep_thumbnails
from index.manifest import CatalogRef, relative_to_index
from index.store import PRECISIONS, Precision

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

_SUFFIXES = 9
"""That files which are passed over are counted by."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of the rows, over all processes and all times that the command was broken off."""

    encoded: int = 0
    """Rows with a new vector: made by the model, or taken from the catalogue."""
    vectors_given: bool = False
    """Whether these were taken from the catalogue."""
    encoded_elsewhere: int = 0
    """Of these, before the command was broken off, or by other processes."""
    reused: int = 0
    rejected: int = 0
    duplicates: int = 0
    """Near-duplicates, if they were looked for."""
    named_duplicates: int = 0
    """Of these, rows that were kept, and name the first one in a field; the others are rejected."""
    seconds: float = 0.0
    """That this process spent on encoding."""
    model_seconds: float = 0.0
    """That this process spent in the model."""
    deaths: int = 0
    """Worker processes that died and were replaced."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Files of a folder, and members of tars, of no kind that is read, by suffix, the most frequent first; "" are those
    without one, `other` those of rarer ones."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """How the rows of a catalogue are read, encoded, and kept until they are in an index."""

    embedder: "Embedder"
    catalog: Path
    out: Path
    """The index folder: finished shards are kept in it, and thumbnails go to it directly."""
    text: str | None = None
    """Which column is embedded as text, or a template, as in `read_catalog`."""
    image: str | Sequence[str] = "image"
    """The columns with images, as in `read_catalog`; several images of a row are items of one group."""
    images: str | Path | None = None
    """Where relative image paths start; none for the catalogue's folder."""
    allow_outside: bool = False
    """Let paths in a table lead out of that folder."""
    allow_urls: bool = False
    """Fetch images whose URL a table gives."""
    vectors: str | None = None
    """The column that holds the vectors, of the embedder's dimension, so that no row is encoded."""
    precision: Precision = "fp32"
    """At which the vectors are stored, see `index.store`."""
    dim: int | None = None
    """Keep the first dimensions of each vector only, normalised again; none keeps all."""
    batch_size: int = 32
    """The most rows that go through the model at once."""
    workers: int | None = None
    """Processes that open images and make batches of them; 0 does it in this one, none chooses by the cores."""
    shard_rows: int = SHARD_ROWS
    """Catalogue rows that are finished, and kept, together."""
    near_duplicates: Literal["off", "report", "skip"] = "off"
    """`report` images that are nearly the same in the field `duplicate_of`, or `skip` all but the first."""
    max_rejects: float = 1.0
    """The share of rows that may be rejected; above it the index is left as it was."""
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", self.out.resolve())
        object.__setattr__(self, "vectors", self.vectors or None)
        for name, least in (("batch_size", 1), ("shard_rows", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.dim is not None and not 1 <= self.dim <= self.embedder.dim:
            raise InputError(
                f"dim must be from 1 to {self.embedder.dim}, the dimension of embedder {self.embedder.name!r}, "
                f"got {self.dim}"
            )
        if self.near_duplicates not in ("off", "report", "skip"):
            raise InputError(f"near_duplicates must be off, report or skip, got {self.near_duplicates!r}")
        if not 0 <= self.max_rejects <= 1:
            raise InputError(f"max_rejects must be from 0 to 1, got {self.max_rejects}")

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of `read_catalog`."""
        return {name: getattr(self, name) for name in ("text", "image", "images", "allow_outside", "allow_urls")}

    @property
    def shard_options(self) -> ShardOptions:
        return ShardOptions(
            dim=self.embedder.dim if self.dim is None else self.dim,
            precision=self.precision,
            signatures=self.near_duplicates != "off",
            vectors=self.vectors,
        )

    def rows(self, on_other: Callable[[str], object] | None = None) -> Iterator[Item | Reject]:
        return catalog_rows(self.catalog, **self.reading, vectors=self.vectors, on_other=on_other)

    def ref(self) -> CatalogRef:
        """The catalogue as the manifest names it."""
        others = {"vectors": self.vectors, "near_duplicates": self.near_duplicates}
        return catalog_ref(self.catalog, self.out, **self.reading, **others)

    def first_admitted(self, rows: Iterable[Item | Reject]) -> Item | None:
        """The first of these rows that would not be rejected, so far as that shows without the model, if any."""
        with self._encoder(1, None) as encoder:  # a picture may end the process that opens it
            for shard in cut(rows, self.batch_size):
                if items := encoder.admitted(shard):
                    return items[0]
        return None

    @contextmanager
    def planned(self, *, fresh: bool = False) -> Iterator[tuple[PlanFolder, Claims]]:
        """The folder of finished shards, those of a try that was broken off among them.

        Args:
            fresh: as in `PlanFolder.open`.
        """
        images = None if self.images is None else str(Path(self.images).resolve())
        plan = Plan(
            catalog=catalog_state(self.catalog),
            reading=self.reading | {"images": images},
            fingerprint=self.embedder.fingerprint,
            shard_rows=self.shard_rows,
            options=self.shard_options,
        )
        folder = PlanFolder(self.out, plan, catalog_root(self.catalog))
        with ExitStack() as stack:
            # of generations that are gone, and of rows in no finished shard; once others need not wait for our claims
            stack.push(self._sweep)
            claims = stack.enter_context(folder.open(fresh=fresh))
            stack.callback(folder.remove_if_empty, claims)
            yield folder, claims

    def _sweep(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):  # which is not to wait; the next command sweeps
            sweep_thumbnails(self.out)

    def encode(
        self, folder: PlanFolder, claims: Claims, *, known: Sequence[Path] | None = (), total: int | None = None
    ) -> ShardRun:
        """One pass over the catalogue; more where a process that had claimed a shard has died, or shards were of other
        rows.

        Args:
            known: generations whose vectors are copied, as are those of earlier shards; None encodes all that is not
                in a finished shard.
            total: about how many rows there are, for the progress bar.
        Raises: CatalogError for a bad catalogue, or one that was changed meanwhile.
        """
        with Progress(self.catalog.name, total, shown=self.progress) as progress:
            run = ShardRun(folder, claims, shard_rows=self.shard_rows, progress=progress)
            while True:
                run.passed_over.clear()
                workers, rows = settle_workers(self.workers, self.rows(run.pass_over))
                with self._encoder(workers, None if known is None else [*known, *folder.earlier_shards()]) as encoder:
                    run.encode(encoder, rows)
                if catalog_state(self.catalog) != folder.plan.catalog:
                    raise CatalogError(
                        f"{self.catalog} was changed while it was read; run the command again, which encodes only "
                        "what has changed"
                    )
                if not run.missing() or run.is_left_to_others():
                    return run

    def assemble(self, shards: Sequence[Path], folder: Path, **options: Any) -> Assembled:
        """The finished shards as files in `folder`. Other arguments and errors are those of `assemble`."""
        return assemble(
            shards,
            folder,
            index=self.out,
            dim=self.shard_options.dim,
            precision=self.precision,
            near_duplicates=None if self.near_duplicates == "off" else self.near_duplicates,
            max_rejects=self.max_rejects,
            progress=self.progress,
            **options,
        )

    def taken(self, run: ShardRun, assembled: Assembled) -> dict[str, Any]:
        """Fields of `Taken`."""
        counts = run.counts()
        return {
            "encoded": counts.encoded,
            "vectors_given": self.vectors is not None,
            "encoded_elsewhere": max(0, counts.encoded - run.encoded_here),
            "reused": counts.reused,
            "rejected": assembled.rejected,
            "duplicates": assembled.duplicates,
            "named_duplicates": assembled.named,
            "seconds": run.seconds,
            "model_seconds": run.model_seconds,
            "deaths": run.deaths,
            "passed_over": _shortened(run.passed_over),
        }

    def _encoder(self, workers: int, known: Sequence[Path] | None) -> Encoder:
        options = self.shard_options
        rows = None if known is None else KnownRows(known, index=self.out, dim=options.dim, precision=options.precision)
        return Encoder(
            self.embedder,
            options,
            batch_size=self.batch_size,
            workers=workers,
            index=self.out,
            root=catalog_root(self.catalog),
            known=rows,
        )


def _shortened(counts: Counter[str]) -> dict[str, int]:
    most = dict(counts.most_common(_SUFFIXES))
    rest = counts.total() - sum(most.values())
    return most | ({"other": rest} if rest else {})


def check_apart(catalog: Path, folder: Path) -> None:
    """Refuse an index in a catalogue that is a folder, whose items its thumbnails would become. Raises InputError."""
    if is_pattern(catalog):
        root = pattern_root(catalog)
        if len(catalog.relative_to(root).parts) == 1:  # it names files of that folder itself, none in a folder below
            return
    elif catalog.is_dir():
        root = catalog
    else:
        return
    if folder.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"index folder {folder} lies in the catalogue {catalog}, so its own pictures would become items; "
            "name a folder outside it"
        )


def catalog_ref(
    catalog: Path, folder: Path, *, text: str | None, images: str | Path | None = None, **reading: Any
) -> CatalogRef:
    """A catalogue as the manifest of the index in `folder` names it.

    Args:
        reading: goes to `read_catalog`, too, but for `vectors` and `near_duplicates`, as in `Intake`.
    """
    defaults = {"image": "image", "allow_outside": False, "allow_urls": False, "near_duplicates": "off"}
    options: Any = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in reading.items()
        if value != defaults.get(name)
    }
    if images is not None:
        options["images"] = relative_to_index(Path(images), folder)
    return CatalogRef(name=catalog.resolve().name, path=relative_to_index(catalog, folder), text=text, options=options)
