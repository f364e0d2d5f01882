"""A searcher that goes on while its index is changed."""

import threading
import time

import pytest

import index.manifest
import index.update
from fanoise.errors import ArtifactError
from index.build import build_index
from index.manifest import Manifest
from index.search import Index, Searcher
from index.update import add_items, delete_items
from tests.index.test_update import row


def test_a_searcher_takes_the_new_generation_when_told(embedder, built, new_embedder, write, monkeypatch):
    searcher = Searcher.open(built, embedder=embedder)
    add_items(embedder, write("n.csv", [row("n1", "one")]), built, progress=False)
    assert searcher.search(text="one", k=1).hits[0].id != "n1"
    assert searcher.refresh() is True
    assert searcher.refresh() is False
    assert searcher.search(text="one", k=1).hits[0].id == "n1"
    other = new_embedder("other", weights="0000")
    build_index(other, write("k.csv", [row("k", "k")]), built, progress=False)
    with pytest.raises(ArtifactError, match="other weights"):
        searcher.refresh()
    assert searcher.search(text="one", k=1).hits[0].id == "n1"


def test_a_searcher_that_is_refreshed_while_others_search_never_mixes_generations(embedder, built, write):
    """Each generation replaces all items, and says in every field which one it is."""
    searcher, stop, wrong, seen = Searcher.open(built, embedder=embedder), threading.Event(), [], set()

    def search():
        while not stop.is_set():
            try:
                hits = searcher.search(text="anything", k=40).hits
                versions = {hit.fields["price"] for hit in hits} if hits[0].fields["colour"] == "pink" else {"built"}
                if len(versions) != 1 or len({hit.id for hit in hits}) != 40:
                    wrong.append([(hit.id, hit.fields) for hit in hits])
                seen.update(versions)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(8):
        rows = [row(f"g{i}", f"{i} of {version}", price=f"v{version}") for i in range(40)]
        add_items(embedder, write("c.csv", rows), built, existing="require", drop_columns=True, progress=False)
        assert searcher.refresh()
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) > 3


def test_only_files_that_changed_are_hashed_again(built, monkeypatch):
    opened, loosely = Index.open(built), Index.open(built, verify=False)
    delete_items(built, ids=["g1"])
    hashed = []
    sha256_file = index.manifest.sha256_file
    monkeypatch.setattr(index.manifest, "sha256_file", lambda path: hashed.append(path.name) or sha256_file(path))
    assert opened.current().current().live_ids[1] == "g2"
    assert hashed == ["deleted.npy"]
    assert loosely.current() is not loosely
    assert hashed == ["deleted.npy"]


def test_a_refresh_refuses_a_damaged_generation_and_stays(built, embedder, write):
    searcher = Searcher.open(built, embedder=embedder)
    add_items(embedder, write("n.csv", [row("n1", "one")]), built, progress=False)
    file = Manifest.read(built).generation_in(built) / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ArtifactError, match=r"vectors\.npy is damaged"):
        searcher.refresh()
    assert len(searcher.search(text="x", k=99).hits) == 40
