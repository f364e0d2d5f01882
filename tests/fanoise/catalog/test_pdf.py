import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pypdfium2
import pytest
from PIL import Image, ImageDraw

from fanoise.catalog import PdfPage, read_catalog
from fanoise.catalog import pdf as pdf_module
from fanoise.catalog.pdf import count_pages
from fanoise.errors import CatalogError, ImageError
from fanoise.images import ImageSource, open_image
from tests.fanoise.catalog.files import raw, read


def document(
    media_box: bytes = b"0 0 72 36", *, content: bytes = b"", count: int = 1, kids: int = 1, extra=()
) -> bytes:
    """A PDF spelled out: `kids` times the same page, of which `count` are claimed."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R %s>>" % (b"/AcroForm << /Fields [5 0 R] >> " if extra else b""),
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b"3 0 R " * kids, count),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] /Contents 4 0 R %s>>"
        % (media_box, b"/Annots [5 0 R] " if extra else b""),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        *extra,
    ]
    out = io.BytesIO(b"%PDF-1.7\n")
    out.seek(0, io.SEEK_END)
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    xref = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % offset for offset in offsets))
    out.write(b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, xref))
    return out.getvalue()


def scan(number: int) -> Image.Image:
    """A page that says its number by how many black bars it has."""
    image = Image.new("RGB", (200, 300), "white")
    draw = ImageDraw.Draw(image)
    for bar in range(number):
        draw.rectangle((20, 20 + 40 * bar, 180, 40 + 40 * bar), fill="black")
    return image


@pytest.fixture
def three_pages(tmp_path):
    path = tmp_path / "my scans.pdf"
    scan(1).save(path, save_all=True, append_images=[scan(2), scan(3)], resolution=72)
    return path


def test_a_document_is_as_many_items_as_it_has_pages(three_pages):
    items = list(read_catalog(three_pages))
    assert [(item.id, dict(item.fields)) for item in items] == [
        (f"my scans.pdf#{page}", {"document": "my scans.pdf", "page": page}) for page in (1, 2, 3)
    ]
    assert [str(item.image) for item in items] == [f"{three_pages}#{page}" for page in (1, 2, 3)]
    assert all(isinstance(item.image, ImageSource) for item in items)


def test_a_page_shows_what_was_put_on_it_at_144_dots_an_inch(three_pages):
    for number in (3, 1, 2):
        image = open_image(PdfPage(three_pages, number))
        assert (image.mode, image.size) == ("RGB", (400, 600))
        difference = np.abs(np.asarray(image, int) - np.asarray(scan(number).resize((400, 600)), int))
        assert difference.mean() < 6  # JPEG inside the PDF, and other smoothing


def test_transparent_ground_is_white_and_colours_keep_their_order(tmp_path):
    path = raw(tmp_path / "a.pdf", document(content=b"1 0 0 rg 0 0 36 36 re f"))
    image = open_image(PdfPage(path, 1))
    assert (image.size, image.getpixel((10, 36)), image.getpixel((134, 36))) == (
        (144, 72),
        (255, 0, 0),
        (255, 255, 255),
    )


def test_what_was_filled_into_a_form_is_drawn(tmp_path):
    field = b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (b) /F 4 /Rect [0 0 72 36] /AP << /N 6 0 R >> >>"
    look = (
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 72 36] /Length 23 >>\nstream\n0 0 1 rg 0 0 72 36 re f\nendstream"
    )
    path = raw(tmp_path / "a.pdf", document(extra=(field, look)))
    assert open_image(PdfPage(path, 1)).getpixel((72, 36)) == (0, 0, 255)


@pytest.mark.parametrize(
    "box", [b"0 0 1000000 1000000", b"0 0 1 1000000000", b"0 0 1e38 1e38", b"0 0 0 0", b"0 0 nan 5", b"", b"0 0 -5 10"]
)
def test_a_page_of_absurd_size_is_drawn_small(tmp_path, box):
    image = PdfPage(raw(tmp_path / "a.pdf", document(box)), 1).read()
    assert image.width * image.height <= pdf_module._MAX_PIXELS + sum(image.size)  # sides are rounded up
    assert max(image.size) <= pdf_module._MAX_SIDE
    assert open_image(image).width


@pytest.mark.parametrize("size", [(0, 5), (-1, 5), (float("inf"), 5)])
def test_a_page_without_a_size_is_an_image_error(three_pages, monkeypatch, size):
    monkeypatch.setattr(pypdfium2.PdfPage, "get_size", lambda page: size)
    with pytest.raises(ImageError, match="page cannot be drawn"):
        PdfPage(three_pages, 1).read()


def test_a_poster_is_drawn_as_large_as_the_limit_allows(tmp_path):
    image = PdfPage(raw(tmp_path / "a.pdf", document(b"0 0 2384 3370")), 1).read()
    assert 7_900_000 < image.width * image.height < 8_010_000
    assert image.width / image.height == pytest.approx(2384 / 3370, rel=1e-3)


def test_a_document_that_claims_millions_of_pages_is_a_reject(tmp_path):
    path = raw(tmp_path / "a.pdf", document(count=1_000_000))
    assert read(path) == ([], [("a.pdf", "a.pdf", "has 1000000 pages, must have 1 to 50000")])


def test_pages_that_are_claimed_and_not_there_fail_when_opened(tmp_path):
    path = raw(tmp_path / "a.pdf", document(count=3))
    items = list(read_catalog(path))
    open_image(items[0].image)
    for item in items[1:]:
        with pytest.raises(ImageError, match=r"a\.pdf#\d': page cannot be drawn"):
            open_image(item.image)


@pytest.mark.parametrize("number", [0, -1, 4])
def test_a_page_that_does_not_exist_is_an_image_error(three_pages, number):
    with pytest.raises(ImageError, match=rf"#{number}': the document has 3 pages"):
        open_image(PdfPage(three_pages, number))


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.7\n", b"\x89PNG\r\n\x1a\n", document()[:80]])
def test_what_is_no_document_is_a_reject(tmp_path, content):
    path = raw(tmp_path / "a.pdf", content)
    assert read(path) == ([], [("a.pdf", "a.pdf", "damaged, or not a PDF")])
    with pytest.raises(CatalogError, match=r"/a\.pdf: damaged, or not a PDF"):
        list(read_catalog(path))
    with pytest.raises(ImageError, match="damaged, or not a PDF"):
        open_image(PdfPage(path, 1))


def test_flipped_bytes_give_pages_or_image_errors(three_pages):
    rng = np.random.default_rng(0)
    data = np.frombuffer(three_pages.read_bytes(), np.uint8)
    outcomes = set()
    for _ in range(60):
        damaged = data.copy()
        places = rng.integers(0, len(data), 40)
        damaged[places] = rng.integers(0, 256, 40)
        raw(three_pages, damaged.tobytes())
        try:
            for page in range(1, count_pages(three_pages) + 1):
                outcomes.add(open_image(PdfPage(three_pages, page)).mode)
        except ImageError as error:
            outcomes.add("error")
            assert "\n" not in str(error)
    assert outcomes == {"RGB", "error"}


def test_an_encrypted_document_says_so(tmp_path):
    # RC4, 40 bits, revision 2, with a user password; O and U need not be right for it to be refused
    secret = b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % (b"11" * 32, b"22" * 32)
    data = document().replace(b"/Root 1 0 R", b"/Root 1 0 R /ID [<00><00>] /Encrypt " + secret)
    path = raw(tmp_path / "a.pdf", data)
    assert read(path) == ([], [("a.pdf", "a.pdf", "encrypted PDF; save it without the password")])


def test_a_document_that_has_gone_is_an_image_error(three_pages):
    (item, *_) = read_catalog(three_pages)
    three_pages.unlink()
    with pytest.raises(ImageError, match="file not found"):
        open_image(item.image)


def test_only_one_thread_at_a_time_is_inside_pdfium(three_pages, monkeypatch):
    inside, most = 0, 0

    class Watched(pypdfium2.PdfDocument):
        def __init__(self, *args):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            super().__init__(*args)

        def close(self):
            nonlocal inside
            super().close()
            inside -= 1

    monkeypatch.setattr(pypdfium2, "PdfDocument", Watched)
    pages = [item.image for item in read_catalog(three_pages)]
    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(lambda page: open_image(page).size, pages * 4))
    assert sizes == [(400, 600)] * 12
    assert (inside, most) == (0, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_while_a_page_is_drawn_can_draw_too(three_pages):
    page = PdfPage(three_pages, 1)
    drawing = threading.Thread(target=lambda: [page.read() for _ in range(20)])
    drawing.start()
    codes = []
    while drawing.is_alive():
        if (child := os.fork()) == 0:
            signal.alarm(20)  # ends a child that waits for a lock nobody releases
            try:
                os._exit(0 if page.read().size else 1)
            finally:
                os._exit(1)
        codes.append(os.waitpid(child, 0)[1])
    drawing.join()
    assert codes
    assert not any(codes)


def test_without_pypdfium2_the_package_is_named(three_pages, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(CatalogError, match="reading PDFs needs the package pypdfium2; pip install pypdfium2"):
        read(three_pages)


def test_pypdfium2_is_imported_by_documents_only(tmp_path, three_pages):
    script = (
        "import sys; from fanoise.catalog import read_catalog\n"
        "list(read_catalog(sys.argv[1])); print('pypdfium2' in sys.modules)"
    )
    table = raw(tmp_path / "a.csv", "text\nx\n")
    answers = [
        subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True).stdout
        for path in (table, three_pages)
    ]
    assert answers == ["False\n", "True\n"]
