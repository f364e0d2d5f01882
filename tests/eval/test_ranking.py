from pathlib import Path

import numpy as np
import pytest

from eval.queries import Query
from eval.ranking import rank, reachable_ids
from fanoise.errors import ArtifactError, InputError
from index.search import Searcher


def _query(query_id: str, text: str | None = None, image: Path | None = None) -> Query:
    return Query(id=query_id, text=text, image=image, positives=("red-mug",))


def test_text_and_image_are_one_query(searcher: Searcher, green_image: Path) -> None:
    ranking = rank(searcher, [_query("q", "shoe", green_image)], k=9)
    (best, score), *others = ranking.run["q"]
    assert (best, round(score, 6)) == ("green-shoe", 1.0)
    assert len(others) == 8 and max(score for _, score in others) < 0.6


def test_a_ranking_does_not_depend_on_batches(searcher: Searcher) -> None:
    queries = [
        _query(f"q{i}", text) for i, text in enumerate(["red mug", "blue lamp", "green shoe the", "lamp", "the"])
    ]
    one = rank(searcher, queries, k=5, batch_size=1).run
    two = rank(searcher, queries, k=5, batch_size=2).run
    assert list(one) == list(two) == [query.id for query in queries]
    assert one == two
    assert searcher.embedder.batches[-3:] == [2, 2, 1]  # type: ignore[attr-defined]


def test_more_results_than_items_is_every_item(searcher: Searcher) -> None:
    assert len(rank(searcher, [_query("q", "red")], k=1000).run["q"]) == 9


def test_a_filter_leaves_only_matching_items(searcher: Searcher) -> None:
    run = rank(searcher, [_query("q", "red mug")], k=9, where={"kind": "lamp"}).run
    assert sorted(item_id for item_id, _ in run["q"]) == ["blue-lamp", "green-lamp", "red-lamp"]
    assert run["q"][0][0] == "red-lamp"


def test_a_broken_image_is_named_and_spoils_no_other_query(searcher: Searcher, green_image: Path) -> None:
    broken = green_image.with_name("broken.png")
    broken.write_bytes(green_image.read_bytes()[:40])
    queries = [
        _query("ok", "mug", green_image),
        _query("broken", "mug", broken),
        _query("gone", image=green_image.with_name("gone.png")),
        _query("text", "blue mug"),
    ]
    ranking = rank(searcher, queries, k=3)
    assert ranking.run["ok"][0][0] == "green-mug" and ranking.run["text"][0][0] == "blue-mug"
    assert ranking.run["broken"] == ranking.run["gone"] == []
    assert list(ranking.failed) == ["broken", "gone"]
    assert ranking.failed["broken"].startswith("broken.png: ") and ranking.failed["gone"] == "gone.png: file not found"
    assert str(broken.parent) not in str(ranking.failed)


def test_only_broken_images_is_an_error(searcher: Searcher, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 2 query images can be read.*'a'.*relative to the query file"):
        rank(searcher, [_query("a", image=tmp_path / "a.png"), _query("b", image=tmp_path / "b.png")], k=3)


def test_an_embedding_that_is_not_finite_is_an_error(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.ones((2, 7), dtype=np.float32)
    rows[1, 3] = np.nan
    monkeypatch.setattr(searcher.embedder, "encode", lambda *args, **kwargs: rows)
    with pytest.raises(ArtifactError, match="embedding of query 'second' is not finite"):
        rank(searcher, [_query("first", "x"), _query("second", "x")], k=3)


def test_the_gallery_is_what_the_filter_lets_through(searcher: Searcher) -> None:
    assert len(reachable_ids(searcher.index, None)) == 9
    assert sorted(reachable_ids(searcher.index, {"colour": "red"})) == ["red-lamp", "red-mug", "red-shoe"]
    with pytest.raises(InputError, match="no item of the index has colour=pink"):
        reachable_ids(searcher.index, {"colour": "pink"})
