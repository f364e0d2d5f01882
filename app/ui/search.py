"""The search tab: the query form, clickable examples, and the two columns."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app.examples import Example
from app.service import ARMS, CATEGORY, MAX_K, MAX_TEXT_CHARACTERS, NOTHING_TYPED, Comparison, Service
from app.ui.cards import is_unmoved, render_column, summarise
from app.ui.html import escape, file_url
from fanoise.errors import FANoiseError, ImageError

_log = logging.getLogger(__name__)

SEARCH_QUEUE = "search"
"""One queue for everything that runs a model, page and API alike."""

ALL = ""
DEFAULT_K = 12

_File = Mapping[str, Any] | None

# A click anywhere in the list reaches Python with the number of the example, taken from the real button under it.
_PICK_EXAMPLE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-example]');
  if (button) trigger('click', {example: Number(button.dataset.example)});
});
"""
# The same item lights up in both columns.
_LINK_COLUMNS = """
const light = (event, on) => {
  const card = event.target.closest('.fa-hit');
  if (!card) return;
  for (const twin of document.querySelectorAll('.fa-hit')) {
    twin.classList.toggle('fa-twin', on && twin.dataset.item === card.dataset.item);
  }
};
for (const [name, on] of [['mouseover', true], ['focusin', true], ['mouseout', false], ['focusout', false]]) {
  element.addEventListener(name, (event) => light(event, on));
}
"""


def build_search_tab(service: Service, examples: Mapping[str, Sequence[Example]]) -> None:
    """Add the form and the columns to the open Blocks."""
    first = service.catalogs[0]
    with gr.Column(elem_id="fa-form"):
        with gr.Row(elem_id="fa-query"):
            text = gr.Textbox(
                label="Describe what you look for",
                placeholder="Type something, drop a photo, or do both",
                max_length=MAX_TEXT_CHARACTERS,
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
                label="Results per side",
                buttons=[],
                elem_id="fa-k",
                scale=2,
                min_width=200,
            )
            clear = gr.Button("Clear", min_width=84, scale=0, elem_id="fa-clear")
            go = gr.Button("Search", variant="primary", min_width=130, scale=0, elem_id="fa-go")
        chips = _html(_render_examples(examples.get(first, ())), js_on_load=_PICK_EXAMPLE, elem_id="fa-examples")

    status = _html(_EMPTY, elem_id="fa-status")
    with gr.Row(elem_id="fa-columns"):
        columns = [
            _html(
                render_column(arm, service.describe(first, arm), None), js_on_load=_LINK_COLUMNS, min_width=0, scale=1
            )
            for arm in ARMS
        ]

    query = [catalog, text, photo, category, k]
    shown = [status, *columns]

    def search_now(catalog: str, text: str, photo: _File, category: str, k: int) -> list[str]:
        return run_query(service, catalog, text, photo, category, k, insist=True)

    def search_if_asked(catalog: str, text: str, photo: _File, category: str, k: int) -> list[str]:
        return run_query(service, catalog, text, photo, category, k, insist=False)

    def pick_example(catalog: str, event: gr.EventData) -> tuple[str, str | None]:
        chosen = examples.get(catalog, ())[int(event.example)]
        return chosen.text, None if chosen.image is None else str(chosen.image)

    def change_catalog(catalog: str) -> tuple[Any, str]:
        menu = _menu(service, catalog)
        return gr.Dropdown(menu, value=ALL, visible=len(menu) > 1), _render_examples(examples.get(catalog, ()))

    def clear_all(catalog: str) -> list[Any]:
        return ["", None, ALL, *_blank(service, catalog, _EMPTY)]

    # Without preprocessing, the photo arrives as the file that Gradio has already found to be this page's upload.
    # Decoding, limits and messages are the service's; Gradio's own decoding would fail with a bare "Error".
    run: dict[str, Any] = {
        "preprocess": False,
        "inputs": query,
        "outputs": shown,
        "concurrency_id": SEARCH_QUEUE,
        "concurrency_limit": 1,
        "api_visibility": "private",
        "show_progress": "minimal",
        "show_progress_on": status,
    }
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    gr.on([go.click, text.submit], search_now, trigger_mode="always_last", **run)
    gr.on([photo.upload, photo.clear, k.release, category.input], search_if_asked, trigger_mode="always_last", **run)
    chips.click(pick_example, catalog, [text, photo], **quick).then(search_now, **run)
    catalog.input(change_catalog, catalog, [category, chips], **quick).then(search_if_asked, **run)
    clear.click(clear_all, catalog, [text, photo, category, *shown], **quick)


def _html(value: str, *, js_on_load: str | None = None, **options: Any) -> gr.HTML:
    return gr.HTML(value, js_on_load=js_on_load, apply_default_css=False, elem_classes="fa-flush", **options)


def run_query(
    service: Service, catalog: str, text: str, photo: _File, category: str, k: int, *, insist: bool
) -> list[str]:
    """Status line and both columns; every failure becomes a sentence. `insist` asks for a query that is missing."""
    path = photo.get("path") if isinstance(photo, Mapping) else None
    if not path and not str(text or "").strip():
        return _blank(service, catalog, _render_problem(NOTHING_TYPED) if insist else _EMPTY)
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
    return [_render_summary(found), *_render_columns(service, catalog, found)]


def _render_columns(service: Service, catalog: str, found: Comparison) -> list[str]:
    answers = {"baseline": found.baseline, "fanoise": found.fanoise}
    return [render_column(arm, service.describe(catalog, arm), answers[arm], found.moves[arm]) for arm in ARMS]


def _blank(service: Service, catalog: str, status: str) -> list[str]:
    known = catalog if catalog in service.catalogs else service.catalogs[0]
    return [status, *(render_column(arm, service.describe(known, arm), None) for arm in ARMS)]


def _menu(service: Service, catalog: str) -> list[tuple[str, str]]:
    return [("all", ALL), *((value, value) for value in service.categories(catalog))]


def _render_examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    buttons = []
    for number, example in enumerate(examples):
        label = example.label or example.text
        picture = ""
        if example.image is not None:
            alt = "" if label else "example photo"
            picture = f'<img src="{escape(file_url(example.image))}" alt="{alt}" width="40" height="40" loading="lazy">'
        words = f"<span>{escape(label)}</span>" if label else ""
        plus = " fa-both" if example.image is not None and example.text else ""
        buttons.append(f'<button type="button" class="fa-chip{plus}" data-example="{number}">{picture}{words}</button>')
    return f'<div class="fa-chips" role="group" aria-label="Example queries"><b>Try</b>{"".join(buttons)}</div>'


def _render_problem(message: str) -> str:
    return f'<div class="fa-problem" role="alert">{escape(message)}</div>'


def _render_summary(found: Comparison) -> str:
    legend = "" if is_unmoved(found) else _LEGEND
    return (
        f'<div class="fa-summary" role="status"><p>{escape(summarise(found))}</p>'
        f'<p class="fa-legend">{legend}Compare scores within a list, not between the two models.</p></div>'
    )


_LEGEND = (
    '<span class="fa-move fa-up">↑2</span> higher and <span class="fa-move fa-down">↓2</span> lower than in the other '
    'list; <span class="fa-move fa-new">new</span> not in it at all. '
)
_EMPTY = (
    '<div class="fa-empty" role="status"><p class="fa-big">Type something or drop a photo</p>'
    "<p>Both models search the same catalogue; their results appear side by side.</p></div>"
)
