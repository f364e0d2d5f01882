"""Change an index: add, update, delete, compact. Each commits a new generation; searching goes on in the one before.

FAISS types such as HNSW cannot forget a row. So a deleted row keeps its place and its vector, and is only marked: its
number goes into deleted.npy, and no search returns it. `compact` makes an index without such rows.
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fanoise.catalog.columns import ITEM
from fanoise.errors import CatalogError, InputError
from fanoise.values import printable_text
from index.ann import Queries, tune_and_measure, write_ann
from index.current import Current
from index.encoding.cut import referenced_images
from index.encoding.earlier import write_earlier
from index.encoding.intake import Intake, Taken, check_apart
from index.encoding.plan import PlanFolder, remove_finished
from index.encoding.rejects import read_rejects, write_rejects
from index.factory import add_rows, check_factory
from index.faiss_file import write_index
from index.generations import Writer, writing
from index.held_out import measure_overlap, text_queries
from index.identity import Existing, Names, names_of_row, names_of_rows, odd_rows, refusal
from index.items import SIGNATURE, Items
from index.join import join_items
from index.losses import Given, check_losses
from index.manifest import (
    DELETED,
    FAISS_INDEX,
    ITEMS,
    REBUILD,
    REJECTS,
    VECTORS,
    Manifest,
)
from index.parts import open_ann
from index.store import VectorStore, VectorWriter, write_deleted
from index.tuning import RECALL

if TYPE_CHECKING:
    from fanoise.embedder import Embedder

_NEW, _EARLIER = "new", "earlier"
_LEAST_LOSS = 0.01
"""Of neighbours found, after rows were added, from which on the index is tuned again."""


@dataclass(frozen=True, kw_only=True)
class Change(Taken):
    """What a command did to an index; `manifest` is the current one, an older one where there was nothing to do."""

    manifest: Manifest
    added: int = 0
    """Rows that are new, those that replace others among them."""
    deleted: int = 0
    """Rows that are gone, those that were replaced among them."""
    notes: list[str] = field(default_factory=list)
    """What became of fields, and is easily overlooked."""


def add_items(
    embedder: "Embedder",
    catalog: str | Path,
    folder: str | Path,
    *,
    existing: Existing = "refuse",
    drop_columns: bool = False,
    **options: Any,
) -> Change:
    """Append the rows of a catalogue to an index. Only they are encoded; those known with the same content are copied.

    Killed at any moment, the index is as it was, and the same call goes on where it was.
    Args:
        existing: what of ids that are in the index already? `refuse` them; let the new rows `replace` the old ones; or
            `require` them, so that rows are replaced and none is new. In an index that groups several rows to an item,
            a row is known if its item is, and new rows replace all rows of their item; one that names no item is
            refused where it would replace one of several rows of an item, whose others would stay. A row that is
            rejected replaces nothing; one that replaces others is never skipped as a near-duplicate, but reported as
            one. The first rows that are several images of an item make an index one that groups them.
        drop_columns: rows may lose their text, their images or fields that the catalogue has in no row.
        options: fields of `Intake`. `text`, `image`, `images`, `vectors` and `near_duplicates` are by default, and
            where None, as in the build (`vectors` of "" encodes the rows); `allow_outside` and `allow_urls` are not.
    Raises: InputError for ids that are in the index, or not, and for columns that would be lost; CatalogError for a bad
        catalogue; ArtifactError for another embedder or a damaged index. Nothing is changed then.
    """
    catalog = Path(catalog)
    check_apart(catalog, Path(folder))
    with writing(Path(folder), "update" if existing == "require" else "add", create=False) as writer:
        assert writer.manifest is not None
        old = writer.manifest
        old.check_embedder(writer.folder, embedder)
        given = {name: value for name, value in options.items() if value is not None}
        intake = Intake(
            embedder=embedder, catalog=catalog, out=writer.folder, **(_as_built(writer, catalog, given) | given)
        )
        with closing(Current(writer)) as current:
            return _add(writer, intake, existing, current, drop_columns=drop_columns)


def _add(writer: Writer, intake: Intake, existing: Existing, current: Current, *, drop_columns: bool) -> Change:
    remove_finished(writer.folder, current.folder)
    with intake.planned() as (plan, claims):
        given = Given()
        asked = _check_names(intake, existing, current, given)
        if existing != "refuse" and not drop_columns:
            replaced = current.rows_named({name for names in asked for name in names})
            check_losses(current.items, replaced, given, intake.catalog)
        run = intake.encode(plan, claims, known=[current.folder], total=len(asked))
        if run.missing():
            raise InputError(f"{writer.folder} is being built from the same catalogue; wait for that to end")
        new = writer.stage / _NEW
        new.mkdir()
        known = current.known({name for names in asked for name in names})
        assembled = intake.assemble(
            run.shards(),
            new,
            earlier=_write_earlier(writer, intake, current, asked),
            never_skipped={names[0] for names in asked if not known.isdisjoint(names)},  # else the old rows would stay
        )
        shutil.rmtree(writer.stage / _EARLIER, ignore_errors=True)
        taken = intake.taken(run, assembled)
        if assembled.count:
            change = _commit_rows(writer, intake, existing, current, new, plan, taken)
        else:  # all are near-duplicates of rows that are there: only the ledger is another
            _merge_ledgers(current.folder / REJECTS, new / REJECTS, writer.stage / REJECTS, set())
            shutil.rmtree(new)
            writer.keep(VECTORS, ITEMS, FAISS_INDEX, DELETED)
            change = Change(manifest=writer.commit(), **taken)
        plan.remove_assembled(added=True)
    return change


def _commit_rows(
    writer: Writer,
    intake: Intake,
    existing: Existing,
    current: Current,
    new: Path,
    plan: PlanFolder,
    taken: Mapping[str, Any],
) -> Change:
    """Append the rows whose files are in the folder `new`, which is removed."""
    old = current.manifest
    with closing(Items.read(new / ITEMS)) as added:  # the folder of an open file may not go, as on NFS
        rows = names_of_rows(added, old.group_by)
        names = {name for row in rows for name in row}
        known, groups = current.known(names), current.groups(rows)
        if late := odd_rows(existing, rows, known, groups):
            error = refusal(existing, late, late[0], known, groups, intake.catalog)
            raise InputError(f"rows could not be read before, and can be now: {error}")
        count = len(added)
    replaced = current.rows_named(names)
    _merge_ledgers(current.folder / REJECTS, new / REJECTS, writer.stage / REJECTS, names)
    ann = _join(writer, current, new, replaced, lambda: text_queries(intake.embedder, None, writer.stage))
    shutil.rmtree(new)
    ref, group_by = intake.ref(), old.group_by
    if group_by is None and ITEM not in current.items.field_names and any(id != item for id, item in rows):
        group_by = ITEM
    notes = _narrowed(current.items.schema, pq.read_schema(writer.stage / ITEMS))
    plan.mark_assembled(writer.stage / ITEMS, added=True)
    manifest = writer.commit(**ann, group_by=group_by, added=[*(r for r in old.added if r != ref), ref])
    return Change(manifest=manifest, added=count, deleted=len(replaced), notes=notes, **taken)


def _as_built(writer: Writer, catalog: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Intake` as the build had them, but for what it was allowed.

    Raises: NotAllowedError where that is images elsewhere, as in `referenced_rows`, and `given` does not say it again.
    """
    assert writer.manifest is not None
    old, options = writer.manifest, writer.manifest.catalog.options
    fields: dict[str, Any] = {"text": old.catalog.text, "dim": old.dim, "precision": old.precision}
    fields |= {name: options[name] for name in ("image", "vectors", "near_duplicates") if name in options}
    if "images" not in given:
        allowed = bool(given.get("allow_outside"))
        fields["images"] = referenced_images(
            old.catalog, writer.folder, catalog, allow_outside=allowed, or_else=", or give --images again"
        )
    return fields


def _check_names(intake: Intake, existing: Existing, current: Current, given: Given) -> list[Names]:
    """Id and group of all rows, shown to `given`. Read once before encoding: what cannot go in is found in seconds."""
    catalog = current.manifest.catalog
    as_built = {"text": catalog.text, "vectors": catalog.options.get("vectors")}
    names_of = partial(names_of_row, group_by=current.manifest.group_by)
    try:
        asked = [names for names in map(names_of, map(given.see, intake.rows())) if names is not None]
    except CatalogError as error:
        built_with = [
            f"--{name} {value!r}" for name, value in as_built.items() if value and value == getattr(intake, name)
        ]
        if not built_with:
            raise
        raise CatalogError(f"{error} (read as the index was built, with {' '.join(built_with)})") from error
    known = current.known({name for names in asked for name in names})
    groups = current.groups(asked)
    odd = set(odd_rows(existing, asked, known, groups))
    # a row that is going to be rejected does no harm
    if odd and (first := intake.first_admitted(row for row in intake.rows() if names_of(row) in odd)) is not None:
        names = names_of(first)
        assert names is not None
        raise refusal(existing, odd, names, known, groups, intake.catalog)
    return asked


def _write_earlier(writer: Writer, intake: Intake, current: Current, asked: Sequence[Names]) -> Path | None:
    """A folder of the live rows that none of the asked ones replaces, if near-duplicates are looked for."""
    if intake.near_duplicates == "off":
        return None
    kept = current.live.copy()
    kept[current.rows_named({name for names in asked for name in names})] = False
    folder = writer.stage / _EARLIER
    names = ["id", "thumbnail_sha256", SIGNATURE]
    items = current.items.table([name for name in names if name in current.items.schema.names])
    write_earlier(folder, items.filter(pa.array(kept)), index=writer.folder, progress=intake.progress)
    return folder


def delete_items(
    folder: str | Path,
    *,
    ids: Collection[str] = (),
    where: Mapping[str, Any] | None = None,
    missing_ok: bool = False,
) -> Change:
    """Delete the items with these ids, and those that match the filter.

    Args:
        missing_ok: ids that are not in the index are no mistake.
    Raises: InputError for unknown ids or fields, for nothing to delete by, and for all items.
    """
    if not ids and not where:
        raise InputError("nothing says which items to delete; give ids (--id, --ids-file) or a filter (--where)")
    ids = {printable_text(id) for id in ids}  # as the index spells them
    with (
        writing(Path(folder), "delete", create=False) as writer,
        closing(Current(writer, names=(ITEMS, DELETED))) as current,
    ):
        named = current.rows_named(ids)
        missing = ids - current.known(ids)
        if missing and not missing_ok:
            raise InputError(
                f"{len(missing)} of {len(ids)} ids are not in the index, for example {min(missing)!r}; "
                "check them, or pass --missing-ok"
            )
        if where:
            named = np.union1d(named, np.flatnonzero(current.live & current.matching(where)))
        if not len(named):
            return Change(manifest=current.manifest)
        if len(named) == current.manifest.live:
            raise InputError(
                f"that would delete all {len(named)} items, and an index cannot be empty; remove the folder "
                f"{writer.folder}, or put another index there with {REBUILD}"
            )
        writer.keep(VECTORS, ITEMS, FAISS_INDEX, REJECTS)
        write_deleted(writer.stage / DELETED, np.union1d(current.deleted, named))
        return Change(manifest=writer.commit(), deleted=len(named))


def compact_index(folder: str | Path, *, factory: str | None = None) -> Change:
    """Write the index without its deleted rows, and train and tune FAISS again on what is left.

    It is tuned until it finds as many neighbours of sampled rows as it did before, which needs no embedder.
    Args:
        factory: another FAISS factory string, or `auto`; default that of the index.
    Raises: InputError for a factory that does not suit the rows.
    """
    with writing(Path(folder), "compact", create=False) as writer, closing(Current(writer)) as current:
        old = current.manifest
        if factory is not None:
            check_factory(factory, old.dim)
        with VectorWriter(writer.stage / VECTORS, old.dim, old.precision) as vectors:
            vectors.copy(current.vectors, np.flatnonzero(current.live))
        join_items(writer.stage / ITEMS, [current.folder / ITEMS], [current.live])
        writer.keep(REJECTS)
        ann = write_ann(
            writer.stage,
            factory or old.factory,
            recall=old.tuning.get("target", RECALL),
            rows_recall=_overlap_when_tuned(old) if old.tuning else None,
        )
        if factory is None:
            ann["factory_reason"] = old.factory_reason
        return Change(manifest=writer.commit(**ann), deleted=old.deleted)


def _narrowed(before: pa.Schema, after: pa.Schema) -> list[str]:
    """What is to be said of fields that have become text, so that filters on them may mean something else."""
    old = before.field("fields").type if "fields" in before.names else []
    new = {member.name: member.type for member in (after.field("fields").type if "fields" in after.names else [])}
    return [
        f"the field {member.name!r} is text now, for the new rows have other values there than {member.type}"
        for member in old
        if pa.types.is_string(new[member.name])
        and not (pa.types.is_string(member.type) or pa.types.is_null(member.type))
    ]


def _join(writer: Writer, current: Current, new: Path, replaced: np.ndarray, queries: Queries) -> dict[str, Any]:
    """Write the files of both, one after the other, into the stage; returns what the manifest says of index.faiss."""
    stage, old = writer.stage, current.manifest
    new_vectors = VectorStore.open(new / VECTORS, in_passing=True)
    with VectorWriter(stage / VECTORS, old.dim, old.precision) as vectors:
        vectors.copy(current.vectors)
        vectors.copy(new_vectors)
    join_items(stage / ITEMS, [current.folder / ITEMS, new / ITEMS], like_first=True)
    write_deleted(stage / DELETED, np.union1d(current.deleted, replaced))
    ann = open_ann(current.folder, old)
    recall = old.tuning.get("target", RECALL)
    add_rows(ann, new_vectors)  # every type that read_index takes can be added to
    write_index(ann, stage / FAISS_INDEX)
    joined = VectorStore.open(stage / VECTORS, in_passing=True)
    overlap = measure_overlap(ann, joined)
    if overlap >= _overlap_when_tuned(old) - _LEAST_LOSS:
        return {"ann_overlap": overlap}
    return tune_and_measure(ann, joined, recall=recall, queries=queries)


def _overlap_when_tuned(manifest: Manifest) -> float:
    """Not that of the last change: small losses would add up unseen."""
    return manifest.tuning.get("overlap", manifest.ann_overlap)


def _merge_ledgers(old: Path, new: Path, target: Path, indexed: set[str]) -> None:
    """The old rejects but those that are indexed now or rejected again, then the new ones."""
    again = list(read_rejects(new))
    settled = indexed | {reject.id for reject in again}  # rows that are rejected may share an id
    write_rejects(target, chain((one for one in read_rejects(old) if one.id not in settled), again))
