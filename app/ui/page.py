"""The whole page: header, tabs, endpoints, and how it is served."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when imported

import gradio as gr

from app.examples import Example
from app.pictures import Pictures
from app.report import ReportRow
from app.service import Service
from app.ui.api import MAX_IMAGE_BYTES, add_endpoints
from app.ui.picture import picture_route
from app.ui.report import build_report_tab
from app.ui.search import build_search_tab

TITLE = "FANoise search"
_HOUR_S = 3_600
_FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_HEADER = """
<header class="fa-top">
<div><h1>FANoise search</h1>
<p>One query, two embedders: the baseline beside the one trained with spectral noise.</p></div>
<p class="fa-promise"><b>Noise-free search</b>
The noise acted in training only: a query always gives the same scores.</p>
</header>
"""


def build_page(
    service: Service,
    *,
    examples: Mapping[str, Sequence[Example]] | None = None,
    report: Sequence[ReportRow] | None = None,
) -> gr.Blocks:
    """The page with its queue and endpoints, not yet listening. Launch it with `launch_options`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_HOUR_S, _HOUR_S), fill_width=True) as page:
        gr.HTML(_HEADER, apply_default_css=False, elem_classes="fa-flush", elem_id="fa-header")
        if report:
            with gr.Tabs(elem_id="fa-tabs"):
                with gr.Tab("Search", id="search"):
                    build_search_tab(service, examples or {})
                with gr.Tab("Is it better?", id="report"):
                    build_report_tab(report)
        else:
            build_search_tab(service, examples or {})
        add_endpoints(service)
    page.queue(max_size=64, default_concurrency_limit=1)
    return page


def launch_options(
    service: Service, *, examples: Mapping[str, Sequence[Example]] | None = None, originals: bool = False
) -> dict[str, Any]:
    """Arguments of `Blocks.launch`: look, limits, and the few files a browser may read, see `app.pictures`."""
    photos = [example.image for entries in (examples or {}).values() for example in entries if example.image]
    return {
        "allowed_paths": [str(path) for path in [*service.thumbnail_folders(), *photos]],
        "app_kwargs": {"routes": [picture_route(Pictures(service, originals=originals))]},
        "css_paths": [Path(__file__).with_name(name) for name in ("page.css", "results.css", "report.css")],
        "theme": _theme(),
        "max_file_size": MAX_IMAGE_BYTES,
        "strict_cors": True,
        "ssr_mode": False,
        "footer_links": ["api"],
        "run_history": False,
        "quiet": True,
        "max_threads": 16,
        "state_session_capacity": 1_000,
    }


def serve(page: gr.Blocks, options: Mapping[str, Any], *, host: str, port: int, share: bool) -> None:
    """Listen until interrupted; prints the address once the page answers."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _, local_url, share_url = page.launch(
        **options, server_name=host, server_port=port, share=share, prevent_thread_lock=True, inbrowser=False
    )
    print(
        f"The page is open at {local_url}" + (f" and {share_url}" if share_url else "") + "  (Ctrl-C ends it)",
        flush=True,
    )
    page.block_thread()


def _theme() -> gr.themes.Base:
    """Gradio's own parts in the colours that page.css names, for light and dark alike."""
    both = {
        "body_background_fill": "var(--fa-page)",
        "body_text_color": "var(--fa-ink)",
        "body_text_color_subdued": "var(--fa-soft)",
        "background_fill_primary": "var(--fa-card)",
        "background_fill_secondary": "var(--fa-mat)",
        "border_color_primary": "var(--fa-line)",
        "border_color_accent": "var(--fa-accent)",
        "color_accent_soft": "var(--fa-accent-soft)",
        "block_background_fill": "transparent",
        "block_label_background_fill": "transparent",
        "block_label_text_color": "var(--fa-soft)",
        "block_title_text_color": "var(--fa-soft)",
        "input_background_fill": "var(--fa-input)",
        "input_border_color": "var(--fa-line)",
        "input_border_color_focus": "var(--fa-accent)",
        "input_placeholder_color": "var(--fa-soft)",
        "slider_color": "var(--fa-accent)",
        "checkbox_background_color_selected": "var(--fa-accent)",
        "checkbox_border_color_selected": "var(--fa-accent)",
        "checkbox_label_background_fill": "var(--fa-input)",
        "checkbox_label_background_fill_hover": "var(--fa-mat)",
        "checkbox_label_background_fill_selected": "var(--fa-accent-soft)",
        "checkbox_label_text_color": "var(--fa-ink)",
        "checkbox_label_text_color_selected": "var(--fa-ink)",
        "button_primary_background_fill": "var(--fa-accent)",
        "button_primary_background_fill_hover": "var(--fa-accent-strong)",
        "button_primary_text_color": "var(--fa-on-accent)",
        "button_secondary_background_fill": "transparent",
        "button_secondary_background_fill_hover": "var(--fa-mat)",
        "button_secondary_border_color": "var(--fa-line)",
        "button_secondary_text_color": "var(--fa-ink)",
        "link_text_color": "var(--fa-accent)",
    }
    theme = gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="stone", radius_size="lg", font=_FONT, font_mono=_MONO
    )
    known = set(inspect.signature(theme.set).parameters)
    dark = {f"{name}_dark": value for name, value in both.items() if f"{name}_dark" in known}
    return theme.set(**both, **dark, block_border_width="0px", block_shadow="none", input_border_width="1px")
