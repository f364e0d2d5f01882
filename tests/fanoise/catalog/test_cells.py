import base64
import os
from pathlib import Path

import pytest

from fanoise.catalog import ImageBytes, RemoteImage, read_catalog
from fanoise.catalog.cells import ImageCells
from fanoise.catalog.rejects import Fault
from fanoise.errors import CatalogError
from fanoise.images import open_image
from tests.fanoise.catalog.files import BLUE, RED, png, raw, read, write

ENCODED = base64.b64encode(png()).decode()


@pytest.fixture
def shop(tmp_path):
    """A catalogue's folder with a photo inside it and one beside it."""
    raw(tmp_path / "shop/photos/in.png", png())
    raw(tmp_path / "out.png", png(BLUE))
    raw(tmp_path / "shop-2/out.png", png(BLUE))
    return tmp_path / "shop"


# paths


def test_relative_and_absolute_paths_inside_the_folder_are_taken(shop, monkeypatch):
    cells = ["photos/in.png", str(shop / "photos/in.png"), "photos/../photos/in.png", f"../{shop.name}/photos/in.png"]
    path = write(shop / "a.jsonl", [{"image": cell} for cell in cells])
    monkeypatch.chdir(shop.parent)
    for catalog in (path, Path("shop/a.jsonl")):
        images = [item.image for item in read_catalog(catalog)]
        assert [open_image(image).getpixel((0, 0)) for image in images] == [RED] * 4
    monkeypatch.chdir(shop)
    assert [str(item.image) for item in read_catalog("a.jsonl")][:1] == ["photos/in.png"]


@pytest.mark.parametrize(
    "cell",
    [
        "../out.png",
        "photos/../../out.png",
        "/etc/passwd",
        "..",
        "../shop-2/out.png",
        "//etc/x.png",
        "../shop/../out.png",
    ],
)
def test_paths_that_lead_out_of_the_folder_are_rejects(shop, cell):
    path = write(shop / "a.jsonl", [{"id": "x", "image": cell}, {"id": "y", "image": "photos/in.png"}])
    items, rejects = read(path)
    assert [item.id for item in items] == ["y"]
    assert rejects == [("x", cell, "leads out of the catalogue's folder; if it may, say so with --allow-outside")]
    with pytest.raises(CatalogError, match=r"a\.jsonl: row 1: image '.*': leads out .* --allow-outside"):
        list(read_catalog(path))


def test_absolute_paths_with_dots_lead_out_too(shop):
    path = write(shop / "a.jsonl", [{"image": f"{shop}/../out.png"}, {"image": f"{shop}-2/out.png"}])
    assert len(read(path)[1]) == 2


def test_paths_may_lead_out_when_that_is_allowed(shop):
    path = write(shop / "a.jsonl", [{"image": "../out.png"}, {"image": str(shop.parent / "shop-2/out.png")}])
    images = [item.image for item in read_catalog(path, allow_outside=True)]
    assert [open_image(image).getpixel((0, 0)) for image in images] == [BLUE, BLUE]


def test_another_folder_for_images_is_start_and_limit(shop):
    rows = [
        {"image": "out.png"},
        {"image": str(shop.parent / "shop-2/out.png")},
        {"image": str(shop / "photos/in.png")},
    ]
    items, rejects = read(write(shop / "a.jsonl", rows), images=shop.parent / "shop-2")
    assert [open_image(item.image).getpixel((0, 0)) for item in items] == [BLUE, BLUE]
    assert [name for _, name, _ in rejects] == ["photos/in.png"]  # names begin at the catalogue's folder


def test_absolute_paths_may_spell_the_folder_by_its_link_or_without(shop):
    link = shop.parent / "link"
    link.symlink_to(shop)
    rows = [{"image": str(shop / "photos/in.png")}, {"image": str(link / "photos/in.png")}]
    path = write(link / "a.jsonl", rows)
    assert all(item.image.is_file() for item in read_catalog(path))


def test_what_is_checked_is_what_is_opened_where_a_link_is_followed_by_dots(shop):
    (shop / "photos/link").symlink_to(shop.parent / "shop-2")
    path = write(shop / "a.jsonl", [{"image": "photos/link/../out.png"}])
    (item,) = read_catalog(path)
    assert item.image == shop / "photos/out.png"  # the system would go to the folder that holds shop-2


def test_the_root_folder_holds_everything():
    assert ImageCells("/").read("/etc/x.png", "") == Path("/etc/x.png")


@pytest.mark.parametrize("name", ["a b.png", "c'\"d.png", "line\nbreak.png", "...png", "a..b/c.png", "näh 🦊.png"])
def test_odd_names_are_only_names(shop, name):
    raw(shop / name, png())
    (item,) = read_catalog(write(shop / "a.jsonl", [{"image": name}]))
    assert open_image(item.image).getpixel((0, 0)) == RED


def test_names_that_no_file_can_have_fail_when_opened_not_before(shop):
    from fanoise.errors import ImageError

    path = write(shop / "a.jsonl", [{"image": "a\0b.png"}, {"image": "x" * 300 + ".png"}])
    raw(path, path.read_bytes() + b'{"image": "\\ud83d.png"}\n')
    for item in read_catalog(path):
        with pytest.raises(ImageError, match="cannot be opened"):
            open_image(item.image)


# bytes and base64


@pytest.mark.parametrize("cell", [png(), {"bytes": png(), "path": None}, {"bytes": png(), "path": "/nowhere/x.png"}])
def test_bytes_are_images_named_by_their_row(shop, cell):
    path = write(shop / "a.parquet", [{"image": cell}])
    (item,) = read_catalog(path)
    assert item.image == ImageBytes(png(), f"{path}: row 1")
    assert str(item.image) == f"{path}: row 1"
    assert "PNG" not in repr(item.image)
    assert open_image(item.image).getpixel((0, 0)) == RED


def test_a_struct_without_bytes_is_its_path_and_an_empty_one_nothing(shop):
    rows = [
        {"image": {"bytes": None, "path": "photos/in.png"}, "text": None},
        {"image": {"bytes": None, "path": None}, "text": "words"},
        {"image": {"bytes": None, "path": "/etc/x.png"}, "text": None},
        {"image": {"bytes": b"", "path": "photos/in.png"}, "text": None},
        {"image": {"bytes": b"", "path": ""}, "text": "words"},
    ]
    items, rejects = read(write(shop / "a.parquet", rows))
    assert [item.image for item in items] == [shop / "photos/in.png", None] * 2
    assert [name for _, name, _ in rejects] == ["/etc/x.png"]


def test_empty_bytes_are_no_image(shop):
    rows = [{"image": png(), "text": "a"}, {"image": b"", "text": "b"}, {"image": None, "text": "c"}]
    items, rejects = read(write(shop / "a.parquet", rows))
    assert [item.image is None for item in items] == [False, True, True] and not rejects


@pytest.mark.parametrize(
    "cell",
    [
        ENCODED,
        ENCODED.rstrip("="),
        "\n".join(ENCODED[i : i + 76] for i in range(0, len(ENCODED), 76)),
        base64.urlsafe_b64encode(png()).decode(),
        f"data:image/png;base64,{ENCODED}",
        f" \n{ENCODED}\n",
        f" data:image/png;base64, {ENCODED} ",
        f"DATA:image/png;charset=x;BASE64,{ENCODED.replace('+', '%2B')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in png()),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_text_may_be_an_image_in_base64(shop, cell, suffix):
    (item,) = read_catalog(write(shop / f"a{suffix}", [{"image": cell}]))
    assert item.image.read() == png()
    assert str(item.image).endswith(f"a{suffix}: row 1")


def test_a_text_that_is_too_long_for_a_path_is_not_repeated_in_the_ledger(shop):
    _, rejects = read(write(shop / "a.jsonl", [{"image": "no path. " * 1000}, {"image": "*" * 5000}]))
    assert [len(reason) < 100 and "neither a path nor base64" in reason for _, _, reason in rejects] == [True, True]
    assert {path for _, path, _ in rejects} == {"a.jsonl"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_base64_of_each_format_is_known_from_a_path(shop, kind):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    cell = base64.b64encode(buffer.getvalue()).decode()
    (item,) = read_catalog(write(shop / "a.csv", [{"image": cell}]))
    assert item.image.read() == buffer.getvalue()


@pytest.mark.parametrize(
    "cell", [f"data:image/png;base64,{ENCODED[:9]}*", f"{ENCODED[:40]}é", f"{ENCODED[:40]}#{ENCODED}"]
)
def test_broken_base64_is_a_reject(shop, cell):
    path = write(shop / "a.jsonl", [{"image": cell}, {"image": ENCODED}])
    items, rejects = read(path)
    assert [item.id for item in items] == ["2"]
    assert rejects == [("1", "a.jsonl", "the image is not valid base64")]


@pytest.mark.parametrize("cell", ["iVBORw0KGgo.png", "R0lGOD/a.gif", "9j/4AAQ"])
def test_a_path_that_looks_a_little_like_base64_stays_a_path(shop, cell):
    (item,) = read_catalog(write(shop / "a.csv", [{"image": cell}]))
    assert item.image == shop / cell


# URLs


@pytest.mark.parametrize("url", ["http://example.org/a.png", "HTTPS://example.org/a b.png?x=1"])
def test_urls_are_rejects_unless_they_are_allowed(shop, url):
    path = write(shop / "a.csv", [{"id": "x", "image": url}])
    items, rejects = read(path)
    assert not items
    assert rejects == [("x", url, "URLs are not fetched; allow it with --allow-urls, or fetch the images first")]
    with pytest.raises(
        CatalogError, match=r"a\.csv: row 1: image '.*://example.*': URLs are not fetched; .*--allow-urls"
    ):
        list(read_catalog(path))
    (item,) = read_catalog(path, allow_urls=True)
    assert item.image == RemoteImage(url)


@pytest.mark.parametrize("url", ["file:///etc/x.png", "ftp://x/a.png", "s3://bucket/a.png", "gopher://x"])
def test_other_schemes_are_rejects_even_when_urls_are_allowed(shop, url):
    _, rejects = read(write(shop / "a.csv", [{"image": url}]), allow_urls=True, allow_outside=True)
    assert [reason.split(" is ")[1] for *_, reason in rejects] == [
        "not supported; fetch the images and name their paths"
    ]


@pytest.mark.parametrize("cell", [7, 1.5, True, {"url": "x"}])
def test_what_is_no_image_at_all_is_a_reject(shop, cell):
    items, rejects = read(write(shop / "a.jsonl", [{"image": cell}, {"image": "photos/in.png"}]))
    assert [item.id for item in items] == ["2"]
    assert rejects[0][0] == "1"


def test_a_fault_names_the_cell():
    with pytest.raises(Fault) as fault:
        ImageCells(os.curdir).read("/etc/x.png", "a.csv: row 1")
    assert fault.value.source == "/etc/x.png"


def test_a_list_that_is_written_as_text_is_said_to_be_one(tmp_path):
    (tmp_path / "a.csv").write_text('id,image\nx,"[""a.jpg"",""b.jpg""]"\n')
    items, [(id, _, reason)] = read(tmp_path / "a.csv")
    assert (items, id) == ([], "x") and "a list written as text; give each image a column" in reason
