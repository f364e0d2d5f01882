"""The search tab: the query form, clickable examples, and the two columns."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app.examples import Example
from app.service import ARMS, CATEGORY, MAX_K, MAX_TEXT_CHARACTERS, NOTHING_TYPED, Comparison, Service, is_count
from app.ui.cards import moved_kinds, render_column, summarise
from app.ui.examples import render_examples
from app.ui.html import escape
from app.ui.scripts import FORM_FIXES, LINK_COLUMNS, NUMBER_REQUEST, PICK_EXAMPLE, SHOW_ANSWER
from fanoise.errors import FANoiseError, ImageError

_log = logging.getLogger(__name__)

SEARCH_QUEUE = "search"
"""One queue for everything that runs a model, page and API alike."""

ALL = ""
DEFAULT_K = 12

RESULTS_PER_SIDE = "Results per side"

_File = Mapping[str, Any] | None


@dataclass
class Visit:
    """What is kept of a visitor: the number of the last Clear, counted by the browser along with the searches."""

    cleared: int = 0

    def clear(self, number: int) -> None:
        self.cleared = max(self.cleared, number)

    def is_cleared(self, number: int) -> bool:
        """Whether the answer to this request would come after a Clear that was pressed after it."""
        return number < self.cleared


def build_search_tab(service: Service, examples: Mapping[str, Sequence[Example]]) -> None:
    """Add the form and the columns to the open Blocks."""
    first = service.catalogs[0]
    with gr.Column(elem_id="fa-form"):
        with gr.Row(elem_id="fa-query"):
            text = gr.Textbox(
                label="Describe what you look for",
                placeholder="Type something, drop a photo, or do both",
                lines=1,
                max_lines=4,
                autofocus=True,
                elem_id="fa-text",
                scale=3,
            )
            photo = gr.Image(
                label="Photo",
                type="filepath",
                sources=["upload"],
                buttons=[],
                placeholder="Drop a photo or click",
                height=86,
                elem_id="fa-photo",
                scale=1,
                min_width=220,
            )
        with gr.Row(elem_id="fa-options"):
            catalog = gr.Radio(
                service.catalogs,
                value=first,
                label="Catalogue",
                visible=len(service.catalogs) > 1,
                elem_id="fa-catalog",
                scale=2,
                min_width=220,
            )
            category = gr.Dropdown(
                _menu(service, first),
                value=ALL,
                label="Category",
                filterable=False,
                visible=bool(service.categories(first)),
                elem_id="fa-category",
                scale=1,
                min_width=150,
            )
            k = gr.Slider(
                1,
                MAX_K,
                value=DEFAULT_K,
                step=1,
                label=RESULTS_PER_SIDE,
                buttons=[],
                elem_id="fa-k",
                scale=2,
                min_width=200,
            )
            with gr.Row(elem_id="fa-buttons"):
                clear = gr.Button("Clear", min_width=84, scale=0, elem_id="fa-clear")
                go = gr.Button("Search", variant="primary", min_width=130, scale=0, elem_id="fa-go")
        chips = _html(render_examples(examples.get(first, ())), js_on_load=PICK_EXAMPLE, elem_id="fa-examples")

    status = _html(_EMPTY, js_on_load=SHOW_ANSWER + FORM_FIXES, elem_id="fa-status")
    with gr.Row(elem_id="fa-columns"):
        columns = [
            _html(render_column(arm, service.describe(first, arm), None), js_on_load=LINK_COLUMNS, min_width=0, scale=1)
            for arm in ARMS
        ]

    visit, number = gr.State(Visit()), gr.Number(0, visible=False)
    query = [catalog, text, photo, category, k]
    shown = [status, *columns]

    def search_now(visit: Visit, *request: Any) -> Any:
        return answer(service, visit, *request, insist=True)

    def search_if_asked(visit: Visit, *request: Any) -> Any:
        return answer(service, visit, *request, insist=False)

    def pick_example(catalog: str, event: gr.EventData) -> tuple[str, str | None]:
        chosen = examples.get(catalog, ())[int(event.example)]
        return chosen.text, None if chosen.image is None else str(chosen.image)

    def change_catalog(catalog: str) -> tuple[Any, str]:
        menu = _menu(service, catalog)
        return gr.Dropdown(menu, value=ALL, visible=len(menu) > 1), render_examples(examples.get(catalog, ()))

    def clear_all(visit: Visit, catalog: str, number: int) -> list[Any]:
        visit.clear(number)
        return ["", None, ALL, *_blank(service, catalog, _EMPTY)]

    # Without preprocessing, the photo arrives as the file that Gradio has already found to be this page's upload.
    # Decoding, limits and messages are the service's; Gradio's own decoding would fail with a bare "Error".
    # Answers come in the order of the searches, since all share one queue, and a search that waits for one of its kind
    # takes the form as it is when its turn comes: the last answer belongs to the form that is seen.
    run: dict[str, Any] = {
        "preprocess": False,
        "inputs": [visit, *query, number],
        "outputs": shown,
        "js": NUMBER_REQUEST,
        "trigger_mode": "always_last",
        "concurrency_id": SEARCH_QUEUE,
        "concurrency_limit": 1,
        "api_visibility": "private",
        "show_progress": "minimal",
        "show_progress_on": status,
    }
    # "multiple": Gradio would drop a second click while the first is under way, or repeat the first in its place.
    quick: dict[str, Any] = {
        "api_visibility": "private",
        "show_progress": "hidden",
        "queue": False,
        "trigger_mode": "multiple",
    }
    gr.on([go.click, text.submit], search_now, **run)
    gr.on([photo.upload, photo.clear, k.release, category.input], search_if_asked, **run)
    chips.click(pick_example, catalog, [text, photo], **quick).then(search_now, **run)
    catalog.input(change_catalog, catalog, [category, chips], **quick).then(search_if_asked, **run)
    clear.click(
        clear_all,
        [visit, catalog, number],
        [text, photo, category, *shown],
        js=NUMBER_REQUEST,
        preprocess=False,
        **quick,
    )


def _html(value: str, *, js_on_load: str | None = None, **options: Any) -> gr.HTML:
    return gr.HTML(value, js_on_load=js_on_load, apply_default_css=False, elem_classes="fa-flush", **options)


def answer(
    service: Service,
    visit: Visit,
    catalog: str,
    text: str,
    photo: _File,
    category: str,
    k: int,
    number: int,
    *,
    insist: bool,
) -> Any:
    """As `run_query`, but what is on the page stays if Clear was pressed after this request."""
    if visit.is_cleared(number):
        return [gr.skip()] * (1 + len(ARMS))
    found = run_query(service, catalog, text, photo, category, k, insist=insist)
    return [gr.skip()] * len(found) if visit.is_cleared(number) else found


def run_query(
    service: Service, catalog: str, text: str, photo: _File, category: str, k: int, *, insist: bool
) -> list[str]:
    """Status line and both columns; every failure becomes a sentence. `insist` asks for a query that is missing."""
    path = photo.get("path") if isinstance(photo, Mapping) else None
    text = str(text or "").strip()
    if not path and not text:
        return _blank(service, catalog, _render_problem(NOTHING_TYPED) if insist else _EMPTY)
    if not is_count(k):
        problem = f"{RESULTS_PER_SIDE} is {k}; it must be a whole number from 1 to {MAX_K}."
        return _blank(service, catalog, _render_problem(problem))
    is_cut, text = len(text) > MAX_TEXT_CHARACTERS, text[:MAX_TEXT_CHARACTERS]
    where = {CATEGORY: category} if category else None
    try:
        found = service.compare(catalog, text, Path(path) if path else None, k, where)
    except ImageError as error:
        return _blank(service, catalog, _render_problem(f"This photo cannot be used: {error.reason}."))
    except FANoiseError as error:
        return _blank(service, catalog, _render_problem(str(error)))
    except Exception:
        _log.exception("search failed")
        return _blank(service, catalog, _render_problem("The search failed; the reason is in the server's log."))
    return [_render_summary(found, is_cut=is_cut), *_render_columns(service, catalog, found)]


def _render_columns(service: Service, catalog: str, found: Comparison) -> list[str]:
    answers = {"baseline": found.baseline, "fanoise": found.fanoise}
    return [render_column(arm, service.describe(catalog, arm), answers[arm], found.moves[arm]) for arm in ARMS]


def _blank(service: Service, catalog: str, status: str) -> list[str]:
    known = catalog if catalog in service.catalogs else service.catalogs[0]
    return [status, *(render_column(arm, service.describe(known, arm), None) for arm in ARMS)]


def _menu(service: Service, catalog: str) -> list[tuple[str, str]]:
    return [("all", ALL), *((value, value) for value in service.categories(catalog))]


def _render_problem(message: str) -> str:
    return f'<div class="fa-problem" role="alert">{escape(message)}</div>'


def _render_summary(found: Comparison, *, is_cut: bool = False) -> str:
    kinds = moved_kinds(found)
    legend = [_MOVED] * bool(kinds & {"up", "down"}) + [_NEW] * ("new" in kinds)
    cut = f'<p class="fa-note">Only the first {MAX_TEXT_CHARACTERS:,} characters of the text were read.</p>'
    return (
        f'<div class="fa-summary" role="status"><p>{escape(summarise(found))}</p>{cut if is_cut else ""}'
        f'<p class="fa-legend">{"; ".join(legend)}{". " if legend else ""}'
        "Compare scores within a list, not between the two models.</p></div>"
    )


_MOVED = (
    '<span class="fa-move fa-up">↑2</span> higher and <span class="fa-move fa-down">↓2</span> lower than in the other '
    "list"
)
_NEW = '<span class="fa-move fa-new">new</span> not in the other list at all'
_EMPTY = (
    '<div class="fa-empty" role="status"><p class="fa-big">Type something or drop a photo</p>'
    "<p>Both models search the same catalogue; their results appear side by side.</p></div>"
)
