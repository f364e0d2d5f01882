"""A collection in Milvus that `export-milvus` filled, searched as an index folder is."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from fanoise.errors import ArtifactError, InputError
from index.backends.address import Address, parse_address
from index.backends.base import checked_queries
from index.backends.client import TIMEOUT_S, connect, milvus_errors
from index.backends.expression import condition_expression, filter_expression, is_group, literal
from index.backends.facts import COMPLETE, Facts
from index.backends.layout import Field, value_of
from index.hits import Hit
from index.manifest import THUMBNAILS, CatalogRef, EmbedderRef
from index.spelling import are_numbers
from index.thumbnails import is_digest, thumbnail_path
from index.where import NO_NUMBERS, Condition, Contains, In, Not, Range, conditions, no_other

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MOST_HITS = 16_384
"""The most that a Milvus server returns for one query (`quotaAndLimits.limits.topK`)."""
MOST_GPU_HITS = 1024
"""The most that its GPU indices do."""
_QUERIES_AT_ONCE = 64
_REACH, _LEAST_REACH = 4, 64
"""A grouped search first asks for so many items a group, and for at least so many."""
_ROWS_AT_ONCE = 8192
_KEPT_NOTES = 64


@dataclass(frozen=True)
class _Found:
    score: float
    row: int
    entity: Mapping[str, Any]


class MilvusBackend:
    """Implements `index.backends.base.Backend`."""

    def __init__(self, address: Address, client: "MilvusClient", facts: Facts, *, collection: str = "") -> None:
        """`collection` is the one that the address means, should it name an alias: that may be switched to another."""
        self.address = address
        self._collection = collection or address.collection
        self.facts = facts
        self._client = client
        # nothing changes in a complete collection, and the same few filters are asked for again and again
        self._notes = lru_cache(_KEPT_NOTES)(self._notes_now)

    @classmethod
    def open(cls, place: str | Address) -> Self:
        """Connect to a collection that is complete.

        Raises: InputError for an address that is none, or names no collection; ArtifactError for a server that does not
            answer, and for a collection of somebody else, half filled, or changed since.
        """
        address = parse_address(place) if isinstance(place, str) else place
        if address.is_file and not Path(address.server).exists():
            raise InputError(f"{address}: there is no file {address.server}; {_fill(address)}")
        client = connect(address)
        with milvus_errors(address):
            if not client.has_collection(address.collection, timeout=TIMEOUT_S):
                known = ", ".join(sorted(client.list_collections(timeout=TIMEOUT_S))[:10]) or "none"
                raise InputError(f"{address}: no such collection; there are: {known}; {_fill(address)}")
            about = client.describe_collection(address.collection, timeout=TIMEOUT_S)
            properties, name = about.get("properties", {}), about["collection_name"]
            facts = Facts.read(address, properties)
            if properties.get(COMPLETE) != facts.identity:
                raise ArtifactError(f"{address} is not completely filled; repeat the export, which goes on from there")
            if not is_loaded(client, name):  # loading again would set the number of replicas back
                client.load_collection(name)
            count = count_rows(client, name)
        if count != facts.count:
            raise ArtifactError(
                f"{address} has {count:,} items instead of the {facts.count:,} that were exported, so somebody changed "
                "it; fill it again with --replace"
            )
        return cls(address, client, facts, collection=name)

    def __str__(self) -> str:
        return str(self.address)

    @property
    def folder(self) -> Path:
        """The index folder that the address names, else the one that the collection was filled from."""
        given = self.address.thumbnails
        return Path(given) if given else _joined(self.address.folder, self.facts.folder)

    @property
    def device(self) -> str:
        return "Milvus Lite" if self.address.is_file else "Milvus"  # without the host: pages show it to visitors

    @property
    def embedder(self) -> EmbedderRef:
        ref = self.facts.embedder
        return ref if ref.path is None else replace(ref, path=str(_joined(self.address.folder, ref.path)))

    @property
    def catalog(self) -> CatalogRef:
        return self.facts.catalog

    @property
    def group_by(self) -> str | None:
        return self.facts.group_by

    @property
    def field_names(self) -> list[str]:
        return [field.name for field in self.facts.layout.fields]

    def __len__(self) -> int:
        return self.facts.count

    @cached_property
    def live_ids(self) -> list[str]:
        """All ids, fetched once."""
        return [entity["id"] for entity in self._all("id")]

    def values(self, name: str) -> pa.Array:
        layout = self.facts.layout
        field = layout.field(name)
        column = [value_of(entity, field.value) for entity in self._all(field.value.partition("[")[0])]
        return pa.array(column, layout.arrow_type(field))

    def notes(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """Values of the filter that no item has. Near ones are not known: a server does not list distinct values."""
        return list(self._notes(tuple((name, tuple(several)) for name, several in conditions(where).items())))

    def find(
        self,
        vectors: np.ndarray,
        k: int,
        where: Mapping[str, Any] | None = None,
        *,
        group_by: str | None = None,
        min_score: float | None = None,
    ) -> list[list[Hit]]:
        """See `Backend.find`. A score is compared here and not by Milvus' range search, which GPU indices lack."""
        queries = checked_queries(vectors, k, min_score, dim=self.facts.dim, embedder_dim=self.facts.embedder_dim)
        name = self.group_by if group_by is None else group_by
        field = self.facts.layout.field(name, said_of="group_by: ") if name else None
        if field is not None and field.kind == "list":
            raise InputError(f"group_by: the field {name!r} holds lists; group by one with a single value")
        if min(k, len(self)) > self._limit:
            raise InputError(f"k must be at most {self._limit:,} with {self.facts.index_type}, got {k:,}")
        expression = filter_expression(where, self.facts.layout)
        least = -np.inf if min_score is None else min_score
        if field is None:
            found = self._search(queries, min(k, len(self)), expression)
        else:
            found = [self._search_groups(query, k, expression, field, least) for query in queries]
        return [self._hits([one for one in line if one.score >= least][:k]) for line in found]

    @property
    def most_hits(self) -> int:
        return min(len(self), self._limit)

    @property
    def _limit(self) -> int:
        return MOST_GPU_HITS if self.facts.index_type.startswith("GPU_") else MOST_HITS

    def _search(self, queries: np.ndarray, k: int, expression: str) -> list[list[_Found]]:
        """The `k` best of the items for which the expression is true, for each query; of equal ones the first."""
        found: list[list[_Found]] = []
        layout = self.facts.layout
        stored = queries.astype(np.float16) if layout.is_half else queries
        for start in range(0, len(stored), _QUERIES_AT_ONCE):
            with milvus_errors(self.address):
                answer = self._client.search(
                    self._collection,
                    data=list(stored[start : start + _QUERIES_AT_ONCE]),
                    anns_field="vector",
                    filter=expression,
                    limit=k,
                    output_fields=layout.outputs(),
                    search_params={"metric_type": "IP", "params": self.facts.search_params},
                    timeout=TIMEOUT_S,
                )
            for line in answer:
                hits = [_Found(float(hit["distance"]), hit["entity"]["row"], hit["entity"]) for hit in line]
                found.append(sorted(hits, key=_order))
        return found

    def _search_groups(self, query: np.ndarray, k: int, expression: str, field: Field, least: float) -> list[_Found]:
        """The best item of each of the `k` best groups.

        Milvus' own grouping returns fewer groups than there are where one group has many of the best items, puts all
        items without a value into one, and is missing for GPU indices. Here the groups that were found are left out of
        the next search until there are enough, so that any index type gives the same answer.
        """
        best: list[_Found] = []
        groups: list[Any] = []
        alone: list[str] = []
        limit = min(len(self), self._limit, max(_REACH * k, _LEAST_REACH))
        while len(best) < k:
            parts = [f"({expression})"] if expression else []
            if groups:
                parts.append(f"(not ({is_group(field, groups)}) or {field.is_missing})")
            if alone:
                parts.append(f"(id not in [{', '.join(map(literal, alone))}])")
            line = self._search(query[None], limit, " and ".join(parts))[0]
            seen, before = set(groups), len(best)
            for one in line:
                value = value_of(one.entity, field.compared)
                if value in (None, ""):
                    alone.append(one.entity["id"])
                    best.append(one)
                elif value not in seen:
                    seen.add(value)
                    groups.append(value)
                    best.append(one)
            if len(line) < limit or line[-1].score < least:
                break
            if len(best) == before:  # else this would never end
                raise ArtifactError(f"{self} finds groups again that a search left out; search without --group-by")
        return sorted(best, key=_order)[:k]

    def _hits(self, found: list[_Found]) -> list[Hit]:
        layout = self.facts.layout
        return [
            Hit(one.entity["id"], one.score, position, layout.values(one.entity), self._thumbnail(one.entity))
            for position, one in enumerate(found, start=1)
        ]

    def _thumbnail(self, entity: Mapping[str, Any]) -> Path | None:
        sha256 = entity.get("thumbnail")
        # a server's word is not to lead out of the folder
        return thumbnail_path(self.folder, str(sha256)) if is_digest(sha256) and self._has_thumbnails else None

    @cached_property
    def _has_thumbnails(self) -> bool:
        return (self.folder / THUMBNAILS).is_dir()

    def _notes_now(self, where: tuple[tuple[str, tuple[Condition, ...]], ...]) -> tuple[str, ...]:
        notes: list[str] = []
        for name, several in where:
            field = self.facts.layout.field(name, said_of="where: ")
            for one in several:
                if isinstance(one, Range) and field.is_mixed and are_numbers(one.ends):
                    notes.append(f"{name} {NO_NUMBERS}")
                asked = [In((value,)) for value in one.values] if isinstance(one, (In, Not)) else [one]
                unmet = [part for part in asked if not self._any(condition_expression(field, part))]
                notes += [f"no item has {_said(name, part)}" for part in unmet]
                if isinstance(one, Not) and not unmet and not self._any(condition_expression(field, one)):
                    notes.append(no_other(name, map(repr, one.values)))
        if where and not notes and not self._any(filter_expression(dict(where), self.facts.layout)):
            notes.append("some items meet each condition of the filter, but none meets all")
        return tuple(notes)

    def _any(self, expression: str) -> bool:
        with milvus_errors(self.address):
            found = self._client.query(
                self._collection, filter=expression, output_fields=["row"], limit=1, timeout=TIMEOUT_S
            )
        return bool(found)

    def _all(self, column: str) -> Iterator[Mapping[str, Any]]:
        """A column of all items, in the order of the index; in pieces, as a server returns only so much at once.

        Raises: ArtifactError where an item is missing, after which values would be taken for those of other items.
        """
        for start in range(0, len(self), _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, len(self))
            with milvus_errors(self.address):
                block = self._client.query(
                    self._collection,
                    filter=f"row >= {start} and row < {stop}",
                    output_fields=["row", column],
                    limit=_ROWS_AT_ONCE,
                    timeout=TIMEOUT_S,
                )
            if len(block) != stop - start:
                raise ArtifactError(
                    f"{self} answers with {len(block):,} instead of {stop - start:,} items from row {start:,} on, so "
                    "somebody changed it, or it is recovering; ask again, else fill it again with --replace"
                )
            yield from sorted(block, key=lambda entity: entity["row"])


def _order(found: _Found) -> tuple[float, int]:
    return (-found.score, found.row)


def is_loaded(client: "MilvusClient", collection: str) -> bool:
    """Whether searches find it in the memory of the server."""
    from pymilvus.client.types import LoadState

    return bool(client.get_load_state(collection, timeout=TIMEOUT_S)["state"] == LoadState.Loaded)


def count_rows(client: "MilvusClient", collection: str) -> int:
    """All entities of a loaded collection, those of the last write among them."""
    answer = client.query(
        collection, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=TIMEOUT_S
    )
    return int(answer[0]["count(*)"])


def _said(name: str, condition: Condition) -> str:
    if isinstance(condition, Contains):
        return f"{condition.text!r} in its {name}"
    if isinstance(condition, Range):
        ends = [f"{word} {end}" for word, end in (("from", condition.min), ("to", condition.max)) if end is not None]
        return f"a {name} {' '.join(ends)}"
    return f"{name} {condition.values[0]!r}"


def _joined(folder: Path, path: str) -> Path:
    """Without `..`: what the path goes through need not exist."""
    return Path(os.path.normpath(folder / path))


def _fill(address: Address) -> str:
    return f"fill one with `python -m index export-milvus --index DIR --uri {address}`"
