from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.service import Arm, ArmCard, Comparison, Move, movement
from app.ui.cards import moved_kinds, render_column, summarise
from index.search import Answer, Hit

CARD = ArmCard(name="run", noise={"strength": 0.1, "scaling": "sublinear"}, count=1_234, device="CPU")
LATENCY = {"encode": 12.3, "search": 0.44}


class Page(HTMLParser):
    """What a browser would make of the HTML: elements with attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def marks(self) -> list[dict[str, str]]:
        return [attributes for attributes in self.all("span") if "fa-move" in attributes.get("class", "").split()]


def hit(id: str, position: int = 1, score: float = 0.5, image: Path | None = None, **fields: Any) -> Hit:
    return Hit(id=id, score=score, position=position, fields=fields, image=image)


def column(*hits: Hit, moves: list[Move] | None = None, arm: Arm = "fanoise") -> Page:
    return Page(render_column(arm, CARD, Answer(list(hits), LATENCY), moves or [Move("same")] * len(hits)))


def test_catalogue_strings_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>\"' onload='x"
    page = column(hit(evil, title=evil, price=evil, category="<img src=x onerror=alert(1)>"))
    assert not page.all("script") and not page.all("img")
    assert page.all("li") == [{"class": "fa-hit", "data-item": evil}]
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "<script>alert(1)</script>" in page.text


def test_a_side_says_how_many_items_it_has_and_what_searches_them() -> None:
    card = ArmCard(name="run", noise={}, count=1_234, device="CPU (no room on the <GPU>)")
    page = Page(render_column("fanoise", card, Answer([], LATENCY)))
    assert "1,234 items · on CPU (no room on the <GPU>)" in page.text


def test_a_card_shows_position_score_title_and_price() -> None:
    page = column(hit("a", position=3, score=0.12345, title="Red mug", price="12.5", category="mug"))
    for shown in ("3", "0.123", "Red mug", "12.50"):
        assert f" {shown} " in f" {page.text} "


def test_a_company_stands_in_for_a_price() -> None:
    assert "Acme & Sons" in column(hit("page-7", title="Invoice", company="Acme & Sons")).text


@pytest.mark.parametrize(
    ("fields", "title"),
    [({"title": "Mug", "company": "A"}, "Mug"), ({"company": "A", "category": "B"}, "A"), ({"other": "B"}, "page-7")],
)
def test_the_title_is_the_best_field_there_is_else_the_id(fields: dict[str, Any], title: str) -> None:
    (shown,) = [
        attributes for attributes in column(hit("page-7", **fields)).all("p") if attributes["class"] == "fa-title"
    ]
    assert shown["title"] == title


def details(page: Page) -> dict[str, str]:
    (line,) = [attributes for attributes in page.all("span") if attributes.get("class") == "fa-details"]
    return line


def test_a_card_named_after_its_company_is_told_from_the_next_by_its_id_and_price() -> None:
    page = column(hit("rec-7", company="Acme & Sons", total="12.50", date="1 May"))
    assert "rec-7 · 12.50 " in page.text and "1 May" not in page.text
    assert details(page)["title"] == "rec-7 · 12.50 · 1 May"


def test_cards_of_one_title_show_their_ids() -> None:
    shown = [hit("d1", title="Invoice", date="May"), hit("d2", title="Invoice", date="May"), hit("d3", title="Letter")]
    texts = column(*shown).text
    assert "d1 · May" in texts and "d2 · May" in texts and "d3" not in texts


def test_what_the_title_says_already_is_not_repeated() -> None:
    page = column(hit("d1", title="Vale & Sons report 5", company="Vale & Sons", kind="report", amount="5", date="May"))
    assert details(page)["title"] == "5 · May"


def test_a_card_opens_its_picture_under_an_address_without_paths(tmp_path: Path) -> None:
    file = tmp_path / ("ab" * 32 + ".jpg")
    Image.new("RGB", (8, 8)).save(file)
    (link,) = column(hit("a", image=file)).all("a")
    assert (link["href"], link["rel"]) == ("picture/" + "ab" * 32, "noopener")


def test_negative_scores_have_a_minus_sign() -> None:
    assert "−0.250" in column(hit("a", score=-0.25)).text


@pytest.mark.parametrize(
    ("arm", "move", "shown", "said"),
    [
        ("fanoise", Move("up", 3), "↑3", "3 places higher than in Baseline"),
        ("baseline", Move("down", 1), "↓1", "1 place lower than in FANoise"),
        ("fanoise", Move("new"), "new", "not among the results of Baseline"),
        ("baseline", Move("new"), "only here", "not among the results of FANoise"),
    ],
)
def test_a_moved_item_is_marked_in_sign_and_words(arm: Arm, move: Move, shown: str, said: str) -> None:
    page = column(hit("a"), moves=[move], arm=arm)
    (mark,) = page.marks()
    assert mark["title"] == said
    assert shown in page.text


def test_an_item_in_the_same_place_is_not_marked() -> None:
    assert column(hit("a")).marks() == []


def test_pictures_are_lazy_sized_named_and_served_as_files(tmp_path: Path) -> None:
    file = tmp_path / "a b.jpg"
    Image.new("RGB", (120, 80)).save(file)
    (image,) = column(hit("a", image=file, title="Mug")).all("img")
    assert (image["width"], image["height"], image["loading"], image["alt"]) == ("120", "80", "lazy", "Mug")
    assert image["src"] == f"gradio_api/file={tmp_path}/a%20b.jpg"


def test_a_missing_thumbnail_is_a_blank_not_an_error(tmp_path: Path) -> None:
    page = column(hit("a", image=tmp_path / "gone.jpg"))
    assert not page.all("img") and "no picture" in page.text


def test_pages_get_tall_cards_and_products_square_ones(tmp_path: Path) -> None:
    for size, shape in (((60, 85), "fa-portrait"), ((80, 80), "fa-square"), ((90, 60), "fa-square")):
        file = tmp_path / f"{size[0]}.png"
        Image.new("RGB", size).save(file)
        (cards,) = column(hit("a", image=file)).all("ol")
        assert shape in cards["class"].split()


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ({}, "training noise not recorded"),
        ({"strength": 0.0, "scaling": "linear"}, "trained without noise"),
        ({"strength": 0.1, "scaling": "sublinear"}, "trained with noise 0.1, sublinear"),
    ],
)
def test_the_header_tells_model_noise_size_and_time(noise: dict[str, Any], said: str) -> None:
    card = ArmCard(name="runs/<x>", noise=noise, count=1_234, device="CPU")
    page = Page(render_column("fanoise", card, Answer([], LATENCY)))
    for shown in (said, "1,234 items", "runs/<x>", "12 ms", "0.4 ms", "No item matches."):
        assert shown in page.text


def compared(left: str, right: str) -> Comparison:
    answers = [Answer([hit(id, n) for n, id in enumerate(ids, start=1)], LATENCY) for ids in (left, right)]
    moves: dict[Arm, list[Move]] = {"baseline": movement(left, right), "fanoise": movement(right, left)}
    return Comparison(baseline=answers[0], fanoise=answers[1], moves=moves)


@pytest.mark.parametrize(
    ("left", "right", "sentence"),
    [
        ("abc", "abc", "Both found the same 3 items in the same order."),
        ("a", "a", "Both found the same 1 item in the same order."),
        ("abc", "bac", "Both found the same 3 items; FANoise orders 2 differently."),
        ("abc", "abx", "2 of 3 items found by both; FANoise brings in 1 that Baseline does not show."),
        ("", "", "No item matches. Try the filter “all”."),
    ],
)
def test_one_sentence_says_how_the_lists_differ(left: str, right: str, sentence: str) -> None:
    assert summarise(compared(left, right)) == sentence


@pytest.mark.parametrize(
    ("left", "right", "kinds"),
    [("abc", "abc", set()), ("abc", "bac", {"up", "down"}), ("ab", "ax", {"new"}), ("", "", set())],
)
def test_the_marks_on_the_cards_are_known(left: str, right: str, kinds: set[str]) -> None:
    assert moved_kinds(compared(left, right)) == kinds
