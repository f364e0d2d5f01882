"""The sets of the demo's MMEB: which question about which products and pages, and what is kept from training.

Training rows show training combinations only; evaluation rows, in and out of distribution, held-out combinations only.
Out of distribution are the kinds in `RARE`, pages with a chart, page retrieval, and other wordings.
"""

import random
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from demo import documents, mmeb_rows, products
from demo.document_content import CHARTS, COLOURS, KINDS, MARKS, STAMPS
from demo.documents import Page
from demo.mmeb_rows import Album, Build, Row, Side
from demo.products import Product

MetaTask = Literal["CLS", "VQA", "RET", "VG"]
RARE = ("teapot", "cushion", "boot", "suitcase", "guitar")
"""Kinds of products that no training row shows or names."""
COMMON = tuple(kind for kind in products.KINDS if kind not in RARE)


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """One set with its rows; `train` is empty out of distribution."""

    name: str
    """Of the evaluation set."""
    train_name: str | None
    """Of the training set: another name where it ends in a count, as in ImageNet_1K (train) and ImageNet-1K (eval)."""
    meta_task: MetaTask
    train: list[Row]
    eval: list[Row]
    candidates: list[list[Side]]
    """For each row of `eval`, distinct; the positive comes first, its negative (if any) second."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    name: str
    meta_task: MetaTask
    build: Build
    tested: str
    taught: str | None = None
    train_name: str | None = None
    answers: tuple[str, ...] = ()
    """Candidates are drawn from these, or from the targets of the other rows if there are none."""


def plan_sets(*, train: int, evaluation: int, candidates: int, seed: int) -> tuple[list[TaskSet], Album]:
    """Every set with `train` training rows, `evaluation` queries and up to `candidates` targets a query; draws nothing.

    Raises: ValueError if there are not enough products for that.
    """
    album = Album()
    subjects: dict[str, list[Any]] = {
        "training products": _products(3 * train, COMMON, seed=seed, held_out=False),
        "products": _products(3 * evaluation, COMMON, seed=seed, held_out=True),
        "rare products": _products(3 * evaluation, RARE, seed=seed, held_out=True),
        "training pages": _pages(train, seed=seed, held_out=False, charts=False),
        "pages": _pages(evaluation, seed=seed, held_out=True, charts=False),
        "charts": _pages(evaluation, seed=seed, held_out=True, charts=True),
    }
    sets = []
    for plan in _PLANS:
        rng = random.Random(f"mmeb/{seed}/{plan.name}")
        rows = list(islice(plan.build(album, subjects[plan.tested], rng), evaluation))
        targets = [side for row in rows for side in (row.positive, row.negative) if side != Side()]
        pool = [Side(answer) for answer in plan.answers] or targets
        taught = subjects[plan.taught] if plan.taught else []
        sets.append(
            TaskSet(
                name=plan.name,
                train_name=(plan.train_name or plan.name) if plan.taught else None,
                meta_task=plan.meta_task,
                train=list(islice(plan.build(album, taught, rng), train)),
                eval=rows,
                candidates=[_candidates(row, pool, candidates, rng) for row in rows],
            )
        )
    return sets, album


def _products(count: int, kinds: tuple[str, ...], *, seed: int, held_out: bool) -> list[Product]:
    every = products.sample_products(len(products.combinations(held_out=held_out)), seed=seed, held_out=held_out)
    found = [product for product in every if product.kind in kinds]
    if len(found) < count:
        raise ValueError(f"{count} products are needed, but there are only {len(found)}; ask for fewer rows")
    return found[:count]


def _pages(count: int, *, seed: int, held_out: bool, charts: bool) -> list[Page]:
    found: list[Page] = []
    wanted = count
    while len(found) < count:
        wanted *= 2
        every = documents.sample_pages(wanted, seed=seed, held_out=held_out)
        found = [page for page in every if (page.kind == "report") == charts]
    return found[:count]


def _candidates(row: Row, pool: list[Side], limit: int, rng: random.Random) -> list[Side]:
    first = [row.positive] if row.negative == Side() else [row.positive, row.negative]
    others = [side for side in dict.fromkeys(pool) if side not in first]
    return first + rng.sample(others, min(len(others), limit - len(first)))


def _chart(page: Page) -> str:
    return f"{page.chart} chart"


def _kind(subject: Product | Page) -> str:
    return subject.kind


def _describe_product(product: Product, phrasing: int) -> str:
    return products.describe(product, phrasing=phrasing)


def _describe_page(page: Page, phrasing: int) -> str:
    return documents.describe(page, phrasing=phrasing)


def _look(product: Product) -> str:
    return products.describe(product, phrasing=1)


_PRODUCT_ANSWERS = (*products.COLOURS, *products.PATTERNS)
_PAGE_ANSWERS = tuple(dict.fromkeys((*COLOURS, *MARKS, *STAMPS)))
_PAGE_KINDS = tuple(kind for kind in KINDS if kind != "report")
_TEMPTING = {"colour": "second_colour", "second_colour": "colour"}

_PLANS = (
    _Plan(
        name="Shop-13",
        train_name="Shop_13",
        meta_task="CLS",
        build=mmeb_rows.classify("Represent the given image for classification", _kind),
        taught="training products",
        tested="products",
        answers=COMMON,
    ),
    _Plan(
        name="Pages",
        meta_task="CLS",
        build=mmeb_rows.classify("Identify the kind of document shown in the image", _kind),
        taught="training pages",
        tested="pages",
        answers=_PAGE_KINDS,
    ),
    _Plan(
        name="Shop-Rare",
        meta_task="CLS",
        build=mmeb_rows.classify("Identify the object shown in the image", _kind),
        tested="rare products",
        answers=tuple(products.KINDS),
    ),
    _Plan(
        name="Charts",
        meta_task="CLS",
        build=mmeb_rows.classify("Identify the chart shown in the image", _chart),
        tested="charts",
        answers=tuple(f"{chart} chart" for chart in CHARTS[1:]),
    ),
    _Plan(
        name="ShopVQA",
        meta_task="VQA",
        build=mmeb_rows.question(
            {
                "colour": "what colour is the {kind}?",
                "second_colour": "what is the second colour of the {kind}?",
                "pattern": "what pattern does the {kind} have?",
            },
            _TEMPTING,
        ),
        taught="training products",
        tested="products",
        answers=_PRODUCT_ANSWERS,
    ),
    _Plan(
        name="PageVQA",
        meta_task="VQA",
        build=mmeb_rows.question(
            {
                "colour": "what colour is the letterhead?",
                "mark": "what shape is the company mark?",
                "mark_colour": "what colour is the company mark?",
                "stamp": "what does the stamp say?",
            },
            {"colour": "mark_colour", "mark_colour": "colour"},
        ),
        taught="training pages",
        tested="pages",
        answers=_PAGE_ANSWERS,
    ),
    _Plan(
        name="RareVQA",
        meta_task="VQA",
        build=mmeb_rows.question(
            {
                "colour": "name the main colour of this {kind}.",
                "second_colour": "besides its main colour, which colour does this {kind} show?",
                "pattern": "how is this {kind} decorated?",
            },
            _TEMPTING,
        ),
        tested="rare products",
        answers=_PRODUCT_ANSWERS,
    ),
    _Plan(
        name="ChartVQA",
        meta_task="VQA",
        build=mmeb_rows.question(
            {"chart": "which sort of chart is drawn here?", "mark": "which symbol does the sender use?"}, {}
        ),
        tested="charts",
        answers=(*CHARTS[1:], *MARKS),
    ),
    _Plan(
        name="Shop_t2i",
        meta_task="RET",
        build=mmeb_rows.find_image("Find me an everyday image that matches the given caption: ", _describe_product),
        taught="training products",
        tested="products",
    ),
    _Plan(
        name="Shop_i2t",
        meta_task="RET",
        build=mmeb_rows.find_caption,
        taught="training products",
        tested="products",
    ),
    _Plan(
        name="ShopChange",
        meta_task="RET",
        build=mmeb_rows.find_changed(
            "Given an image, find a similar everyday image with the described changes: ",
            ("the same {kind} in {colour}.", "make it {colour}."),
        ),
        taught="training products",
        tested="products",
    ),
    _Plan(name="ShopTwins", meta_task="RET", build=mmeb_rows.find_twin, taught="training products", tested="products"),
    _Plan(name="ShopCards", meta_task="RET", build=mmeb_rows.find_card, taught="training products", tested="products"),
    _Plan(
        name="Page_t2i",
        meta_task="RET",
        build=mmeb_rows.find_image("Find the document image that matches the given query: ", _describe_page),
        tested="pages",
    ),
    _Plan(
        name="RareChange",
        meta_task="RET",
        build=mmeb_rows.find_changed(
            "Find an image to match the fashion image and style note: ", ("is {colour} instead of {before}.",)
        ),
        tested="rare products",
    ),
    _Plan(
        name="Scenes",
        meta_task="VG",
        build=mmeb_rows.isolate("Select the portion of the image that isolates the object labeled as ", _kind),
        taught="training products",
        tested="products",
    ),
    _Plan(
        name="RareScenes",
        meta_task="VG",
        build=mmeb_rows.isolate("Select the portion of the image that follows the language expressions. ", _look),
        tested="rare products",
    ),
)
