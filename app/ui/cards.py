"""Search answers as HTML: one column a side, one card an item."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image, UnidentifiedImageError

from app.service import Arm, ArmCard, Comparison, Move
from app.ui.html import escape, file_url, picture_url
from index.search import Answer, Hit

TITLES: dict[Arm, str] = {"baseline": "Baseline", "fanoise": "FANoise"}

_OWN_NAMES = ("title", "name", "subject", "caption")
_TITLE_FIELDS = (*_OWN_NAMES, "company", "category")
_DETAIL_FIELDS = ("price", "company", "brand", "total", "amount", "date", "kind", "category")
_AMOUNTS = ("price", "total", "amount")
_PORTRAIT = 0.85


def render_column(arm: Arm, card: ArmCard, answer: Answer | None, moves: Sequence[Move] = ()) -> str:
    """The header of a side and, once there is an answer, its ranked cards."""
    about = f"{_describe_noise(card.noise)} · {card.count:,} items · on {card.device}"
    head = (
        f'<header class="fa-head"><h2>{TITLES[arm]}</h2>'
        f'<p class="fa-model" title="the embedder">{escape(card.name)}</p>'
        f'<p class="fa-about">{escape(about)}</p>{_render_latency(answer.latency_ms) if answer else ""}</header>'
    )
    if answer is None:
        return f'<section class="fa-column fa-{arm}" aria-label="{TITLES[arm]}">{head}</section>'
    sizes = [_thumbnail_size(hit.image) for hit in answer.hits]
    shapes = [width / height for width, height in filter(None, sizes)]
    shape = "portrait" if shapes and median(shapes) < _PORTRAIT else "square"
    titles = Counter(map(_title, answer.hits))
    cards = "".join(
        _render_card(arm, hit, move, size, is_alone=titles[_title(hit)] == 1)
        for hit, move, size in zip(answer.hits, moves, sizes, strict=True)
    )
    body = f'<ol class="fa-hits fa-{shape}">{cards}</ol>' if cards else '<p class="fa-none">No item matches.</p>'
    return f'<section class="fa-column fa-{arm}" aria-label="{TITLES[arm]} results">{head}{body}</section>'


def summarise(comparison: Comparison) -> str:
    """One sentence on how the two lists differ, as text."""
    moves = comparison.moves["fanoise"]
    if not moves and not comparison.baseline.hits:
        return "No item matches. Try the filter “all”."
    count = {kind: sum(move.kind == kind for move in moves) for kind in ("same", "up", "down", "new")}
    if not moved_kinds(comparison):
        return f"Both found the same {_items(len(moves))} in the same order."
    if count["new"] == 0:
        return f"Both found the same {_items(len(moves))}; FANoise orders {count['up'] + count['down']} differently."
    shared = len(moves) - count["new"]
    return (
        f"{shared} of {_items(len(moves))} found by both; FANoise brings in {count['new']} that Baseline does not show."
    )


def moved_kinds(comparison: Comparison) -> set[str]:
    """The marks that the cards bear; none where both lists are the same."""
    return {move.kind for moves in comparison.moves.values() for move in moves if move.kind != "same"}


def _items(count: int) -> str:
    return f"{count} item" if count == 1 else f"{count} items"


def _render_card(arm: Arm, hit: Hit, move: Move, size: tuple[int, int] | None, *, is_alone: bool) -> str:
    """`is_alone`: no other card of the column has this title."""
    title = _title(hit)
    details = _details(hit, title, is_alone=is_alone)
    most = 2 if hit.id in details else 1
    shown, all_details = escape(" · ".join(details[:most])), escape(" · ".join(details))
    return (
        f'<li class="fa-hit" data-item="{escape(hit.id)}">'
        f'<p class="fa-marks"><span class="fa-position">{hit.position}</span>{_render_move(arm, move)}</p>'
        f'{_render_picture(hit, title, size)}<p class="fa-title" title="{escape(title)}">{escape(title)}</p>'
        f'<p class="fa-line"><span class="fa-details" title="{all_details}">{shown}</span>'
        f'<span class="fa-score" title="cosine similarity">{_format_score(hit.score)}</span></p></li>'
    )


def _render_picture(hit: Hit, title: str, size: tuple[int, int] | None) -> str:
    if hit.image is None or size is None:
        return '<div class="fa-thumb fa-blank" aria-hidden="true">no picture</div>'
    width, height = size
    return (
        f'<a class="fa-thumb" href="{escape(picture_url(hit.image.stem))}" target="_blank" rel="noopener" '
        f'aria-label="Open picture: {escape(title)}"><img src="{escape(file_url(hit.image))}" alt="{escape(title)}" '
        f'width="{width}" height="{height}" loading="lazy" decoding="async"></a>'
    )


def _render_move(arm: Arm, move: Move) -> str:
    other = TITLES["fanoise" if arm == "baseline" else "baseline"]
    if move.kind == "same":
        return ""
    if move.kind == "new":
        word = "new" if arm == "fanoise" else "only here"
        return f'<span class="fa-move fa-new" title="not among the results of {other}">{word}</span>'
    arrow, word = ("↑", "higher") if move.kind == "up" else ("↓", "lower")
    said = f"{move.by} {'place' if move.by == 1 else 'places'} {word} than in {other}"
    return f'<span class="fa-move fa-{move.kind}" title="{said}" aria-label="{said}" role="img">{arrow}{move.by}</span>'


def _render_latency(latency_ms: Mapping[str, float]) -> str:
    parts = "".join(
        f"<span>{label} <b>{_milliseconds(latency_ms[name])}</b></span>"
        for name, label in (("encode", "encode"), ("search", "search"))
        if name in latency_ms
    )
    return f'<p class="fa-latency">{parts}</p>'


def _format_score(score: float) -> str:
    return f"{score:.3f}".replace("-", "−")


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def _describe_noise(noise: Mapping[str, Any]) -> str:
    strength = noise.get("strength")
    if strength is None:
        return "training noise not recorded"
    if not strength:
        return "trained without noise"
    scaling = noise.get("scaling")
    return f"trained with noise {strength:g}" + (f", {scaling}" if scaling else "")


def _title(hit: Hit) -> str:
    for name in _TITLE_FIELDS:
        if hit.fields.get(name):
            return str(hit.fields[name])
    return hit.id


def _details(hit: Hit, title: str, *, is_alone: bool) -> list[str]:
    """What tells the item from others: its id first if the title is shared, or is no name of its own."""
    is_named = is_alone and any(hit.fields.get(name) for name in _OWN_NAMES)
    found = [] if is_named or title == hit.id else [hit.id]
    for name in _DETAIL_FIELDS:
        value = hit.fields.get(name)
        if value is None or value == "" or (name not in _AMOUNTS and str(value).casefold() in title.casefold()):
            continue
        found.append(_format_amount(value) if name in _AMOUNTS else str(value))
    return found


def _format_amount(value: object) -> str:
    """12.5 and "12.5" as 12.50; whole numbers and anything with a currency stay as they are."""
    text = str(value)
    try:
        return f"{float(text):.2f}" if "." in text else text
    except ValueError:
        return text


@lru_cache(maxsize=20_000)
def _thumbnail_size(path: Path | None) -> tuple[int, int] | None:
    """Width and height from the file's header, so that the page does not jump while pictures load."""
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError):
        return None
