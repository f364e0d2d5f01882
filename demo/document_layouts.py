"""Draws pages: the letterhead in one of five layouts, then the body of one of six kinds, on 400 x 600 pixels."""

import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from demo.charts import draw_chart
from demo.document_content import Content, Page, digest
from demo.document_ink import (
    FAINT,
    PALETTE,
    RGB,
    RULE,
    TEXT,
    WHITE,
    Box,
    draw_mark,
    draw_stamp,
    mix,
    readable_on,
    write,
    write_paragraph,
)

WIDTH, HEIGHT = 400, 600
_Point = tuple[float, float]


def draw_page(page: Page, content: Content, rng: random.Random) -> Image.Image:
    """The clean page, before it is scanned; `rng` places the stamp and draws the signature."""
    image = Image.new("RGB", (WIDTH, HEIGHT), WHITE)
    sheet = (0, 0, WIDTH, HEIGHT)
    if page.kind == "receipt":
        sheet = (74, 0, 326, HEIGHT)
        image.paste((206, 208, 212), (0, 0, WIDTH, HEIGHT))
        image.paste((184, 186, 191), (sheet[0] - 4, 0, sheet[2] + 4, HEIGHT))
        image.paste(WHITE, sheet)
    box = _letterhead(image, page, content, sheet)
    at = _BODIES[page.kind](image, box, page, content, rng)
    if page.stamp != "none":
        at = at[0] + rng.randint(-8, 8), at[1] + rng.randint(-6, 6)
        draw_stamp(image, at, page.stamp, page.stamp_tilt, PALETTE[page.stamp_colour], rng.randrange(4))
    return image


def _letterhead(image: Image.Image, page: Page, content: Content, sheet: Box) -> Box:
    """Draw letterhead, mark and foot line; returns the box that is left for the body."""
    x0, y0, x1, y1 = sheet
    narrow = x1 - x0 < WIDTH
    margin, size = (16, 54) if narrow else (36, 60)
    colour, accent, draw = PALETTE[page.colour], PALETTE[page.mark_colour], ImageDraw.Draw(image)
    left, top, right, bottom, body_top = x0 + margin, y0 + 24, x1 - margin, y1 - 38, y0 + 104
    mark_x, name_x, name_y, align, fit = left + size / 2, float(left + size + 14), top + 34, 0.0, 0.0
    ink = TEXT
    if page.layout == "band":
        draw.rectangle((x0, y0, x1, y0 + 87), fill=colour)
        draw.rounded_rectangle((left - 4, y0 + 10, left + size + 4, y0 + 78), radius=9, fill=WHITE)
        top, name_y, ink, body_top = y0 + 14, y0 + 46, readable_on(colour), y0 + 112
    elif page.layout == "strip":
        thick = 40 if narrow else 56
        draw.rectangle((x0, y0, x0 + thick, y1), fill=colour)
        left = x0 + thick + (14 if narrow else 28)
        mark_x, name_x = left + size / 2, left + size + 12
    elif page.layout == "foot":
        draw.rectangle((x0, y1 - 72, x1, y1), fill=colour)
        bottom, mark_x, name_x, align = y1 - 92, right - size / 2, left, 0.0
        fit = right - left - size - 10
    elif page.layout == "frame":
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=12 if narrow else 17)
        left, right, bottom = left + 10, right - 10, bottom - 12
        mark_x, name_x, name_y, align, body_top = (x0 + x1) / 2, (x0 + x1) / 2, top + size + 24, 0.5, y0 + 134
        top, fit = y0 + 28, right - left
    else:
        leg = 120 if narrow else 150
        draw.polygon([(x1 - leg, y0), (x1, y0), (x1, y0 + leg)], fill=colour)
        fit, body_top = x1 - leg * 0.72 - name_x, body_top + (0 if narrow else 14)
    draw_mark(image, (mark_x, top + size / 2), page.mark, page.mark_style, accent, size)
    write(
        image,
        (name_x, name_y),
        page.company,
        14 if narrow else 20,
        ink,
        bold=True,
        align=align,
        fit=fit or right - name_x,
    )
    if page.layout != "frame":
        faint = mix(ink, colour, 0.25) if page.layout == "band" else FAINT
        write(image, (name_x, name_y + 14), f"Est. {1900 + digest(page.company) % 100}", 8, faint)
    _foot_line(image, page, content, (left, y1, right, bottom), colour)
    return left, body_top, right, bottom


def _foot_line(image: Image.Image, page: Page, content: Content, box: Box, colour: RGB) -> None:
    left, y1, right, bottom = box
    address = f"{1 + digest(page.company) % 90} Commerce Road, Milton"
    if page.layout == "foot":
        ink = readable_on(colour)
        write(image, (left, y1 - 40), page.company, 11, ink, bold=True)
        write(image, (left, y1 - 25), address, 8, ink)
        write(image, (right, y1 - 25), "Page 1", 8, ink, align=1)
        return
    write(image, (left, bottom + 20), address, 7, FAINT)
    write(image, (right, bottom + 20), "Page 1", 7, FAINT, align=1)


def _money(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02d}"


def _heading_ink(page: Page) -> RGB:
    return TEXT if page.colour == "yellow" else PALETTE[page.colour]


def _invoice(image: Image.Image, box: Box, page: Page, content: Content, rng: random.Random) -> _Point:
    x0, y0, x1, y1 = box
    draw, colour, accent = ImageDraw.Draw(image), PALETTE[page.colour], PALETTE[page.mark_colour]
    write(image, (x0, y0 + 16), "INVOICE", 22, _heading_ink(page), bold=True)
    for row, (name, value) in enumerate((("No.", str(content.number)), ("Date", content.date), ("Due", content.due))):
        write(image, (x1 - 86, y0 + 10 + row * 13), name, 8, FAINT, align=1)
        write(image, (x1, y0 + 10 + row * 13), value, 9, align=1)
    write(image, (x0, y0 + 38), "Bill to", 8, FAINT)
    for row, text in enumerate((content.person, content.street, content.city)):
        write(image, (x0, y0 + 51 + row * 13), text, 9.5 if row else 10, bold=row == 0)
    top, height = y0 + 92, min(29, (y1 - y0 - 92 - 22 - 128) // len(content.lines))
    columns = (x0 + 8, x1 - 138, x1 - 76, x1 - 6)
    draw.rectangle((x0, top, x1, top + 21), fill=colour)
    for x, name in zip(columns, ("Description", "Qty", "Price", "Amount"), strict=True):
        write(image, (x, top + 14), name, 9, readable_on(colour), bold=True, align=float(x != columns[0]))
    top += 22
    for index, line in enumerate(content.lines):
        y = top + index * height
        if index + 1 == page.highlight:
            draw.rectangle((x0, y, x1, y + height - 1), fill=mix(accent, WHITE, 0.5))
            draw.rectangle((x0 - 8, y, x0 - 1, y + height - 1), fill=accent)
        draw.line((x0, y + height - 1, x1, y + height - 1), fill=RULE)
        values = (line.text, str(line.quantity), _money(line.price_cents), _money(line.amount_cents))
        for x, value in zip(columns, values, strict=True):
            write(image, (x, y + height / 2 + 3), value, 9, align=float(x != columns[0]))
    top += len(content.lines) * height + 18
    sums = (("Subtotal", content.subtotal_cents), (f"Tax {content.tax_percent}%", content.tax_cents))
    for row, (name, cents) in enumerate(sums):
        write(image, (x1 - 76, top + row * 15), name, 9, FAINT, align=1)
        write(image, (x1 - 6, top + row * 15), _money(cents), 9, align=1)
    draw.rectangle((x1 - 146, top + 24, x1, top + 52), fill=colour)
    write(image, (x1 - 138, top + 43), "TOTAL", 11, readable_on(colour), bold=True)
    write(image, (x1 - 6, top + 43), _money(content.total_cents), 12, readable_on(colour), bold=True, align=1)
    write(image, (x0, y1 - 14), "Payment within 30 days. Thank you for your order.", 8, FAINT)
    return x0 + 78, top + 28


def _receipt(image: Image.Image, box: Box, page: Page, content: Content, rng: random.Random) -> _Point:
    x0, y0, x1, y1 = box
    draw, accent, middle = ImageDraw.Draw(image), PALETTE[page.mark_colour], (x0 + x1) / 2

    def dashes(y: float) -> None:
        for x in range(x0, x1 - 3, 8):
            draw.line((x, y, x + 4, y), fill=FAINT)

    write(image, (middle, y0 + 10), "RECEIPT", 14, bold=True, align=0.5)
    write(image, (x0, y0 + 27), content.date, 8.5, FAINT)
    write(image, (x1, y0 + 27), content.time, 8.5, FAINT, align=1)
    dashes(y0 + 35)
    top, height = y0 + 40, min(24, (y1 - y0 - 40 - 190) // len(content.lines))
    for index, line in enumerate(content.lines):
        y = top + index * height
        if index + 1 == page.highlight:
            draw.rectangle((x0 - 4, y, x1 + 4, y + height - 1), fill=mix(accent, WHITE, 0.5))
        name = f"{line.quantity} x {line.text}" if line.quantity > 1 else line.text
        write(image, (x0, y + height / 2 + 4), name, 10)
        write(image, (x1, y + height / 2 + 4), _money(line.amount_cents), 10, align=1)
    y = top + len(content.lines) * height + 6
    dashes(y)
    sums = (("Subtotal", content.subtotal_cents), (f"Tax {content.tax_percent}%", content.tax_cents))
    for row, (name, cents) in enumerate(sums):
        write(image, (x0, y + 15 + row * 14), name, 9, FAINT)
        write(image, (x1, y + 15 + row * 14), _money(cents), 9, align=1)
    write(image, (x0, y + 52), "TOTAL", 15, bold=True)
    write(image, (x1, y + 52), _money(content.total_cents), 15, bold=True, align=1)
    x = x0 + 6.0
    while x < x1 - 8:
        bar, gap = rng.randint(1, 4), rng.randint(1, 3)
        draw.rectangle((x, y1 - 44, x + bar - 1, y1 - 14), fill=TEXT)
        x += bar + gap
    write(image, (middle, y1 - 3), f"{content.number} thank you", 8, FAINT, align=0.5)
    write(image, (x0, y1 - 54), f"Card **** {content.number}", 8, FAINT)
    write(image, (x1, y1 - 54), "approved", 8, FAINT, align=1)
    return middle, (y + 58 + y1 - 62) / 2


def _letter(image: Image.Image, box: Box, page: Page, content: Content, rng: random.Random) -> _Point:
    x0, y0, x1, y1 = box
    draw, accent = ImageDraw.Draw(image), PALETTE[page.mark_colour]
    for row, text in enumerate((content.person, content.street, content.city)):
        write(image, (x0, y0 + 10 + row * 13), text, 9.5)
    write(image, (x1, y0 + 36), content.date, 9.5, align=1)
    write(image, (x0, y0 + 66), content.heading, 11, bold=True)
    write(image, (x0, y0 + 85), f"Dear {content.person},", 9.5)
    y, lines = y0 + 104.0, 4 if y1 - y0 > 420 else 3
    for index, sentences in enumerate(content.paragraphs[:4]):
        start = y
        y = write_paragraph(image, (x0, y), sentences, width=x1 - x0, max_lines=lines)
        if index + 1 == page.highlight:
            draw.rectangle((x0 - 17, start - 11, x0 - 6, y - 8), fill=accent)
        y += 9
    write(image, (x0, y + 8), "Yours sincerely,", 9.5)
    _signature(draw, (x0 + 4, y + 32), rng)
    write(image, (x0, y + 62), content.sender, 9.5, bold=True)
    write(image, (x0, y + 75), page.company, 8.5, FAINT)
    return x1 - 84, min(y + 40, y1 - 36)


def _signature(draw: ImageDraw.ImageDraw, at: _Point, rng: random.Random) -> None:
    points, (x, y) = [], at
    for index in range(9):
        points.append((x + index * 9 + rng.randint(-2, 6), y + (-11 if index % 2 else 9) * rng.randint(4, 10) / 10))
    points.append((x + 104, y + 4))
    curve = []
    for index in range(len(points) - 2):
        (ax, ay), (bx, by), (cx, cy) = points[index : index + 3]
        start, end = ((ax + bx) / 2, (ay + by) / 2), ((bx + cx) / 2, (by + cy) / 2)
        for step in range(6):
            t = step / 6
            u = 1 - t
            curve.append(
                (u * u * start[0] + 2 * u * t * bx + t * t * end[0], u * u * start[1] + 2 * u * t * by + t * t * end[1])
            )
    draw.line(curve, fill=(36, 48, 112), width=2, joint="curve")


def _form(image: Image.Image, box: Box, page: Page, content: Content, rng: random.Random) -> _Point:
    x0, y0, x1, y1 = box
    draw, accent = ImageDraw.Draw(image), PALETTE[page.mark_colour]
    write(image, (x0, y0 + 16), content.heading, 19, _heading_ink(page), bold=True, fit=x1 - x0)
    top, height, gap = y0 + 28, 32, 8
    half = (x1 - x0 - gap) // 2
    for index, (name, value) in enumerate(content.fields):
        x, y = x0 + (index % 2) * (half + gap), top + (index // 2) * (height + gap)
        draw.rectangle((x, y, x + half, y + height), outline=TEXT, width=2)
        write(image, (x + 6, y + 10), name, 7, FAINT)
        write(image, (x + 6, y + 25), value, 11, (36, 48, 112))
    top += len(content.fields) // 2 * (height + gap) + 16
    write(image, (x0, top), "Please tick one", 9, bold=True)
    step = (x1 - x0) / 4
    for index, choice in enumerate(content.choices):
        x, y = round(x0 + index * step), top + 10
        draw.rectangle((x, y, x + 26, y + 26), outline=TEXT, width=2)
        if index + 1 == page.highlight:
            draw.rectangle((x + 2, y + 2, x + 24, y + 24), fill=accent)
            draw.line((x + 6, y + 13, x + 11, y + 19, x + 20, y + 7), fill=readable_on(accent), width=3)
        write(image, (x + 31, y + 17), choice, 8.5, fit=step - 32)
    top += 56
    write(image, (x0, top), "Remarks", 9, bold=True)
    draw.rectangle((x0, top + 7, x1, y1 - 44), outline=TEXT, width=2)
    write_paragraph(
        image, (x0 + 8, top + 22), content.paragraphs[0], width=x1 - x0 - 16, max_lines=2, colour=(36, 48, 112)
    )
    draw.line((x0, y1 - 14, x0 + 130, y1 - 14), fill=TEXT)
    _signature(draw, (x0 + 14, y1 - 26), rng)
    write(image, (x0, y1 - 3), "Signature", 7, FAINT)
    write(image, (x1, y1 - 18), content.date, 9, align=1)
    return x1 - 92, (top + 24 + y1 - 20) / 2


def _report(image: Image.Image, box: Box, page: Page, content: Content, rng: random.Random) -> _Point:
    x0, y0, x1, y1 = box
    colour, accent, width = PALETTE[page.colour], PALETTE[page.mark_colour], x1 - x0
    write(image, (x0, y0 + 18), content.heading, 23, _heading_ink(page), bold=True, fit=width)
    write(image, (x0, y0 + 34), f"{content.date}, prepared by {content.sender}", 8.5, FAINT)
    y = write_paragraph(image, (x0, y0 + 54), content.paragraphs[0], width=width, max_lines=3)
    chart_top, chart_height = round(y) - 2, min(196, y1 - y0 - 224)
    chart_box = (x0, chart_top, x1, chart_top + chart_height)
    draw_chart(image, chart_box, page.chart, content.series, highlight=page.highlight, colour=colour, accent=accent)
    y = chart_top + chart_height + 14
    write(image, (x0, y), "Figure 1. Result by quarter", 8, FAINT)
    y += 20
    half, lines = (width - 16) / 2, int((y1 - y) // 12.5)
    write_paragraph(image, (x0, y), content.paragraphs[1], width=half, max_lines=lines)
    if page.stamp != "none":
        lines = max(2, lines - 6)
    y = write_paragraph(image, (x0 + half + 16, y), content.paragraphs[2], width=half, max_lines=lines)
    return x1 - 80, min(y + 34, y1 - 28)


def _table(image: Image.Image, box: Box, page: Page, content: Content, rng: random.Random) -> _Point:
    x0, y0, x1, y1 = box
    draw, colour, accent = ImageDraw.Draw(image), PALETTE[page.colour], PALETTE[page.mark_colour]
    write(image, (x0, y0 + 16), content.heading, 19, _heading_ink(page), bold=True)
    write(image, (x1, y0 + 16), content.date, 8.5, FAINT, align=1)
    rows = len(content.grid)
    top, height = y0 + 28, min(26, (y1 - y0 - 96) // (rows + 1))
    first, bottom = x0 + 82, top + height * (rows + 1)
    edges = [round(first + (x1 - first) * index / page.columns) for index in range(page.columns + 1)]
    chosen = edges[page.highlight - 1], edges[page.highlight]
    draw.rectangle((chosen[0], top, chosen[1], bottom), fill=mix(accent, WHITE, 0.5))
    draw.rectangle((x0, top, x1, top + height), fill=colour)
    draw.rectangle((chosen[0], top, chosen[1], top + height), fill=accent)
    for index, name in enumerate(content.column_names):
        ink = readable_on(accent if index + 1 == page.highlight else colour)
        write(image, ((edges[index] + edges[index + 1]) / 2, top + height / 2 + 4), name, 9, ink, bold=True, align=0.5)
    for index, (name, numbers) in enumerate(zip(content.row_names, content.grid, strict=True)):
        y, total = top + height * (index + 1) + height / 2 + 3, index == rows - 1
        write(image, (x0 + 5, y), name, 8.5, bold=total, fit=74)
        for edge, number in zip(edges[1:], numbers, strict=True):
            write(image, (edge - 5, y), f"{number:,}", 8.5, bold=total, align=1)
    for index in range(rows + 2):
        y = top + height * index
        draw.line((x0, y, x1, y), fill=TEXT if index > rows - 1 else FAINT, width=2 if index == rows else 1)
    for x in (x0, *edges):
        draw.line((x, top, x, bottom), fill=FAINT, width=1)
    write(image, (x0, bottom + 16), "All figures without tax.", 8, FAINT)
    return x1 - 84, min(bottom + 46, y1 - 24)


_BODIES: dict[str, Callable[[Image.Image, Box, Page, Content, random.Random], _Point]] = {
    "invoice": _invoice,
    "receipt": _receipt,
    "letter": _letter,
    "form": _form,
    "report": _report,
    "table": _table,
}
