"""What a page is (its attributes) and what stands on it (words, dates, sums), before anything is drawn.

`Page` holds the attributes a picture of the page always shows. `content_of` makes the text and the numbers of one view
of it: a pure function of (page, view) that ignores the small details near misses differ in, so that two near misses
seen in the same view carry the same words and sums.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("invoice", "receipt", "letter", "form", "report", "table")
LAYOUTS = ("band", "strip", "foot", "frame", "corner")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
MARKS = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "moon")
MARK_STYLES = ("solid", "hollow", "ringed", "split")
STAMPS = ("none", "paid", "urgent", "copy", "draft", "void")
STAMP_COLOURS = ("red", "blue", "green", "purple")
STAMP_TILTS = ("up", "level", "down")
CHARTS = ("none", "bar", "line", "pie")
HIGHLIGHTS = (1, 2, 3, 4)
TABLE_COLUMNS = (4, 5, 6)
COMPANIES = (
    "Alder & Finch", "Brightwell Supply", "Cedar Lane Works", "Dunmore Foods", "Elmgate Optics", "Fairhaven Marine",
    "Glenrock Tools", "Hollis & Day", "Ironbridge Print", "Juniper Mills", "Kestrel Freight", "Larkfield Dairy",
    "Marlow Textiles", "Northgate Lumber", "Oakhurst Paper", "Pinecrest Labs", "Quarry Street", "Ridgeway Motors",
    "Saltmarsh Tea", "Thornbury Glass", "Upland Seed", "Vale & Sons", "Westerly Sails", "Yarrow Books",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Page:
    """The attributes of a page that every view of it shows.

    A search may name kind, chart, layout, colour, mark, mark colour, stamp and stamp colour; mark style, stamp tilt,
    highlight and columns are the small details that near misses differ in; the company is read on the page only.
    """

    kind: str
    company: str
    layout: str
    """Where the letterhead colour lies: band (top), strip (left side), foot (bottom band), frame, corner."""
    colour: str
    """Letterhead colour."""
    mark: str
    """Shape of the company mark."""
    mark_colour: str
    """Differs from `colour`; also the accent in which the highlighted thing is drawn."""
    mark_style: str = "solid"
    stamp: str = "none"
    stamp_colour: str = "none"
    stamp_tilt: str = "level"
    chart: str = "none"
    highlight: int = 1
    """Which row, line, paragraph, box, bar, point, slice or column is picked out; counted from 1."""
    columns: int = 0
    """Columns of numbers of a table; 0 on every other kind."""

    def __post_init__(self) -> None:
        stamped = self.stamp != "none"
        allowed: dict[str, Sequence[str | int]] = {
            "kind": KINDS,
            "company": COMPANIES,
            "layout": LAYOUTS,
            "colour": COLOURS,
            "mark": MARKS,
            "mark_colour": [colour for colour in COLOURS if colour != self.colour],
            "mark_style": MARK_STYLES,
            "stamp": STAMPS,
            "stamp_colour": STAMP_COLOURS if stamped else ("none",),
            "stamp_tilt": STAMP_TILTS if stamped else ("level",),
            "chart": CHARTS[1:] if self.kind == "report" else ("none",),
            "highlight": HIGHLIGHTS,
            "columns": TABLE_COLUMNS if self.kind == "table" else (0,),
        }
        for name, values in allowed.items():
            if (value := getattr(self, name)) not in values:
                raise ValueError(
                    f"Page.{name} is {value!r} on a {self.kind}, must be one of {', '.join(map(str, values))}"
                )


def searched(page: Page) -> tuple[str, ...]:
    """The attributes a search names, in a fixed order: what makes one page findable among others."""
    return (
        page.kind,
        page.chart,
        page.layout,
        page.colour,
        page.mark,
        page.mark_colour,
        page.stamp,
        page.stamp_colour,
    )


def digest(*parts: object) -> int:
    """A number in [0, 2**64) that depends on the parts alone: equal in every process and on every machine."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of an invoice or a receipt; money is in cents."""

    text: str
    quantity: int
    price_cents: int

    @property
    def amount_cents(self) -> int:
        return self.quantity * self.price_cents


@dataclass(frozen=True, kw_only=True)
class Content:
    """The words and numbers of one view; the parts a kind has no use for are empty."""

    number: int
    date: str
    due: str
    time: str
    person: str
    sender: str
    street: str
    city: str
    heading: str
    lines: tuple[Line, ...] = ()
    tax_percent: int = 0
    paragraphs: tuple[tuple[str, ...], ...] = ()
    """Each paragraph is a tuple of sentences, so that drawing can leave out what does not fit."""
    fields: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    row_names: tuple[str, ...] = ()
    column_names: tuple[str, ...] = ()
    grid: tuple[tuple[int, ...], ...] = ()
    """Rows of numbers; the last row is the sum of the rows above it."""
    series: tuple[int, ...] = ()
    """The values of the chart; those of a pie are percentages that sum to 100."""

    @property
    def subtotal_cents(self) -> int:
        return sum(line.amount_cents for line in self.lines)

    @property
    def tax_cents(self) -> int:
        return (self.subtotal_cents * self.tax_percent + 50) // 100

    @property
    def total_cents(self) -> int:
        return self.subtotal_cents + self.tax_cents


_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
           "December")  # fmt: skip
_FIRST = ("Anna", "Ben", "Clara", "David", "Erin", "Felix", "Grace", "Henry", "Iris", "Jonas", "Karen", "Leo", "Maya",
          "Nils", "Olga", "Peter", "Rosa", "Simon", "Tessa", "Victor")  # fmt: skip
_LAST = ("Archer", "Bell", "Carver", "Doyle", "Ellis", "Fisher", "Grant", "Hale", "Irving", "Keller", "Lowe", "Mason",
         "Nash", "Osborne", "Porter", "Reed", "Stone", "Turner", "Walsh", "Young")  # fmt: skip
_STREETS = ("Harbour Road", "Mill Lane", "Station Street", "Orchard Way", "Bridge Street", "Park Avenue", "Church Lane",
            "Market Square", "Castle Hill", "Riverside Drive")  # fmt: skip
_CITIES = ("Ashford", "Bellport", "Carlow", "Denby", "Eastmoor", "Farley", "Grantham", "Hadleigh", "Kelso", "Milton")
_GOODS = ("Paper, A4 ream", "Desk lamp", "Oak shelf", "Copper wire", "Office chair", "Packing tape", "Steel bolts",
          "Cotton cloth", "Print service", "Wall clock", "Glass jars", "Delivery", "Site visit", "Paint, 5 litre",
          "Garden hose", "Tool set", "Support, hourly", "Light fitting", "Storage box", "Cable, 10 m")  # fmt: skip
_GROCERIES = ("Bread", "Milk 1 l", "Apples", "Coffee", "Green tea", "Butter", "Eggs x 6", "Rice 1 kg", "Soap", "Honey",
              "Tomatoes", "Cheese", "Orange juice", "Pasta", "Candles", "Chocolate", "Onions", "Yoghurt")  # fmt: skip
_SUBJECTS = ("The order", "Your account", "The delivery", "The new contract", "Our service team", "The annual review",
             "The payment", "Each department", "The supplier", "Your request")  # fmt: skip
_VERBS = ("was checked by", "has been sent to", "will be discussed with", "is now with", "was agreed with",
          "has been confirmed by", "will be reviewed by", "is supported by")  # fmt: skip
_OBJECTS = ("the sales office", "our warehouse", "the project group", "both partners", "the finance team",
            "the regional manager", "your local branch", "the board")  # fmt: skip
_ENDINGS = ("this month", "before the end of the year", "without further cost", "at the agreed price", "next week",
            "as planned", "under the usual terms", "after a short delay", "in the second quarter",
            "according to the schedule")  # fmt: skip
_REPORTS = ("Annual Report", "Sales Report", "Quarterly Review", "Market Report", "Energy Report", "Progress Report")
_FORMS = ("Application Form", "Order Form", "Registration", "Claim Form", "Membership Form", "Travel Request")
_TABLES = ("Price List", "Stock Overview", "Monthly Figures", "Staff Hours", "Sales by Region", "Shipping Rates")
_LETTERS = ("Your order", "Contract renewal", "Change of address", "Annual meeting", "Our new prices", "Your enquiry")
_CHOICES = (("New", "Renewal", "Change", "Other"), ("Card", "Cash", "Transfer", "Cheque"),
            ("North", "East", "South", "West"), ("Email", "Phone", "Post", "Visit"))  # fmt: skip


def content_of(page: Page, *, view: int) -> Content:
    """The words and numbers of `page` in one view; equal arguments give equal content."""
    seed = digest(*searched(page), page.company)
    rng = random.Random(digest("content", seed, view))
    day, month, year = rng.randint(1, 28), rng.randrange(12), rng.randint(2021, 2025)
    person, sender = (f"{rng.choice(_FIRST)} {rng.choice(_LAST)}" for _ in range(2))
    street, city = f"{rng.randint(1, 98)} {rng.choice(_STREETS)}", f"{rng.choice(_CITIES)} {rng.randint(10000, 99999)}"
    headings = {"report": _REPORTS, "form": _FORMS, "table": _TABLES, "letter": _LETTERS}
    parts: dict = {}
    if page.kind in ("invoice", "receipt"):
        parts = {"lines": _lines(page.kind, rng), "tax_percent": rng.choice((5, 8, 10, 20))}
    elif page.kind == "table":
        parts = _grid(page, rng)
    elif page.kind == "form":
        parts = {"fields": _fields(rng, person, street, city), "choices": rng.choice(_CHOICES)}
    elif page.kind == "report":
        parts = {"series": _series(page.chart, rng)}
    year_due = year + (month == 11)
    return Content(
        number=1000 + seed % 9000,
        date=f"{day} {_MONTHS[month]} {year}",
        due=f"{day} {_MONTHS[(month + 1) % 12]} {year_due}",
        time=f"{rng.randint(8, 19):02d}:{rng.randrange(60):02d}",
        person=person,
        sender=sender,
        street=street,
        city=city,
        heading=rng.choice(headings.get(page.kind, (page.kind.capitalize(),))),
        paragraphs=tuple(tuple(_sentence(rng) for _ in range(6)) for _ in range(5)),
        **parts,
    )


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)} {rng.choice(_ENDINGS)}."


def _lines(kind: str, rng: random.Random) -> tuple[Line, ...]:
    goods, count = (_GOODS, rng.randint(5, 7)) if kind == "invoice" else (_GROCERIES, rng.randint(6, 9))
    top_quantity, top_price = (12, 240) if kind == "invoice" else (3, 12)
    return tuple(
        Line(
            text=text,
            quantity=rng.randint(1, top_quantity),
            price_cents=rng.randint(1, top_price) * 100 + rng.choice((0, 20, 50, 95)),
        )
        for text in rng.sample(goods, count)
    )


def _grid(page: Page, rng: random.Random) -> dict:
    start, count = rng.randrange(12), rng.randint(10, 12)
    rows = [[rng.randint(12, 980) for _ in range(max(TABLE_COLUMNS))] for _ in range(count)]
    rows = [row[: page.columns] for row in rows]
    rows.append([sum(column) for column in zip(*rows, strict=True)])
    names = [_GOODS[index].split(",")[0] for index in rng.sample(range(len(_GOODS)), count)]
    return {
        "row_names": (*names, "Total"),
        "column_names": tuple(_MONTHS[(start + index) % 12][:3] for index in range(page.columns)),
        "grid": tuple(map(tuple, rows)),
    }


def _fields(rng: random.Random, person: str, street: str, city: str) -> tuple[tuple[str, str], ...]:
    first, last = person.split()
    return (
        ("First name", first),
        ("Last name", last),
        ("Street", street),
        ("City", city),
        ("Date of birth", f"{rng.randint(1, 28)}.{rng.randint(1, 12)}.{rng.randint(1950, 2004)}"),
        ("Phone", f"0{rng.randint(20, 89)} {rng.randint(100, 999)} {rng.randint(1000, 9999)}"),
        ("Customer number", str(rng.randint(100000, 999999))),
        ("Reference", f"{rng.choice('ABCDEFGH')}{rng.randint(1000, 9999)}"),
    )


def _series(chart: str, rng: random.Random) -> tuple[int, ...]:
    if chart == "pie":
        shares = [rng.randint(16, 30) for _ in range(3)]
        return (*shares, 100 - sum(shares))
    if chart == "bar":
        return tuple(rng.randint(45, 110) for _ in HIGHLIGHTS)
    value, values = rng.randint(30, 70), []
    for _ in range(9):
        values.append(value)
        value = min(100, max(10, value + rng.randint(-22, 24)))
    return tuple(values)
