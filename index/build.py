"""Catalogue and embedder in, index folder out: all of it, or what was there before."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise.catalog import catalog_root
from fanoise.catalog.patterns import is_pattern, pattern_root
from fanoise.errors import ArtifactError, CatalogError, InputError
from index.ann import write_ann
from index.encoding.assemble import NearDuplicates, assemble
from index.encoding.claims import Claims
from index.encoding.cut import SHARD_ROWS, catalog_rows
from index.encoding.encode import Encoder, settle_workers
from index.encoding.known import KnownRows
from index.encoding.plan import Plan, PlanFolder, catalog_state, remove_finished
from index.encoding.progress import Progress, estimate_rows
from index.encoding.run import ShardRun
from index.encoding.shard import ITEM, ShardOptions
from index.factory import check_factory
from index.generations import Writer, check_folder, room_needed, writing
from index.held_out import read_queries, text_queries
from index.items import read_parquet
from index.manifest import DELETED, ITEMS, VECTORS, CatalogRef, EmbedderRef, Manifest, relative_to_index
from index.store import PRECISIONS, Precision, read_deleted
from index.thumbnails import remove_unused
from index.tuning import RECALL, check_recall

if TYPE_CHECKING:
    from fanoise.embedder import Embedder


def build_index(embedder: "Embedder", catalog: str | Path, out: str | Path, **options: Any) -> Manifest:
    """Encode the catalogue and make it the index in the folder `out`, replacing one that is there in one step.

    Args:
        options: fields of `Build`.
    A row that cannot be indexed goes to rejects.jsonl and is counted in the manifest. Rows that the index in `out`
    holds already, made by the same embedder from the same text and image, are copied. Killed at any moment, the same
    call goes on where it was; whatever else goes wrong, `out` holds the index that it held.
    Raises: InputError for a bad option, an `out` that is not ours to replace or that another process is changing;
        CatalogError for a bad catalogue.
    """
    built = Build(embedder=embedder, catalog=Path(catalog), out=Path(out), **options).run()
    if built.manifest is None:
        raise InputError(f"{out} is being built by other processes as well; the last of them finishes it")
    return built.manifest


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build did, over all its processes and all times it was broken off."""

    manifest: Manifest | None
    """None where other processes are still at work: the last of them finishes the index."""
    encoded: int = 0
    encoded_elsewhere: int = 0
    """Of these, before the build was broken off, or by other processes."""
    reused: int = 0
    removed: int = 0
    """Items of the index before that are no more."""
    rejected: int = 0
    duplicates: int = 0
    """Near-duplicates, if they were looked for."""
    skips_duplicates: bool = False
    """Whether near-duplicates are among the rejected rows; else a field names the first of each."""
    seconds: float = 0.0
    """That this process spent on encoding."""
    model_seconds: float = 0.0
    """That this process spent in the model."""
    deaths: int = 0
    """Worker processes that died and were replaced."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """The building of an index from a catalogue."""

    embedder: "Embedder"
    catalog: Path
    out: Path
    factory: str = "auto"
    """`auto`, or any FAISS factory string; its agreement with exact search goes into the manifest."""
    recall: float = RECALL
    """Share of the ten nearest items that searches are to find: what `auto` chooses by, and what is tuned to."""
    tune_queries: Path | None = None
    """File with a query in each line to tune with; none takes the texts of the catalogue, or else its vectors."""
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
    fresh: bool = False
    """Encode every row, whatever is known from a build that was broken off or from the index in `out`."""
    shared: bool = False
    """Other processes do the same with the same options: share the shards with them."""
    near_duplicates: NearDuplicates | None = None
    """`report` images that are nearly the same in the field `duplicate_of`, or `skip` all but the first."""
    vectors: str | None = None
    """The column that holds the vectors, of the embedder's dimension, so that no row is encoded."""
    max_rejects: float = 1.0
    """The share of rows that may be rejected; above it there is no new index."""
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", self.out.resolve())
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
        if self.near_duplicates not in (None, *get_args(NearDuplicates)):
            raise InputError(
                f"near_duplicates must be {' or '.join(get_args(NearDuplicates))}, got {self.near_duplicates!r}"
            )
        if not 0 <= self.max_rejects <= 1:
            raise InputError(f"max_rejects must be from 0 to 1, got {self.max_rejects}")
        check_recall(self.recall)
        if self.tune_queries is not None:
            read_queries(self.tune_queries)

    def run(self) -> Built:
        check_folder(self.out)
        check_apart(self.catalog, self.out)
        dim = self.embedder.dim if self.dim is None else self.dim
        check_factory(self.factory, dim)
        options = ShardOptions(
            dim=dim, precision=self.precision, signatures=self.near_duplicates is not None, vectors=self.vectors
        )
        with room_needed(self.out), ExitStack() as stack:
            # alone, this process keeps other writers out from the start; of several, the last one at the end
            writer = None if self.shared else stack.enter_context(writing(self.out, "build"))
            folder = PlanFolder(self.out, self._plan(options))
            claims = stack.enter_context(folder.open(fresh=self.fresh))
            stack.callback(folder.remove_if_empty, claims)
            built, run = self._encode(folder, claims, options)
            if run.missing() or not claims.take_assembly() or claims.are_void():
                return built
            writer = writer or stack.enter_context(writing(self.out, "build"))
            counts, shards = run.counts(), run.shards()
            assembled = assemble(
                shards,
                writer.stage,
                index=self.out,
                dim=dim,
                precision=self.precision,
                near_duplicates=self.near_duplicates,
                max_rejects=self.max_rejects,
                progress=self.progress,
            )
            ann = write_ann(
                writer.stage,
                self.factory,
                recall=self.recall,
                queries=lambda: text_queries(self.embedder, self.tune_queries, writer.stage),
            )
            removed = _count_removed(writer)
            folder.mark_assembled(writer.stage / ITEMS)
            manifest = writer.commit(
                fresh=True,
                embedder=_embedder_ref(self.embedder, self.out),
                catalog=catalog_ref(self.catalog, self.out, text=self.text, vectors=self.vectors, **self._reading),
                embedder_dim=self.embedder.dim,
                group_by=ITEM if counts.is_grouped else None,
                **ann,
            )
            # while our shards are there no other build begins, whose first thumbnails nothing names yet
            remove_unused(self.out, sorted(self.out.glob(f"generation-*/{ITEMS}")))
            remove_finished(self.out, manifest.generation_in(self.out))
            return replace(
                built,
                manifest=manifest,
                encoded=counts.encoded,
                encoded_elsewhere=max(0, counts.encoded - run.encoded_here),
                reused=counts.reused,
                removed=removed,
                rejected=assembled.rejected,
                duplicates=assembled.duplicates,
                skips_duplicates=self.near_duplicates == "skip",
            )

    def _plan(self, options: ShardOptions) -> Plan:
        images = None if self.images is None else str(Path(self.images).resolve())
        return Plan(
            catalog=catalog_state(self.catalog),
            reading={"text": self.text, **self._reading, "images": images},
            fingerprint=self.embedder.fingerprint,
            shard_rows=self.shard_rows,
            options=options,
        )

    def _encode(self, folder: PlanFolder, claims: Claims, options: ShardOptions) -> tuple[Built, ShardRun]:
        """One pass over the catalogue; more where a process that had claimed a shard has died, or shards were of other
        rows."""
        built = Built(manifest=None)
        total = estimate_rows(self.catalog) if self.progress else None
        with Progress(self.catalog.name, total, shown=self.progress) as progress:
            run = ShardRun(folder, claims, shard_rows=self.shard_rows, progress=progress)
            while True:
                known = (
                    None
                    if self.fresh
                    else KnownRows(
                        [*self._current(), *folder.earlier_shards()],
                        index=self.out,
                        dim=options.dim,
                        precision=options.precision,
                    )
                )
                workers, rows = settle_workers(
                    self.workers, catalog_rows(self.catalog, text=self.text, **self._reading)
                )
                with Encoder(
                    self.embedder,
                    options,
                    batch_size=self.batch_size,
                    workers=workers,
                    index=self.out,
                    root=catalog_root(self.catalog),
                    known=known,
                ) as encoder:
                    run.encode(encoder, rows)
                    built = replace(
                        built,
                        seconds=built.seconds + encoder.seconds,
                        model_seconds=built.model_seconds + encoder.model_seconds,
                        deaths=built.deaths + encoder.deaths,
                    )
                if catalog_state(self.catalog) != folder.plan.catalog:
                    raise CatalogError(
                        f"{self.catalog} was changed while it was read; run the command again, which encodes only "
                        "what has changed"
                    )
                if not run.missing() or run.is_left_to_others():
                    return built, run

    @property
    def _reading(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("image", "images", "allow_outside", "allow_urls")}

    def _current(self) -> list[Path]:
        """The current generation of the index in `out`, if there is one that this embedder made, and it is sound."""
        try:
            manifest = Manifest.read(self.out)
        except (InputError, ArtifactError):
            return []
        if manifest.embedder.fingerprint != dict(self.embedder.fingerprint):
            return []
        if any(manifest.file_problems(self.out, names=(VECTORS, ITEMS))):
            return []
        return [manifest.generation_in(self.out)]


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
        reading: goes to `read_catalog`, too, but for `vectors`, the column that the vectors are taken from.
    """
    defaults = {"image": "image", "allow_outside": False, "allow_urls": False}
    options: Any = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in reading.items()
        if value != defaults.get(name)
    }
    if images is not None:
        options["images"] = relative_to_index(Path(images), folder)
    return CatalogRef(name=catalog.resolve().name, path=relative_to_index(catalog, folder), text=text, options=options)


def _count_removed(writer: Writer) -> int:
    """Items of the generation before whose ids are not in the stage."""
    if writer.manifest is None or writer.current is None:
        return 0
    try:
        deleted = read_deleted(writer.current / DELETED, writer.manifest.count)
        before = read_parquet(writer.current / ITEMS, columns=["id"])["id"]
    except (ArtifactError, OSError, ValueError):  # what is damaged is being replaced
        return 0
    live = np.ones(len(before), dtype=bool)
    live[deleted] = False
    after = read_parquet(writer.stage / ITEMS, columns=["id"])["id"]
    return pc.sum(pc.invert(pc.is_in(before.filter(pa.array(live)), value_set=after.combine_chunks()))).as_py() or 0


def _embedder_ref(embedder: "Embedder", out: Path) -> EmbedderRef:
    is_local = Path(embedder.path).is_dir()
    return EmbedderRef(
        name=embedder.name,
        path=relative_to_index(Path(embedder.path), out) if is_local else None,
        hub_id=None if is_local else str(embedder.path),
        fingerprint=dict(embedder.fingerprint),
        noise=dict(embedder.noise),
    )
