import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.service import ARMS, MAX_IMAGE_PIXELS, MAX_TEXT_CHARACTERS, Move, Pair, Service, movement
from fanoise.embedder import Embedder
from fanoise.errors import ArtifactError, ImageError, InputError
from index.build import build_index
from index.search import Index, Searcher

SAME, NEW = Move("same"), Move("new")


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ("abc", "abc", [SAME, SAME, SAME]),
        ("bac", "abc", [Move("up", 1), Move("down", 1), SAME]),
        ("dab", "abcd", [Move("up", 3), Move("down", 1), Move("down", 1)]),
        ("axb", "abc", [SAME, NEW, Move("down", 1)]),
        ("xyz", "abc", [NEW, NEW, NEW]),
        ("ab", "", [NEW, NEW]),
        ("", "abc", []),
    ],
)
def test_movement_counts_the_places_between_the_lists(own: str, other: str, expected: list[Move]) -> None:
    assert movement(list(own), list(other)) == expected


def test_an_item_higher_here_is_lower_there_by_as_much() -> None:
    rng = np.random.default_rng(0)
    left, right = (list(rng.permutation(20)[:12]) for _ in range(2))
    here = dict(zip(left, movement(left, right), strict=True))
    there = dict(zip(right, movement(right, left), strict=True))
    mirrored = {"up": "down", "down": "up", "same": "same"}
    shared = set(left) & set(right)
    assert {here[item].kind for item in shared} >= {"up", "down"}
    for item in shared:
        assert (mirrored[here[item].kind], here[item].by) == (there[item].kind, there[item].by)
    assert {item for item in left if here[item].kind == "new"} == set(left) - shared


def test_text_finds_the_colour_it_names(service: Service) -> None:
    for arm in ("baseline", "fanoise"):
        assert service.search("products", arm, "red", k=1).hits[0].id == "red-0"


def test_a_photo_and_a_photo_with_text_are_queries_too(service: Service) -> None:
    blue = Image.new("RGB", (20, 20), (50, 90, 190))
    assert service.search("products", "baseline", image=blue, k=1).hits[0].id == "blue-0"
    mixed = service.search("products", "baseline", "red", blue, k=1).hits[0].id
    assert mixed.startswith("purple")


def test_compare_gives_each_side_its_own_answer_and_moves(service: Service) -> None:
    found = service.compare("products", "orange", k=9)
    answers = {"baseline": found.baseline, "fanoise": found.fanoise}
    for arm in ARMS:
        alone, answer = service.search("products", arm, "orange", k=9), answers[arm]
        assert [(hit.id, hit.score) for hit in answer.hits] == [(hit.id, hit.score) for hit in alone.hits]
        assert set(answer.latency_ms) == {"encode", "search"}
        assert len(found.moves[arm]) == 9
    own, other = [hit.id for hit in found.fanoise.hits], [hit.id for hit in found.baseline.hits]
    assert found.moves["fanoise"] == movement(own, other)
    assert any(move != SAME for move in found.moves["fanoise"])


@pytest.mark.parametrize("text", [None, "", "  \n\t "])
def test_nothing_to_search_for_is_said_kindly(service: Service, text: str | None) -> None:
    with pytest.raises(InputError, match=r"Type something or drop a photo\."):
        service.compare("products", text)


def test_text_is_limited_and_the_limit_itself_is_allowed(service: Service) -> None:
    longest = "red ".ljust(MAX_TEXT_CHARACTERS, "x")
    assert service.search("products", "baseline", longest, k=1).hits[0].id == "red-0"
    with pytest.raises(InputError, match="2,001 characters; at most 2,000"):
        service.search("products", "baseline", longest + "x")


@pytest.mark.parametrize("text", [5, ["red"], {"text": "red"}])
def test_text_that_is_no_string_is_named(service: Service, text: Any) -> None:
    with pytest.raises(InputError, match=rf"text is {re.escape(repr(text))}; it must be a string"):
        service.compare("products", text)


@pytest.mark.parametrize("k", [0, -1, 51, 2.5, True, None, "many", "5", float("nan"), float("inf")])
def test_k_outside_its_range_is_refused(service: Service, k: Any) -> None:
    with pytest.raises(InputError, match=rf"k is {re.escape(repr(k))}; it must be a whole number from 1 to 50"):
        service.search("products", "baseline", "red", k=k)


def test_more_results_than_items_gives_all_items(service: Service) -> None:
    assert len(service.search("products", "baseline", "red", k=50).hits) == 24


def test_the_filter_keeps_to_its_category_and_blank_means_all(service: Service) -> None:
    mugs = service.search("products", "baseline", "red", k=50, where={"category": "mug"})
    assert {hit.fields["category"] for hit in mugs.hits} == {"mug"}
    assert len(mugs.hits) == 8
    assert len(service.search("products", "baseline", "red", k=50, where={"category": ""}).hits) == 24
    assert service.search("products", "baseline", "red", where={"category": "no such"}).hits == []


def test_categories_are_the_values_of_the_field(service: Service, make_pair: Callable[..., Pair]) -> None:
    assert service.categories("products") == ["lamp", "mug"]
    without = make_pair(
        [{"id": "a", "colour": (9, 9, 9), "title": "A"}, {"id": "b", "colour": (99, 9, 9), "title": "B"}]
    )
    assert Service({"plain": without}).categories("plain") == []


def test_two_embedders_are_told_from_one(service: Service, pair: Pair) -> None:
    assert service.same_embedder == []
    assert Service({"a": pair, "b": Pair(pair.fanoise, pair.fanoise)}).same_embedder == ["b"]


def test_a_side_is_described_by_its_embedder_items_and_what_searches(service: Service) -> None:
    card = service.describe("products", "baseline")
    assert (card.count, card.device) == (len(service.searcher("products", "baseline").backend), "CPU")


def test_unknown_names_are_answered_with_the_known_ones(service: Service) -> None:
    with pytest.raises(InputError, match="no catalogue called 'shoes'; there are: products"):
        service.search("shoes", "baseline", "red")
    with pytest.raises(InputError, match="baseline, fanoise"):
        service.search("products", "both", "red")
    with pytest.raises(InputError, match=r"no catalogue called \['products'\]"):
        service.search(["products"], "baseline", "red")  # type: ignore[arg-type]


def test_a_photo_with_too_many_pixels_is_refused_before_decoding(service: Service, tmp_path: Path) -> None:
    width = 8_000
    Image.new("1", (width, MAX_IMAGE_PIXELS * 3 // 2 // width + 1)).save(tmp_path / "huge.png")
    with pytest.raises(ImageError, match="more than the limit of 60 megapixels"):
        service.search("products", "baseline", image=tmp_path / "huge.png")


def test_a_file_that_is_no_image_is_refused(service: Service, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("no image")
    with pytest.raises(ImageError) as caught:
        service.compare("products", image=tmp_path / "photo.jpg")
    assert caught.value.reason == "not an image of a known format"


def test_indices_of_different_items_are_no_pair(pair: Pair, make_pair: Callable[..., Pair]) -> None:
    other = make_pair([{"id": "only-here", "colour": (1, 2, 3), "title": "A"}])
    with pytest.raises(ArtifactError, match=r"'shop': the two indices hold different items \(24 and 1; for"):
        Service({"shop": Pair(baseline=pair.baseline, fanoise=other.fanoise)})


def test_open_wants_a_fanoise_for_each_baseline() -> None:
    with pytest.raises(InputError, match="2 --baseline but 1 --fanoise"):
        Service.open(["a", "b"], ["c"])
    with pytest.raises(InputError, match="1 --name for 2 pairs"):
        Service.open(["a", "b"], ["c", "d"], ["only"])
    with pytest.raises(InputError, match="at least one --baseline"):
        Service({})


def test_only_thumbnails_are_offered_to_the_browser(service: Service, pair: Pair) -> None:
    expected = [searcher.index.folder / "thumbnails" for searcher in (pair.baseline, pair.fanoise)]
    assert service.thumbnail_folders() == sorted(expected)


@pytest.fixture(scope="module")
def real_index(tiny_run: Path, toy_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    images = sorted(toy_pairs.parent.glob("*.png"))[:8]
    rows = "".join(f"{path.stem},{path.absolute()},square {path.stem}\n" for path in images)
    (folder / "squares.csv").write_text("id,image,title\n" + rows)
    build_index(
        Embedder.from_pretrained(tiny_run), folder / "squares.csv", folder / "index", allow_outside=True, progress=False
    )
    return folder / "index"


def test_search_is_noise_free_even_for_an_embedder_left_in_training_mode(
    tiny_run: Path, toy_pairs: Path, real_index: Path
) -> None:
    training = Embedder.from_pretrained(tiny_run)
    assert training.noise["strength"] > 0, "this run must have been trained with noise to prove anything"
    training.module.train()
    quiet = Embedder.from_pretrained(tiny_run)
    quiet.module.eval()
    searchers = [Searcher(Index.open(real_index), embedder) for embedder in (training, quiet)]
    service = Service({"squares": Pair(baseline=searchers[1], fanoise=searchers[0])})
    photo = toy_pairs.parent / "3.png"

    first, second = (service.compare("squares", "a red square", photo, k=8) for _ in range(2))

    scores = [
        [hit.score for hit in answer.hits] for found in (first, second) for answer in (found.baseline, found.fanoise)
    ]
    assert len(set(scores[0])) > 1
    assert scores[0] == scores[1] == scores[2] == scores[3]  # bit for bit: no tolerance
    assert all(move == SAME for move in first.moves["fanoise"])


def test_dropout_of_the_training_run_would_show_in_training_mode(tiny_run: Path) -> None:
    """The oracle of the test above: without `eval()` the very same module does give other vectors each time."""
    from fanoise.catalog import Item

    embedder = Embedder.from_pretrained(tiny_run)
    batch = embedder.collate([Item(text="a red square")], "query")
    embedder.module.train()
    assert not np.array_equal(*(embedder.module(batch).detach().numpy() for _ in range(2)))


def test_open_loads_an_embedder_once_and_names_the_catalogue(real_index: Path) -> None:
    service = Service.open([real_index], [real_index])
    assert service.catalogs == service.same_embedder == ["squares"]
    assert service.pair("squares").baseline.embedder is service.pair("squares").fanoise.embedder
    with pytest.raises(InputError, match="two pairs are called 'squares'; tell them apart with --name"):
        Service.open([real_index] * 2, [real_index] * 2)
    assert Service.open([real_index] * 2, [real_index] * 2, ["a", "b"]).catalogs == ["a", "b"]
