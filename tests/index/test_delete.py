"""What is deleted is never found again, and all else is."""

import numpy as np
import pytest

from fanoise.errors import InputError
from index.build import build_index
from index.search import Index
from index.update import add_items, compact_index, delete_items
from tests.index.test_update import row, state


def test_delete_by_id_and_by_filter_leaves_the_rest_as_it_was(built):
    before = state(built)
    change = delete_items(built, ids=["g1", "g2"], where={"colour": "red"})
    expected = {id: value for id, value in before.items() if id not in ("g1", "g2") and int(id[1:]) % 4}
    assert state(built) == expected
    assert (change.deleted, change.manifest.live, change.manifest.deleted) == (12, 28, 12)
    assert len(Index.open(built)) == 28
    assert Index.open(built).values("colour").to_pylist().count("red") == 0
    again = delete_items(built, where={"colour": "white", "price": "2"})
    assert again.deleted == 2


def test_a_second_delete_of_the_same_id_is_a_mistake_unless_it_is_said_to_be_none(built):
    delete_items(built, ids=["g1"])
    with pytest.raises(InputError, match=r"1 of 2 ids are not in the index, for example 'g1'; .*--missing-ok"):
        delete_items(built, ids=["g1", "g2"])
    assert delete_items(built, ids=["g1", "g2"], missing_ok=True).deleted == 1
    nothing = delete_items(built, ids=["g1", "g2"], missing_ok=True)
    assert (nothing.deleted, nothing.manifest.generation) == (0, 3)
    assert delete_items(built, where={"colour": "puce"}).manifest.generation == 3


def test_deleting_everything_is_refused_with_the_remedy(built):
    with pytest.raises(InputError, match=r"would delete all 40 items.*remove the folder .* or put another index there"):
        delete_items(built, ids=[f"g{i}" for i in range(40)])
    delete_items(built, ids=[f"g{i}" for i in range(39)])
    with pytest.raises(InputError, match="would delete all 1 items"):
        delete_items(built, ids=["g39"])
    assert Index.open(built).live_ids == ["g39"]


def test_a_delete_without_a_choice_or_of_an_unknown_field_is_refused(built):
    with pytest.raises(InputError, match="nothing says which items to delete"):
        delete_items(built)
    with pytest.raises(InputError, match="unknown field 'color'"):
        delete_items(built, where={"color": "red"})


def test_a_deleted_id_may_come_back(embedder, built, write):
    delete_items(built, ids=["g5"])
    add_items(embedder, write("n.csv", [row("g5", "back")]), built, progress=False)
    assert state(built)["g5"][0] == "back"
    assert Index.open(built).row_of["g5"] == 40
    assert compact_index(built).manifest.count == 40
    assert list(state(built))[-1] == "g5"


def test_ids_are_deleted_as_the_command_line_spells_them(embedder, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": "x\\udce9", "text": "a"}\n{"id": "y", "text": "b"}\n')
    build_index(embedder, tmp_path / "c.jsonl", tmp_path / "index", progress=False)
    assert Index.open(tmp_path / "index").ids[0] == "x\\udce9"
    delete_items(tmp_path / "index", ids=["x\udce9"])
    assert Index.open(tmp_path / "index").live_ids == ["y"]


def test_a_delete_takes_what_a_search_with_the_same_filter_finds(embedder, built, write):
    odd = write("odd.csv", [row("n1", "one", price="10"), row("n2", "two", price="n/a")])
    add_items(embedder, odd, built, progress=False)
    assert delete_items(built, where={"price": {"min": 5}}).deleted == 1, "which is 10, below 5 as text"
    add_items(embedder, write("ten.csv", [row("n1", "one", price="10")]), built, progress=False)
    add_items(embedder, write("mended.csv", [row("n2", "two", price="9")]), built, existing="require", progress=False)
    index = Index.open(built)  # the row that was no number is still in the files
    found = {index.ids[i] for i in np.flatnonzero(index.matching({"price": {"min": 9}}))}
    assert found == {"n1", "n2"}
    assert delete_items(built, where={"price": {"min": 9}}).deleted == 2
    assert found.isdisjoint(state(built))
