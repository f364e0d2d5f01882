import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fanoise.catalog import Item, PdfPage, read_catalog
from fanoise.errors import CatalogError, ImageError
from fanoise.images import FORMATS, open_image
from tests.fanoise.catalog.files import RED, png, raw, read, write


def pdf(path: Path, pages: int = 1) -> Path:
    sheets = [Image.new("L", (30, 40), 40 * page) for page in range(pages)]
    buffer = io.BytesIO()
    sheets[0].save(buffer, "PDF", save_all=True, append_images=sheets[1:])
    return raw(path, buffer.getvalue())


def test_a_folder_gives_the_items_of_a_table_that_lists_it(tmp_path):
    names = ["b.PNG", "hats/a b.jpg", "hats/red/x'\n\"y.webp", "zy.JFIF", "zy.jpe", "zz.tiff"]
    for name in names:
        raw(tmp_path / "photos" / name, b"never opened here")
    raw(tmp_path / "photos" / "notes.txt", "not an image")
    (tmp_path / "photos" / "empty.png").mkdir()
    rows = [{"id": name, "image": f"photos/{name}", "category": str(Path(name).parent)} for name in names]
    listed = list(read_catalog(write(tmp_path / "list.csv", rows)))
    found = list(read_catalog(tmp_path / "photos"))
    assert [(item.id, item.text, item.image) for item in found] == [(i.id, i.text, i.image) for i in listed]
    assert [item.fields for item in found] == [{}, {"category": "hats"}, {"category": "hats/red"}, {}, {}, {}]


def test_the_order_is_that_of_the_parts_of_paths(tmp_path):
    names = ["a/b.png", "a b.png", "a.png", "B.png", "a/B/c.png", "a-b/c.png", "ä.png", "10.png", "9.png"]
    for name in names:
        raw(tmp_path / name, b"")
    assert [item.id for item in read_catalog(tmp_path)] == [str(path) for path in sorted(map(Path, names))]


def test_images_and_pages_of_documents_are_mixed(tmp_path):
    raw(tmp_path / "a.png", png())
    pdf(tmp_path / "tax/report 1.PDF", pages=2)
    raw(tmp_path / "z.png", png())
    fields = {"category": "tax", "document": "tax/report 1.PDF"}
    document = tmp_path / "tax/report 1.PDF"
    assert list(read_catalog(tmp_path)) == [
        Item(id="a.png", image=tmp_path / "a.png"),
        Item(id="tax/report 1.PDF#1", image=PdfPage(document, 1), fields={**fields, "page": 1}),
        Item(id="tax/report 1.PDF#2", image=PdfPage(document, 2), fields={**fields, "page": 2}),
        Item(id="z.png", image=tmp_path / "z.png"),
    ]


def test_a_damaged_document_is_one_reject_among_the_others(tmp_path):
    pdf(tmp_path / "a.pdf")
    raw(tmp_path / "sub/b.pdf", b"%PDF-1.4 and no more")
    pdf(tmp_path / "c.pdf")
    items, rejects = read(tmp_path)
    assert [item.id for item in items] == ["a.pdf#1", "c.pdf#1"]
    assert rejects == [("sub/b.pdf", "sub/b.pdf", "damaged, or not a PDF")]
    with pytest.raises(CatalogError, match=r"sub/b\.pdf: damaged, or not a PDF"):
        list(read_catalog(tmp_path))


def test_a_folder_of_damaged_documents_is_all_rejects(tmp_path):
    raw(tmp_path / "b.pdf", b"")
    assert read(tmp_path) == ([], [("b.pdf", "b.pdf", "damaged, or not a PDF")])


def test_text_can_be_made_of_the_fields(tmp_path):
    raw(tmp_path / "red hats/a.png", png())
    raw(tmp_path / "b.png", png())
    assert [item.text for item in read_catalog(tmp_path, text="a photo of {category}")] == [
        None,
        "a photo of red hats",
    ]
    with pytest.raises(
        CatalogError, match="unknown column 'kind'; the columns are id, image, category, document, page"
    ):
        list(read_catalog(tmp_path, text="{kind}"))


def test_pictures_of_kinds_that_are_not_read_are_rejects(tmp_path):
    for name in ("a.HEIC", "b.png", "hats/c.avif", "notes.txt"):
        raw(tmp_path / name, b"")
    rejects = []
    found = list(read_catalog(tmp_path, on_reject=lambda id, path, reason: rejects.append((id, reason))))
    assert [item.id for item in found] == ["b.png"]
    remedy = "images are not read; convert it, such as to JPEG"
    assert rejects == [("a.HEIC", f".heic {remedy}"), ("hats/c.avif", f".avif {remedy}")]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CatalogError, match=r"no images found; expected .*\.jpg.*\.pdf"):
        list(read_catalog(tmp_path))


def test_hidden_folders_and_the_notes_of_macos_are_skipped_and_no_other_dots(tmp_path):
    for name in (".thumbs/a.png", ".a/b/c.png", "._b.png", "c/._d.png"):
        raw(tmp_path / name, png())
    names = ["..%2f'x'.png", ".e.png", "c/..png.png", "f.png"]
    for name in names:
        raw(tmp_path / name, png())
    items, rejects = read(tmp_path)
    assert ([item.id for item in items], rejects) == (names, [])


def test_links_that_form_a_loop_do_not_trap_the_reader_and_nothing_is_lost_in_silence(tmp_path):
    raw(tmp_path / "photos/a.png", png())
    (tmp_path / "photos/b.png").symlink_to("a.png")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "photos/self.png").symlink_to(tmp_path / "photos/self.png")
    (tmp_path / "photos/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "photos/gone.txt").symlink_to(tmp_path / "nowhere.txt")
    items, rejects = read(tmp_path)
    assert [item.id for item in items] == ["photos/a.png", "photos/b.png"]
    assert rejects == [
        ("photos/gone.png", "photos/gone.png", "not a file, or a link that leads nowhere"),
        ("photos/loop", "photos/loop", "a link to a folder; put the folder itself there"),
        ("photos/self.png", "photos/self.png", "not a file, or a link that leads nowhere"),
    ]
    with pytest.raises(CatalogError, match=r"gone\.png: not a file, or a link that leads nowhere"):
        list(read_catalog(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_a_reject_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    raw(tmp_path / "b.png", png())
    assert [id for id, *_ in read(tmp_path)[1]] == ["a.png"]
    with pytest.raises(ImageError, match="cannot be opened"):
        open_image(tmp_path / "a.png")


def test_a_folder_that_may_not_be_read_is_a_reject(tmp_path, monkeypatch):
    raw(tmp_path / "open/a.png", png())
    raw(tmp_path / "shut/b.png", png())
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    items, rejects = read(tmp_path)
    assert [item.id for item in items] == ["open/a.png"]
    assert rejects == [("shut", "shut", "the folder cannot be read (Permission denied)")]


def test_folders_may_be_deeper_than_python_can_call(tmp_path):
    deep = tmp_path
    for _ in range(sys.getrecursionlimit() // 2):
        deep /= "d"
    raw(deep / "a.png", png())
    script = (
        "import sys; sys.setrecursionlimit(200)\n"
        "from fanoise.catalog import read_catalog; print(len(list(read_catalog(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], check=True, capture_output=True, text=True)
    assert done.stdout == "1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_names_that_are_not_utf8_are_found_and_can_be_opened(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/t\xfcr"))
    raw(folder / os.fsdecode(b"gr\xfcn.png"), png())
    pdf(folder / os.fsdecode(b"gr\xfcn.pdf"))
    items = list(read_catalog(tmp_path))
    assert [os.fsencode(item.id) for item in items] == [b"t\xfcr/gr\xfcn.pdf#1", b"t\xfcr/gr\xfcn.png"]
    for item in items:
        open_image(item.image)


def test_a_suffix_of_every_format_that_is_decoded_is_read(tmp_path):
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"a.{suffix}")
    assert len(list(read_catalog(tmp_path))) == len(FORMATS)


def test_documents_can_be_named_by_a_pattern(tmp_path):
    pdf(tmp_path / "2024" / "b.pdf", 2), pdf(tmp_path / "2023" / "a.pdf"), pdf(tmp_path / "c.pdf")
    raw(tmp_path / "2024" / "broken.pdf", b"x")
    rejects = []
    items = list(read_catalog(tmp_path / "20*" / "*.pdf", on_reject=lambda *fault: rejects.append(fault[0])))
    assert [item.id for item in items] == ["2023/a.pdf#1", "2024/b.pdf#1", "2024/b.pdf#2"]
    assert items[1].fields == {"category": "2024", "document": "2024/b.pdf", "page": 1}
    assert rejects == ["2024/broken.pdf"]
    with pytest.raises(CatalogError, match=r"id 'c\.pdf#1' was already used"):
        list(read_catalog(tmp_path / "{c,c}.pdf"))


def test_what_is_passed_over_is_named_and_what_is_a_fault_is_not(tmp_path):
    raw(tmp_path / "a.png", png(RED))
    for name in ("notes.txt", "sub/b.tga", "sub/no_suffix", "c.heic", ".hidden", ".git/d", "._a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    passed, rejected = [], []
    items = read_catalog(tmp_path, on_reject=lambda id, *_: rejected.append(id), on_other=passed.append)
    assert [item.id for item in items] == ["a.png"]
    assert (passed, rejected) == (["notes.txt", "b.tga", "no_suffix"], ["c.heic"])


def test_beside_parts_of_a_table_other_files_are_passed_over(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(pa.table({"id": [name], "text": ["x"]}), tmp_path / name)
    (tmp_path / "forgotten.csv").touch()
    passed = []
    assert len(list(read_catalog(tmp_path, on_other=passed.append))) == 2
    assert passed == ["forgotten.csv"]
