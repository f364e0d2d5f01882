"""Fill a Milvus collection from an index folder: no item is encoded again.

Rows are upserted by id, in order, in requests of limited size. How many are in the collection for certain is noted in
it now and then, so that an export that was killed goes on from there; what is sent twice replaces itself. The
collection counts as an index only when the last step has noted that it is complete.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from tqdm import tqdm

from fanoise.errors import ArtifactError, InputError
from index.backends.address import Address
from index.backends.client import TIMEOUT_S, connect, milvus_errors
from index.backends.facts import COMPLETE, FACTS, ROWS, Facts
from index.backends.layout import MAX_BYTES, MAX_COLUMNS, OTHER, Layout, column_of, count_shortened
from index.backends.milvus import count_rows
from index.manifest import DELETED, ITEMS, VECTORS, EmbedderRef, Manifest, relative_to_index
from index.opened import Index

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, MilvusClient

Half = Literal["fp32", "fp16"]
PRECISIONS: tuple[Half, ...] = get_args(Half)
LITE_INDEX_TYPES = ("AUTOINDEX", "FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8")
"""Milvus Lite takes any other without a word, and then has no index."""
_WAIT_S = 600.0
"""For a request that a busy server may take its time for."""
_NOTE_EVERY_S = 5.0
_POLL_S = 1.0
_BATCH_BYTES = 8 * 2**20
"""Far below the 64 MB that a server takes in one request."""
_BATCH_ROWS = 4096
_COLUMNS = ("id", "text", "image", "thumbnail_sha256", "fields")


@dataclass(frozen=True)
class Exported:
    address: Address
    count: int
    sent: int
    """Rows that this run sent; the rest were there."""
    shortened: int
    """Texts that were longer than a VARCHAR."""
    seconds: float


def export_milvus(
    path: Path | str,
    address: Address,
    *,
    replace_other: bool = False,
    precision: Half = "fp32",
    index_type: str | None = None,
    index_params: Mapping[str, Any] | None = None,
    search_params: Mapping[str, Any] | None = None,
    shards: int = 1,
    replicas: int = 1,
    progress: bool = True,
) -> Exported:
    """Fill the collection with what a search of the index can return.

    Args:
        replace_other: drop a collection of this name first, unless it is this export, broken off.
        precision: of the vectors in Milvus; Milvus Lite has fp32 alone.
        index_type: AUTOINDEX by default, and FLAT, which is exact, in Milvus Lite.
        shards: into how many parts a cluster spreads the writing.
        replicas: how many query nodes of a cluster hold each part in memory.
    Raises: InputError for a bad option or an id or item that is too large; ArtifactError for a damaged index, a
        collection of something else, a server that does not answer or loses rows.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if address.is_file and precision != "fp32":
        raise InputError(f"precision must be fp32 in Milvus Lite, which has no vectors at {precision}")
    index_type = index_type or ("FLAT" if address.is_file else "AUTOINDEX")
    if address.is_file and index_type not in LITE_INDEX_TYPES:
        known = ", ".join(LITE_INDEX_TYPES)
        raise InputError(f"index type must be one of {known} in Milvus Lite, got {index_type!r}")
    if not 1 <= shards <= 16:
        raise InputError(f"shards must be from 1 to 16, got {shards}")
    if replicas < 1:
        raise InputError(f"replicas must be at least 1, got {replicas}")
    began = time.monotonic()
    index = Index.open(path)
    columns = [name for name in _COLUMNS if name in index.item_schema.names]
    facts = Facts(
        embedder=_moved(index.manifest.embedder, index.folder, address),
        catalog=index.manifest.catalog,
        folder=_seen_from(index.folder, address),
        generation=index.manifest.generation,
        content=_content(index.manifest),
        count=len(index),
        dim=index.manifest.dim,
        embedder_dim=index.manifest.embedder_dim,
        group_by=index.manifest.group_by,
        layout=Layout.of(index.item_pieces(columns), is_half=precision == "fp16", most_columns=MAX_COLUMNS),
        index_type=index_type,
        index_params=dict(index_params or {}),
        search_params=dict(search_params or {}),
    )
    client = connect(address)
    with milvus_errors(address):
        start = _prepare(client, address, facts, replace_other=replace_other, shards=shards)
        if start is not None:
            _fill(client, address, facts, index, columns, start, progress=progress)
            _finish(client, address, facts, replicas=replicas, progress=progress)
    if start is None:
        start = facts.count
    shortened = sum(map(count_shortened, index.item_pieces(columns)))
    return Exported(address, facts.count, facts.count - start, shortened, time.monotonic() - began)


def collection_schema(layout: Layout, dim: int) -> "CollectionSchema":
    from pymilvus import DataType, MilvusClient

    kinds = {"int": DataType.INT64, "float": DataType.DOUBLE, "bool": DataType.BOOL}
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=layout.lengths["id"])
    schema.add_field("row", DataType.INT64)
    schema.add_field("vector", DataType.FLOAT16_VECTOR if layout.is_half else DataType.FLOAT_VECTOR, dim=dim)
    schema.add_field(OTHER, DataType.JSON)
    for name, length in layout.lengths.items():
        if name != "id":
            schema.add_field(name, DataType.VARCHAR, max_length=length, nullable=True)
    for field in layout.fields:
        if field.kind in kinds and column_of(field.value) == field.value:
            schema.add_field(field.value, kinds[field.kind], nullable=True)
        if field.number not in ("", field.value) and column_of(field.number) == field.number:
            schema.add_field(field.number, DataType.DOUBLE, nullable=True)
    return schema


def batches(rows: Iterator[dict[str, Any]], *, most_bytes: int, most_rows: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of about as many bytes at most; a row that is larger alone. Raises InputError for too much JSON."""
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        own = _size_bytes(row)
        if batch and (size + own > most_bytes or len(batch) == most_rows):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += own
    if batch:
        yield batch


def _size_bytes(row: Mapping[str, Any]) -> int:
    other = len(json.dumps(row[OTHER], ensure_ascii=False).encode()) if row[OTHER] else 2
    if other > MAX_BYTES:
        raise InputError(
            f"item {row['id']!r}: its fields beyond the typed columns take {other:,} bytes as JSON, and Milvus holds "
            f"at most {MAX_BYTES:,}; build the index from a catalogue without the longest of them"
        )
    texts = sum(len(value) * 4 if not value.isascii() else len(value) for value in row.values() if type(value) is str)
    return int(row["vector"].nbytes) + other + texts + 16 * len(row)


def _prepare(client: "MilvusClient", address: Address, facts: Facts, *, replace_other: bool, shards: int) -> int | None:
    """Make the collection unless it is there; returns the first row that may not be in it, None if it is complete."""
    name = address.collection
    if client.has_collection(name, timeout=TIMEOUT_S):
        properties = client.describe_collection(name, timeout=TIMEOUT_S).get("properties", {})
        problem = _not_ours(address, properties, facts)
        if not problem and properties.get(COMPLETE) != facts.identity:
            return int(properties.get(ROWS, 0))
        if not problem and not replace_other:
            return None
        if not replace_other:
            raise ArtifactError(f"{problem}; choose another --collection, or drop this one with --replace")
        client.drop_collection(name, timeout=_WAIT_S)
    client.create_collection(
        name,
        schema=collection_schema(facts.layout, facts.dim),
        num_shards=shards,
        properties={FACTS: facts.to_json(), ROWS: "0"},
        timeout=TIMEOUT_S,
    )
    try:
        _make_index(client, address, facts)  # before the rows, so that a bad type is refused at once
    except Exception:
        client.drop_collection(name, timeout=_WAIT_S)
        raise
    return 0


def _not_ours(address: Address, properties: Mapping[str, Any], facts: Facts) -> str:
    """Why the collection cannot be filled with this; empty if it can."""
    try:
        there = Facts.read(address, properties)
    except ArtifactError as error:
        return str(error).partition(";")[0]
    if there.identity == facts.identity:
        return ""
    if there.embedder.fingerprint != facts.embedder.fingerprint:
        return f"{address} holds vectors of another embedder, {there.embedder.name!r}"
    if there.content != facts.content:
        return f"{address} holds {there.count:,} items of another index or generation"
    return f"{address} holds the same items in another form (precision, index type or parameters)"


def _fill(
    client: "MilvusClient",
    address: Address,
    facts: Facts,
    index: Index,
    columns: Sequence[str],
    start: int,
    *,
    progress: bool,
) -> None:
    live = np.flatnonzero(index.live)

    def rows() -> Iterator[dict[str, Any]]:
        stop = 0
        for piece in index.item_pieces(columns):
            stop += len(piece)
            first = max(start, stop - len(piece))
            if first < stop:
                block = index.vectors.rows(live[first:stop])
                yield from facts.layout.rows(piece.slice(first - (stop - len(piece))), block, first)

    noted = time.monotonic()
    with tqdm(
        total=len(live),
        initial=start,
        unit=" items",
        desc=f"Exporting to {address.collection}",
        disable=not progress,
        file=sys.stderr,
    ) as bar:
        for batch in batches(rows(), most_bytes=_BATCH_BYTES, most_rows=_BATCH_ROWS):
            client.upsert(address.collection, batch, timeout=_WAIT_S)
            bar.update(len(batch))
            if time.monotonic() - noted >= _NOTE_EVERY_S:
                _note(client, address, {ROWS: str(batch[-1]["row"] + 1)})
                noted = time.monotonic()
    _note(client, address, {ROWS: str(len(live))})


def _finish(client: "MilvusClient", address: Address, facts: Facts, *, replicas: int, progress: bool) -> None:
    """Index, load and count the rows; only then is the collection complete."""
    name = address.collection
    if progress:
        print(f"Building the index of {name} ({facts.index_type}) …", file=sys.stderr)
    client.flush(name, timeout=_WAIT_S)
    _make_index(client, address, facts)
    client.load_collection(name, replica_number=replicas)
    count = count_rows(client, name)
    if count != facts.count:
        _note(client, address, {ROWS: "0"})
        remedy = "repeat the export, which sends all again" if count < facts.count else "drop it and repeat the export"
        raise ArtifactError(f"{address} has {count:,} rows after {facts.count:,} were sent; {remedy}")
    _note(client, address, {COMPLETE: facts.identity})


def _make_index(client: "MilvusClient", address: Address, facts: Facts) -> None:
    """Make the index unless it is there, and wait until all rows that were flushed are in it."""
    for name in client.list_indexes(address.collection, timeout=TIMEOUT_S):
        pending, since = -1, time.monotonic()
        while left := int(_describe(client, address, name).get("pending_index_rows", 0)):
            if left != pending:
                pending, since = left, time.monotonic()
            elif time.monotonic() - since > _WAIT_S:
                raise ArtifactError(
                    f"{address}: {left:,} rows have been waiting to be indexed for {_WAIT_S:g} s; look at the server's "
                    "log and repeat the export, which goes on from there"
                )
            time.sleep(_POLL_S)
        return
    params = client.prepare_index_params()
    params.add_index("vector", index_type=facts.index_type, metric_type="IP", params=facts.index_params)
    client.create_index(address.collection, params)


def _describe(client: "MilvusClient", address: Address, name: str) -> Mapping[str, Any]:
    return client.describe_index(address.collection, name, timeout=TIMEOUT_S) or {}


def _note(client: "MilvusClient", address: Address, properties: dict[str, str]) -> None:
    client.alter_collection_properties(address.collection, properties=properties, timeout=TIMEOUT_S)


def _content(manifest: Manifest) -> str:
    digests = [manifest.files[name].sha256 for name in (VECTORS, ITEMS, DELETED)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _moved(ref: EmbedderRef, folder: Path, address: Address) -> EmbedderRef:
    """The reference as seen from the collection."""
    return ref if ref.path is None else replace(ref, path=_seen_from(folder / ref.path, address))


def _seen_from(path: Path, address: Address) -> str:
    return relative_to_index(path, address.folder) if address.is_file else path.resolve().as_posix()
