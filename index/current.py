"""The current generation of an index that is being changed: its files, and which rows are meant."""

from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise.errors import ArtifactError
from index.generations import Writer
from index.identity import Names, name_columns
from index.manifest import GENERATION_FILES, REBUILD
from index.parts import open_deleted, open_items, open_vectors
from index.selection import live_filter
from index.store import VectorStore


class Current:
    """The generation that is being changed, its files compared with their checksums before they are copied."""

    def __init__(self, writer: Writer, names: Collection[str] = GENERATION_FILES) -> None:
        assert writer.manifest is not None and writer.current is not None
        self.manifest, self.folder = writer.manifest, writer.current
        for problem in chain(
            self.manifest.file_problems(writer.folder, checksums=False),
            self.manifest.file_problems(writer.folder, names=names),
        ):
            raise ArtifactError(f"{problem}; restore it or rebuild the index with {REBUILD}")
        self.deleted = open_deleted(self.folder, self.manifest)
        self.items = open_items(self.folder, self.manifest, self.deleted)
        self.live = np.ones(self.manifest.count, dtype=bool)
        self.live[self.deleted] = False

    def close(self) -> None:
        self.items.close()

    @property
    def vectors(self) -> VectorStore:
        return open_vectors(self.folder, self.manifest, in_passing=True)

    def matching(self, where: Mapping[str, Any]) -> np.ndarray:
        """bool [N] of what a search finds. Raises InputError, as a search does."""
        return live_filter(self.items, self.live).mask(where)

    def rows_named(self, names: Collection[str]) -> np.ndarray:
        """Live rows whose id, or whose group's value, is one of these."""
        wanted = pa.array(list(names), pa.string())
        mask = np.zeros(self.manifest.count, dtype=bool)
        for column in name_columns(self.items, self.manifest.group_by):
            mask |= pc.is_in(column, value_set=wanted).to_numpy(zero_copy_only=False)
        return np.flatnonzero(mask & self.live)

    def known(self, names: Collection[str]) -> set[str]:
        """Those of these names that are the id, or the group's value, of a live row."""
        asked, live = pa.array(list(names), pa.string()), pa.array(self.live)
        found: set[str] = set()
        for column in name_columns(self.items, self.manifest.group_by):
            found.update(asked.filter(pc.is_in(asked, value_set=column.filter(live))).to_pylist())
        return found

    def groups(self, rows: Iterable[Names]) -> dict[str, str]:
        """Of the ids of those rows that have no group: the group that the live row of this id has, if it has one."""
        ids, *groups = name_columns(self.items, self.manifest.group_by)
        alone = pa.array([id for id, group in rows if id == group], pa.string())
        if not groups or not len(alone):
            return {}
        inside = pc.fill_null(pc.not_equal(ids, groups[0]), False)
        mask = pc.and_(pc.and_(pc.is_in(ids, value_set=alone), inside), pa.array(self.live))
        return dict(zip(ids.filter(mask).to_pylist(), groups[0].filter(mask).to_pylist(), strict=True))
