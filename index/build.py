"""Catalogue and embedder in, index folder out: all of it, or what was there before."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise.catalog.columns import ITEM
from fanoise.errors import ArtifactError, InputError
from index.ann import write_ann
from index.encoding.intake import Intake, Taken, check_apart
from index.encoding.progress import estimate_rows
from index.factory import check_factory
from index.generations import Writer, check_folder, room_needed, writing
from index.held_out import read_queries, text_queries
from index.manifest import DELETED, ITEMS, VECTORS, EmbedderRef, Manifest, relative_to_index
from index.parquet import read_parquet
from index.store import read_deleted
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
class Built(Taken):
    """What a build did."""

    manifest: Manifest | None
    """None where other processes are still at work: the last of them finishes the index."""
    removed: int = 0
    """Items of the index before that are no more."""


@dataclass(frozen=True, kw_only=True)
class Build(Intake):
    """The building of an index from a catalogue."""

    factory: str = "auto"
    """`auto`, or any FAISS factory string; its agreement with exact search goes into the manifest."""
    recall: float = RECALL
    """Share of the ten nearest items that searches are to find: what `auto` chooses by, and what is tuned to."""
    tune_queries: Path | None = None
    """File with a query in each line to tune with; none takes the texts of the catalogue, or else its vectors."""
    fresh: bool = False
    """Encode every row, whatever is known from a build that was broken off or from the index in `out`."""
    shared: bool = False
    """Other processes do the same with the same options: share the shards with them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_recall(self.recall)
        if self.tune_queries is not None:
            read_queries(self.tune_queries)

    def run(self) -> Built:
        check_folder(self.out)
        check_apart(self.catalog, self.out)
        options = self.shard_options
        check_factory(self.factory, options.dim)
        with room_needed(self.out), ExitStack() as stack:
            # alone, this process keeps other writers out from the start; of several, the last one at the end
            writer = None if self.shared else stack.enter_context(writing(self.out, "build"))
            folder, claims = stack.enter_context(self.planned(fresh=self.fresh))
            total = estimate_rows(self.catalog) if self.progress else None
            run = self.encode(folder, claims, known=None if self.fresh else self._current(), total=total)
            if run.missing() or not claims.take_assembly() or claims.are_void():
                return Built(manifest=None)
            writer = writer or stack.enter_context(writing(self.out, "build"))
            assembled = self.assemble(run.shards(), writer.stage)
            ann = write_ann(
                writer.stage,
                self.factory,
                recall=self.recall,
                queries=lambda: text_queries(self.embedder, self.tune_queries, writer.stage),
            )
            taken, removed = self.taken(run, assembled), _count_removed(writer)
            folder.mark_assembled(writer.stage / ITEMS)
            manifest = writer.commit(
                fresh=True,
                embedder=_embedder_ref(self.embedder, self.out),
                catalog=self.ref(),
                embedder_dim=self.embedder.dim,
                group_by=ITEM if run.counts().is_grouped else None,
                **ann,
            )
            folder.remove_assembled()
            return Built(manifest=manifest, removed=removed, **taken)

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
