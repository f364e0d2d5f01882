"""The tab "Is it better?": the numbers of the A/B report, with what they do and do not say."""

from collections.abc import Sequence

import gradio as gr

from app.report import ReportRow, Verdict
from app.ui.html import escape

_WORDS: dict[Verdict, str] = {
    "fanoise": "FANoise better",
    "baseline": "Baseline better",
    "luck": "within seed spread",
    "unclear": "no clear difference",
}


def build_report_tab(rows: Sequence[ReportRow]) -> None:
    gr.HTML(render_report(rows), apply_default_css=False, elem_classes="fa-flush", elem_id="fa-report")


def render_report(rows: Sequence[ReportRow]) -> str:
    """A sentence on the whole, the table, and how to read it."""
    scale = max((max(map(abs, (*row.interval, row.spread or 0.0))) for row in rows), default=0.0) or 1.0
    body = "".join(_render_row(row, scale) for row in rows)
    return (
        f'<section class="fa-report"><h2>{escape(conclude(rows))}</h2>'
        "<p>Two models, trained alike but for the noise, answered the same questions. "
        "Search itself is noise-free for both.</p>"
        '<div class="fa-scroll" tabindex="0" role="region" aria-label="Results per query set"><table>'
        '<thead><tr><th scope="col">Query set</th><th scope="col">Baseline</th><th scope="col">FANoise</th>'
        '<th scope="col">Difference</th><th scope="col">95 % interval</th><th scope="col"><i>p</i></th>'
        '<th scope="col">Seed spread</th><th scope="col">Reading</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>{_render_notes(rows)}</section>"
    )


def conclude(rows: Sequence[ReportRow]) -> str:
    """The whole table in one sentence, as text."""
    count = {verdict: sum(row.verdict == verdict for row in rows) for verdict in _WORDS}
    sets = f"{len(rows)} query set" + ("" if len(rows) == 1 else "s")
    if not count["fanoise"] and not count["baseline"]:
        return f"No difference shown: on none of {sets} do the two differ by more than chance and seed luck explain."
    parts = []
    if count["fanoise"]:
        parts.append(f"FANoise is better on {count['fanoise']}")
    if count["baseline"]:
        parts.append(f"the baseline is better on {count['baseline']}")
    rest = count["luck"] + count["unclear"]
    if rest:
        parts.append(f"{rest} {'shows' if rest == 1 else 'show'} no difference one could rely on")
    sentence = f"Of {sets}: " + ", ".join(parts) + "."
    return sentence


def _render_row(row: ReportRow, scale: float) -> str:
    low, high = row.interval
    queries = f", {row.queries:,} queries" if row.queries is not None else ""
    spread = "not measured" if row.spread is None else f"±{100 * row.spread:.1f}"
    seeds = f' title="over {row.seeds} seeds"' if row.seeds is not None else ""
    left, width = 50 + 48 * low / scale, max(48 * (high - low) / scale, 1.0)
    dot = 50 + 48 * row.difference / scale
    bar = f'<i style="left:{left:.1f}%;width:{width:.1f}%"></i><b style="left:{dot:.1f}%"></b>'
    return (
        f'<tr class="fa-{row.verdict}">'
        f'<th scope="row">{escape(row.name)}<small>{escape(row.metric)}{queries}</small></th>'
        f'<td data-label="Baseline">{100 * row.baseline:.1f}</td><td data-label="FANoise">{100 * row.fanoise:.1f}</td>'
        f'<td data-label="Difference"><b>{_signed(row.difference)}</b></td>'
        f'<td data-label="95 % interval">{_signed(low)} to {_signed(high)}'
        f'<span class="fa-interval" aria-hidden="true">{bar}</span></td>'
        f'<td data-label="p">{_p_value(row.p)}</td><td data-label="Seed spread"{seeds}>{spread}</td>'
        f'<td data-label="Reading"><span class="fa-verdict">{_WORDS[row.verdict]}</span></td></tr>'
    )


def _render_notes(rows: Sequence[ReportRow]) -> str:
    measured = [row.seeds for row in rows if row.spread is not None and row.seeds is not None]
    seeds = f" ({max(measured)} seeds)" if measured else ""
    return (
        "<dl>"
        "<dt>Baseline, FANoise</dt><dd>Points of 100: the named measure averaged over the set's queries.</dd>"
        "<dt>95 % interval</dt><dd>Where the difference may lie, given that other queries of the same kind could have "
        "been asked. If it includes 0, these queries do not tell which is better.</dd>"
        "<dt><i>p</i></dt><dd>How often a difference at least this large appears if the two models are equally good. "
        f"With {len(rows)} set{'' if len(rows) == 1 else 's'}, expect one below 0.05 by chance now and then.</dd>"
        f"<dt>Seed spread</dt><dd>The standard deviation of the baseline's result when it is trained with other random "
        f"seeds{seeds}. A difference no larger than this says more about the seed than about the method.</dd></dl>"
    )


def _signed(value: float) -> str:
    points = f"{100 * value:+.1f}"
    return "0.0" if float(points) == 0 else points.replace("-", "−")


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
