import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.pictures import LONGEST_SIDE, Pictures
from app.service import Pair, Service
from index.build import build_index
from index.search import Index, Searcher
from index.update import add_items
from tests.app.conftest import ColourEmbedder

ARTIST = 0x013B


def serve(catalog: Path, folder: Path, **options: Any) -> Service:
    embedder: Any = ColourEmbedder("plain")
    build_index(embedder, catalog, folder / "index", progress=False, **options)
    searcher = Searcher(Index.open(folder / "index"), embedder)
    return Service({"scans": Pair(searcher, searcher)})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A catalogue of one tall scan that says who scanned it."""
    exif = Image.Exif()
    exif[ARTIST] = "somebody"
    scan = Image.linear_gradient("L").resize((1_000, 3_200)).convert("RGB")
    scan.save(tmp_path / "scan.jpg", exif=exif, comment="a note")
    (tmp_path / "scans.csv").write_text("id,image\na,scan.jpg\n")
    return tmp_path / "scans.csv"


def digest(service: Service, row: int = 0) -> str:
    return service.searcher("scans", "baseline").index.thumbnail_digest(row) or ""


def opened(jpeg: bytes | None) -> Image.Image:
    assert jpeg is not None
    return Image.open(io.BytesIO(jpeg))


def test_the_original_is_shown_smaller_and_without_what_else_its_file_holds(scans: Path, tmp_path: Path) -> None:
    service = serve(scans, tmp_path)
    picture = opened(Pictures(service, originals=True).find(digest(service)))
    assert (picture.format, picture.size) == ("JPEG", (500, LONGEST_SIDE))
    assert not picture.getexif() and not {"exif", "comment"} & set(picture.info)


def test_originals_are_shown_only_where_the_operator_says_so(scans: Path, tmp_path: Path) -> None:
    service = serve(scans, tmp_path)
    found = Pictures(service).find(digest(service))
    assert found is not None and hashlib.sha256(found).hexdigest() == digest(service)
    assert opened(found).size == (100, 320)


def test_a_file_that_was_replaced_removed_or_damaged_leaves_the_thumbnail(scans: Path, tmp_path: Path) -> None:
    service = serve(scans, tmp_path)
    private = Image.new("RGB", (1_000, 3_200), "red")
    file = tmp_path / "scan.jpg"
    for change in (lambda: private.save(file), lambda: file.write_text("no image"), file.unlink):
        change()
        assert opened(Pictures(service, originals=True).find(digest(service))).size == (100, 320)


@pytest.mark.parametrize("asked", ["", "scan.jpg", "../scan.jpg", "a" * 64, "A" * 64, "/etc/passwd", "0" * 63 + "\n"])
def test_only_thumbnails_of_the_page_can_be_asked_for(scans: Path, tmp_path: Path, asked: str) -> None:
    assert Pictures(serve(scans, tmp_path), originals=True).find(asked) is None


def test_an_index_cannot_name_a_file_of_which_it_has_no_thumbnail(scans: Path, tmp_path: Path) -> None:
    """The path in the index leads to the private file, the thumbnail is of another picture."""
    service = serve(scans, tmp_path)
    Image.new("RGB", (900, 900), "red").save(tmp_path / "private.jpg")
    (tmp_path / "scan.jpg").unlink()
    (tmp_path / "scan.jpg").symlink_to(tmp_path / "private.jpg")
    assert opened(Pictures(service, originals=True).find(digest(service))).size == (100, 320)


def test_a_page_of_a_document_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    pages = [Image.new("RGB", (600, 800), colour) for colour in ("white", "navy")]
    (tmp_path / "scans").mkdir()
    pages[0].save(tmp_path / "scans" / "letter.pdf", save_all=True, append_images=pages[1:])
    service = serve(tmp_path / "scans", tmp_path)
    assert service.searcher("scans", "baseline").index.ids == ["letter.pdf#1", "letter.pdf#2"]
    picture = opened(Pictures(service, originals=True).find(digest(service, 1)))
    assert picture.size == (1_200, 1_600)
    assert picture.convert("RGB").getpixel((600, 800))[2] > 100


def test_originals_of_rows_added_from_another_folder_are_found(scans: Path, tmp_path: Path) -> None:
    embedder: Any = ColourEmbedder("plain")
    serve(scans, tmp_path)
    (tmp_path / "more").mkdir()
    Image.new("RGB", (700, 500), "green").save(tmp_path / "more" / "scan.jpg")  # a name that the first has, too
    (tmp_path / "more" / "more.csv").write_text("id,image\nb,scan.jpg\n")
    add_items(embedder, tmp_path / "more" / "more.csv", tmp_path / "index")
    searcher = Searcher(Index.open(tmp_path / "index"), embedder)
    service = Service({"scans": Pair(searcher, searcher)})
    pictures = Pictures(service, originals=True)
    assert [opened(pictures.find(digest(service, row))).size for row in (0, 1)] == [(500, 1_600), (700, 500)]


def test_a_deleted_item_has_no_original(scans: Path, tmp_path: Path) -> None:
    service = serve(scans, tmp_path)
    service.searcher("scans", "baseline").index.live[0] = False
    assert opened(Pictures(service, originals=True).find(digest(service))).size == (100, 320)
