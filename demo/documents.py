"""The generated documents: business pages with attributes a search can name, drawn as scans, equal for equal seeds.

A page is asked for by its kind, chart, letterhead layout and colour, company mark and stamp, all of which show at
112 x 168 pixels. Beside every page stand near misses that differ in one small thing only. Nothing here reads a file.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from PIL import Image

from demo.document_content import (
    CHARTS,
    COLOURS,
    COMPANIES,
    HIGHLIGHTS,
    KINDS,
    LAYOUTS,
    MARK_STYLES,
    MARKS,
    STAMP_COLOURS,
    STAMP_TILTS,
    STAMPS,
    TABLE_COLUMNS,
    Page,
    content_of,
    digest,
    searched,
)
from demo.document_ink import scan
from demo.document_layouts import HEIGHT, WIDTH, draw_page

__all__ = [
    "PHRASINGS",
    "Page",
    "catalog_fields",
    "count_combinations",
    "describe",
    "describe_detail",
    "is_held_out",
    "near_miss_field",
    "near_misses",
    "render",
    "sample_pages",
    "title",
]

_SUBJECTS = [(kind, chart) for kind in KINDS for chart in (CHARTS[1:] if kind == "report" else ("none",))]
_LAYOUT_WORDS = {"band": "top band", "strip": "side strip", "foot": "bottom band", "frame": "frame", "corner": "corner"}
_ORDINALS = {1: "first", 2: "second", 3: "third", 4: "fourth"}
_NUMBERS = {4: "four", 5: "five", 6: "six"}
_HIGHLIGHTED = {"invoice": "row", "receipt": "line", "letter": "paragraph", "form": "box", "table": "column"}
_CHARTED = {"bar": "bar", "line": "point", "pie": "slice"}


def render(page: Page, *, view: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A scan of the page as an RGB image; equal for equal arguments in every process.

    The view changes words, numbers, skew, paper and grain, never an attribute. Near misses of each other get the same
    words, numbers and scan in the same view: only the small thing differs.
    """
    rng = random.Random(digest("render", *searched(page), page.company, view))
    image = scan(draw_page(page, content_of(page, view=view), rng), rng)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def title(page: Page) -> str:
    """The name under which the page is filed: "Alder & Finch invoice 4821"."""
    return f"{page.company} {page.kind} {content_of(page, view=0).number}"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _full(kind: str, band: str, mark: str, stamp: str) -> str:
    return f"{_a(kind)} with {_a(band)}, {_a(mark)} mark and {_a(stamp) + ' stamp' if stamp else 'no stamp'}"


def _list(kind: str, band: str, mark: str, stamp: str) -> str:
    return f"{band}, {mark}, {stamp + ' stamp' if stamp else 'no stamp'}, {kind}"


def _company_first(kind: str, band: str, mark: str, stamp: str) -> str:
    return f"{_a(mark)} company {kind}, {band}, {stamp + ' stamp' if stamp else 'not stamped'}"


def _request(kind: str, band: str, mark: str, stamp: str) -> str:
    return f"find the {kind} with the {band} and the {mark}, {stamp + ' stamp' if stamp else 'without stamp'}"


def _stamp_first(kind: str, band: str, mark: str, stamp: str) -> str:
    return f"{stamp + ' stamp' if stamp else 'no stamp'} on {_a(kind)}, {mark} logo, {band}"


_PHRASES: tuple[Callable[[str, str, str, str], str], ...] = (_full, _list, _company_first, _request, _stamp_first)
PHRASINGS = len(_PHRASES)


def describe(page: Page, *, phrasing: int) -> str:
    """What a searcher would type; every phrasing names all of the searched attributes. `phrasing` wraps around."""
    kind = page.kind if page.chart == "none" else f"{page.chart} chart report"
    stamp = "" if page.stamp == "none" else f"{page.stamp_colour} {page.stamp}"
    band = f"{page.colour} {_LAYOUT_WORDS[page.layout]}"
    return _PHRASES[phrasing % PHRASINGS](kind, band, f"{page.mark_colour} {page.mark}", stamp)


def near_miss_field(page: Page) -> str:
    """The one field in which the near misses of this page differ; equal for all of them."""
    fields = ["highlight", "mark_style"]
    if page.stamp != "none":
        fields.append("stamp_tilt")
    if page.kind == "table":
        fields.append("columns")
    return fields[digest("near miss", *searched(page), page.company) % len(fields)]


def near_misses(page: Page) -> list[Page]:
    """The page and its near misses, three or four in all, that differ in `near_miss_field` and in nothing else."""
    field = near_miss_field(page)
    values: dict[str, tuple[Any, ...]] = {
        "highlight": HIGHLIGHTS,
        "mark_style": MARK_STYLES,
        "stamp_tilt": STAMP_TILTS,
        "columns": TABLE_COLUMNS,
    }
    return [replace(page, **{field: value}) for value in values[field]]


def describe_detail(page: Page) -> str:
    """`describe` and the small thing that tells the page from its near misses."""
    if (field := near_miss_field(page)) == "highlight":
        thing = _HIGHLIGHTED.get(page.kind) or _CHARTED[page.chart]
        detail = f"{_ORDINALS[page.highlight]} {thing} marked"
    elif field == "mark_style":
        detail = f"the mark is {page.mark_style}"
    elif field == "stamp_tilt":
        detail = "level stamp" if page.stamp_tilt == "level" else f"stamp tilted {page.stamp_tilt}"
    else:
        detail = f"{_NUMBERS[page.columns]} columns"
    return f"{describe(page, phrasing=0)}, {detail}"


def catalog_fields(page: Page, rng: random.Random, *, view: int = 0) -> dict[str, Any]:
    """The catalogue row of the page: date and amount as `view` prints them; `rng` picks the phrasing."""
    content = content_of(page, view=view)
    cents = content.total_cents if content.lines else 100 * sum(content.grid[-1]) if content.grid else None
    return {
        "title": title(page),
        "description": describe(page, phrasing=rng.randrange(PHRASINGS)),
        "category": page.kind,
        "date": content.date,
        "amount": "" if cents is None else f"{cents // 100}.{cents % 100:02d}",
        **asdict(page),
    }


def _is_held_out(kind: str, chart: str, colour: str, mark: str) -> bool:
    return digest("held-out", kind, chart, colour, mark) % 5 == 0


def is_held_out(page: Page) -> bool:
    """Whether the page is kept from training, by its combination of kind, chart, letterhead colour and mark: 1 in 5."""
    return _is_held_out(page.kind, page.chart, page.colour, page.mark)


def count_combinations(*, held_out: bool) -> int:
    """How many pages exist that differ in what `describe` names, inside or outside the held-out part."""
    triples = sum(
        _is_held_out(*subject, *rest) == held_out for subject in _SUBJECTS for rest in product(COLOURS, MARKS)
    )
    return triples * len(LAYOUTS) * (len(COLOURS) - 1) * (1 + (len(STAMPS) - 1) * len(STAMP_COLOURS))


def sample_pages(count: int, *, seed: int, held_out: bool) -> list[Page]:
    """`count` pages no two of which share their searched attributes, all held out or none."""
    if count > (available := count_combinations(held_out=held_out)):
        raise ValueError(f"sample_pages(count={count}, held_out={held_out}): only {available} combinations exist")
    rng = random.Random(digest("sample", seed, held_out))
    pages: dict[tuple[str, ...], Page] = {}
    while len(pages) < count:
        page = _random_page(rng)
        if is_held_out(page) == held_out:
            pages.setdefault(searched(page), page)
    return list(pages.values())


def _random_page(rng: random.Random) -> Page:
    kind, chart = rng.choice(_SUBJECTS)
    colour, mark_colour = rng.sample(COLOURS, 2)
    stamp = rng.choice(STAMPS)
    stamped = stamp != "none"
    return Page(
        kind=kind,
        company=rng.choice(COMPANIES),
        layout=rng.choice(LAYOUTS),
        colour=colour,
        mark=rng.choice(MARKS),
        mark_colour=mark_colour,
        mark_style=rng.choice(MARK_STYLES),
        stamp=stamp,
        stamp_colour=rng.choice(STAMP_COLOURS) if stamped else "none",
        stamp_tilt=rng.choice(STAMP_TILTS) if stamped else "level",
        chart=chart,
        highlight=rng.choice(HIGHLIGHTS),
        columns=rng.choice(TABLE_COLUMNS) if kind == "table" else 0,
    )
