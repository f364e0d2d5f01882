"""Builds from catalogues that are read otherwise the second time, as tars can be."""

import io
import tarfile

import pytest

from fanoise.catalog import webdataset
from fanoise.errors import CatalogError
from index.encoding.cut import Shard
from index.encoding.plan import PlanFolder
from tests.index.encoding.fakes import write_catalog
from tests.index.encoding.test_build import build, check


def write_tars(folder):
    folder.mkdir()
    for number in range(4):
        with tarfile.open(folder / f"s{number}.tar", "w") as tar:
            for i in range(7):
                member = tarfile.TarInfo(f"{i}.txt")
                member.size = len(text := f"text {i} of {number}".encode())
                tar.addfile(member, io.BytesIO(text))
    return folder


@pytest.mark.parametrize("unreadable", [(True, False), (False, True)], ids=["at first", "then"])
def test_a_tar_that_can_be_read_only_once_shifts_no_row_out_of_the_index(split, tmp_path, monkeypatch, unreadable):
    """Its size and time stay the same, so the build goes on with shards that were cut from other rows."""
    catalog = write_tars(tmp_path / "tars")
    opened, is_unreadable = webdataset.open_regular, unreadable[0]

    def open_regular(path):
        if is_unreadable and path.name == "s1.tar":
            raise PermissionError(13, "Permission denied")
        return opened(path)

    monkeypatch.setattr(webdataset, "open_regular", open_regular)
    committing = PlanFolder.committing

    def until_full(folder, number):
        if number == 4:
            raise OSError(28, "No space left on device")
        return committing(folder, number)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(PlanFolder, "committing", until_full)
        build(split, catalog, tmp_path / "index", shard_rows=4)
    is_unreadable = unreadable[1]
    split.module.batches.clear()
    build(split, catalog, tmp_path / "index", shard_rows=4)
    check(tmp_path / "index", catalog)
    assert sum(split.module.batches) < 20  # what was encoded, in whatever shard, is known


def test_processes_that_read_other_rows_do_not_take_turns_for_ever(split, tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "c.jsonl", 8)
    reads = iter(range(100))
    monkeypatch.setattr(Shard, "digest", property(lambda shard: f"{next(reads)}"))
    with pytest.raises(CatalogError, match="other rows in shard 0 than another process reads"):
        build(split, catalog, tmp_path / "index", shard_rows=4)
