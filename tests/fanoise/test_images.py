import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fanoise.errors import ImageError
from fanoise.images import ImageSource, open_image

ROOT = Path(__file__).parents[2]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def half_and_half(size: tuple[int, int] = (4, 2)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def pattern(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_of(header: bytes, values: bytes) -> bytes:
    """A PNG of the fields of its IHDR chunk and its pixels, each row after its filter byte."""
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(values), b"IEND")
    parts = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""
    return png_of(struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"\0" * 10)


@pytest.mark.parametrize("form", [bytes, str, Path, Image.Image])
def test_bytes_paths_and_images_give_the_same_pixels(tmp_path, form):
    file = tmp_path / "näme with space.png"
    file.write_bytes(encode(pattern()))
    with Image.open(file) as image:
        sources = {bytes: file.read_bytes(), str: str(file), Path: file, Image.Image: image}
        opened = open_image(sources[form])
    assert opened.mode == "RGB"
    assert np.array_equal(opened, pattern())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG"])
def test_every_listed_format_is_read(kind):
    opened = open_image(encode(half_and_half((32, 16)), kind, **({"quality": 95} if kind == "JPEG" else {})))
    assert opened.size == (32, 16)
    assert np.abs(np.subtract(opened.getpixel((4, 8)), RED, dtype=int)).max() <= 6
    assert np.abs(np.subtract(opened.getpixel((28, 8)), BLUE, dtype=int)).max() <= 6


@pytest.mark.parametrize("kind", ["ICO", "PCX", "TGA", "PDF", "EPS"])
def test_an_unlisted_format_is_refused_even_under_a_listed_name(tmp_path, kind):
    file = tmp_path / "picture.png"
    file.write_bytes(encode(half_and_half((32, 32)), kind))
    with pytest.raises(ImageError, match="not an image of a known format"):
        open_image(file)


# turning many modes into RGB


@pytest.mark.parametrize(
    ("orientation", "size", "red", "blue"),
    [
        (1, (4, 2), (0, 0), (3, 0)),
        (2, (4, 2), (3, 0), (0, 0)),
        (3, (4, 2), (3, 0), (0, 0)),
        (6, (2, 4), (0, 0), (0, 3)),
        (8, (2, 4), (0, 3), (0, 0)),
    ],
)
def test_exif_orientation_is_applied(orientation, size, red, blue):
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encode(half_and_half(), "PNG", exif=exif))
    assert opened.size == size
    assert (opened.getpixel(red), opened.getpixel(blue)) == (RED, BLUE)


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    opened = open_image(encode(image, transparency=1))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("LA", (0, 0), WHITE),
        ("LA", (0, 255), (0, 0, 0)),
    ],
)
def test_transparency_is_laid_on_white(mode, colour, expected):
    assert open_image(encode(Image.new(mode, (1, 1), colour))).getpixel((0, 0)) == expected


def test_a_transparent_colour_without_alpha_channel_is_white():
    opened = open_image(encode(half_and_half(), transparency=BLUE))
    assert (opened.getpixel((0, 0)), opened.getpixel((3, 0))) == (RED, WHITE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(kind):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    opened = open_image(encode(Image.fromarray(values), kind))
    assert [opened.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_eight_bit_values_in_a_wide_type_stay_as_they_are():
    opened = open_image(encode(Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32)), "TIFF"))
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 7, 255]


@pytest.mark.parametrize(
    ("colour_type", "pixels", "expected"),
    [
        (0, [(0,), (257,), (32896,), (65535,)], [(v, v, v) for v in (0, 1, 128, 255)]),
        (2, [(0, 0, 0), (65535, 0, 0), (0, 0, 257)], [(0, 0, 0), RED, (0, 0, 1)]),
        (4, [(0, 0), (0, 65535), (32896, 65535)], [WHITE, (0, 0, 0), (128, 128, 128)]),
        (6, [(0, 0, 0, 0), (65535, 0, 0, 65535)], [WHITE, RED]),
    ],
)
def test_every_kind_of_16_bit_png_is_read(colour_type, pixels, expected):
    values = b"\0" + b"".join(struct.pack(f">{len(pixel)}H", *pixel) for pixel in pixels)
    opened = open_image(png_of(struct.pack(">IIBBBBB", len(pixels), 1, 16, colour_type, 0, 0, 0), values))
    assert [opened.getpixel((x, 0)) for x in range(len(pixels))] == expected


def test_fractions_are_scaled_and_what_is_no_number_is_black():
    values = np.array([[0, 0.5, 1, np.nan, np.inf, -np.inf]], dtype=np.float32)
    opened = open_image(encode(Image.fromarray(values), "TIFF"))
    assert [opened.getpixel((x, 0))[0] for x in range(6)] == [0, 128, 255, 0, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind):
    options = {"quality": 100} if kind == "JPEG" else {}
    cyan = open_image(encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), kind, **options)).getpixel((4, 4))
    assert np.abs(np.subtract(cyan, (0, 255, 255), dtype=int)).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_images_are_rgb(mode):
    opened = open_image(encode(Image.new("RGB", (3, 3), WHITE).convert(mode)))
    assert (opened.mode, opened.getpixel((1, 1))) == ("RGB", WHITE)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, GREEN)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((4, 4)) == RED


# sizes


def test_one_pixel_is_an_image():
    assert open_image(encode(Image.new("RGB", (1, 1), RED))).getpixel((0, 0)) == RED


@pytest.mark.parametrize("as_image", [False, True])
@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1)])
def test_a_hair_thin_image_is_padded_to_an_aspect_a_vision_tower_accepts(size, as_image):
    image = Image.new("RGB", size, RED)
    opened = open_image(image if as_image else encode(image))
    assert max(opened.size) == 10_000
    assert max(opened.size) / min(opened.size) <= 150
    pixels = np.asarray(opened).reshape(-1, 3)
    assert (pixels == RED).all(axis=1).sum() == 10_000
    assert (pixels == WHITE).all(axis=1).sum() == len(pixels) - 10_000


@pytest.mark.parametrize("size", [(1, 500_000), (500_000, 1), (3, 100_000)])
def test_padding_never_makes_an_image_larger_than_the_limit(size):
    opened = open_image(Image.new("RGB", size, RED), max_pixels=1_000_000)
    assert opened.width * opened.height <= 1_000_000
    assert 100 < max(opened.size) / min(opened.size) <= 150
    assert (np.asarray(opened) == RED).all(axis=2).any()


def test_an_ordinary_banner_is_not_padded():
    assert open_image(encode(Image.new("RGB", (1500, 10), RED))).size == (1500, 10)


def test_an_image_at_the_limit_stays_and_one_above_is_reduced_to_it():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    data = encode(image)
    assert np.array_equal(open_image(data, max_pixels=8000), image)
    reduced = open_image(data, max_pixels=7999)
    assert (reduced.size, reduced.mode) == ((99, 79), "RGB")
    assert open_image(image, max_pixels=7999).size == (99, 79)


def test_a_jpeg_above_the_limit_is_decoded_at_half_its_sides():
    data = encode(half_and_half((100, 80)), "JPEG", quality=95)
    assert open_image(data, max_pixels=8000).size == (100, 80)
    for limit in (7999, 2910):
        opened = open_image(data, max_pixels=limit)
        assert opened.size == (50, 40)
        assert np.abs(np.subtract(opened.getpixel((10, 20)), RED, dtype=int)).max() <= 6
        assert np.abs(np.subtract(opened.getpixel((40, 20)), BLUE, dtype=int)).max() <= 6


def test_an_image_that_someone_has_opened_is_left_as_it_is():
    image = Image.open(io.BytesIO(encode(half_and_half((100, 80)), "JPEG")))
    assert open_image(image, max_pixels=7000).size == (93, 74)
    assert image.size == (100, 80)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_scan_of_70_megapixels_is_usable(kind):
    """By default: 10,000 × 7,000."""
    scan = Image.new("L" if kind == "JPEG" else "1", (10_000, 7_000), 255)
    scan.paste(0, (0, 0, 5_000, 7_000))
    opened = open_image(encode(scan, kind, **({"compression": "group4"} if kind == "TIFF" else {})))
    assert opened.size == ((5_000, 3_500) if kind == "JPEG" else (9_561, 6_693))
    assert opened.width * opened.height <= 64_000_000
    assert opened.getpixel((opened.width // 4, 99)) == (0, 0, 0)
    assert opened.getpixel((opened.width * 3 // 4, 99)) == WHITE


TURNED = Image.Exif()
TURNED[0x0112] = 6


def smooth(mode: str) -> Image.Image:
    """40 × 30, without edges but for the alpha channel's."""
    down, right = np.mgrid[0:30, 0:40]
    rgb = np.stack([right * 6, down * 8, (right + down) * 3], axis=2).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((right * 1600).astype(np.uint16))
    if mode == "I":
        return Image.fromarray((right * 6).astype(np.int32))
    if mode == "F":
        return Image.fromarray((right / 40).astype(np.float32))
    if mode in ("RGBA", "LA"):
        image = Image.fromarray(rgb).convert(mode)
        image.putalpha(Image.fromarray(np.where(right < 20, 255, 0).astype(np.uint8)))
        return image
    if mode == "1":
        return Image.fromarray((right >= 20) & (down >= 0))
    return Image.fromarray(rgb).convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        *((mode, "PNG", {}) for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16")),
        ("P", "PNG", {"transparency": 0}),
        ("RGB", "PNG", {"transparency": (0, 0, 0)}),
        ("P", "GIF", {}),
        *((mode, "TIFF", {}) for mode in ("1", "I", "I;16", "F", "CMYK")),
        ("RGB", "TIFF", {"tiffinfo": {0x0112: 6}}),
        ("RGB", "PNG", {"exif": TURNED}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "BMP", {}),
    ],
)
def test_a_reduced_image_looks_as_the_whole_one(mode, kind, options):
    data = encode(smooth(mode), kind, **options)
    whole, reduced = open_image(data), open_image(data, max_pixels=1000)
    assert reduced.size == ((27, 36) if {"tiffinfo", "exif"} & options.keys() else (36, 27))
    expected = np.asarray(whole.resize(reduced.size, Image.Resampling.HAMMING), dtype=int)
    difference = np.abs(np.asarray(reduced, dtype=int) - expected)
    assert difference.mean() < 2
    assert expected.std() > 10, "there is something to see"


@pytest.mark.parametrize("mode", ["1", "P", "RGB"])
@pytest.mark.parametrize("kept", [True, False])
def test_fine_stripes_are_averaged_and_what_is_transparent_is_white_before(mode, kept):
    """Of one pixel each, red and blue; in 1, white and black. Blue is transparent unless it is `kept`."""
    stripes = Image.fromarray(np.tile(np.array([RED, BLUE], dtype=np.uint8), (60, 50, 1)))
    options: dict[str, object] = {}
    if mode == "1":
        stripes = Image.fromarray(np.tile(np.array([True, False]), (60, 50)))
    elif mode == "P":
        stripes = stripes.quantize(2)
        options = {} if kept else {"transparency": stripes.getpixel((1, 0))}
    elif not kept:
        options = {"transparency": BLUE}
    data = encode(stripes, **options)
    mean = np.asarray(open_image(data), dtype=float).mean(axis=(0, 1))
    reduced = np.asarray(open_image(data, max_pixels=4000), dtype=float)
    assert np.abs(reduced.mean(axis=(0, 1)) - mean).max() < 3
    assert ((reduced[..., 1] > 5) & (reduced[..., 1] < 250)).any() == (mode == "1" or not kept)


@pytest.mark.parametrize("as_image", [False, True])
def test_the_hard_limit_is_exact_and_named(as_image):
    image = Image.new("RGB", (100, 60))
    data = Image.open(io.BytesIO(encode(image))) if as_image else encode(image)
    assert open_image(data, max_pixels=4000).size == (81, 48)
    with pytest.raises(ImageError, match=r"100×60 pixels, more than the limit of 0\.005998 megapixels"):
        open_image(data, max_pixels=3999)


def test_the_hard_limit_of_a_jpeg_is_exact_and_named():
    data = encode(Image.new("RGB", (100, 55)), "JPEG")
    assert open_image(data, max_pixels=2000).size == (50, 28)
    with pytest.raises(ImageError, match=r"100×55 pixels, more than the limit of 0\.005497 megapixels"):
        open_image(data, max_pixels=1999)


@pytest.mark.parametrize("side", [9_798, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    with pytest.raises(ImageError, match=r"more .*than the limit of 96 megapixels"):
        open_image(png_header(side, side))


@pytest.mark.parametrize("side", [13_267, 13_400, 60_000])
def test_a_jpeg_bomb_is_refused_by_its_header(side):
    data = encode(Image.new("RGB", (16, 16)), "JPEG")
    frame = data.index(b"\xff\xc0")  # then length, precision, height and width
    bomb = data[: frame + 5] + struct.pack(">HH", side, side) + data[frame + 9 :]
    with pytest.raises(ImageError, match=r"more .*than the limit of 176 megapixels"):
        open_image(bomb)


def test_a_limit_above_pillow_s_own_is_pillow_s():
    with pytest.raises(ImageError, match=rf"more .*than the limit of {2 * Image.MAX_IMAGE_PIXELS / 1e6:.10g} megapix"):
        open_image(png_header(14_000, 14_000), max_pixels=200_000_000)


def test_what_pillow_warns_of_is_opened_without_a_word(tmp_path):
    """In a process of its own: pytest has its own filters of warnings."""
    file = tmp_path / "large.png"
    Image.new("1", (9_700, 9_700), 1).save(file)
    code = (
        "import sys, warnings; warnings.simplefilter('error'); from fanoise.images import open_image; "
        "print(open_image(sys.argv[1]).getextrema())"
    )
    opened = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, cwd=ROOT)
    assert (opened.stdout, opened.stderr) == ("((255, 255), (255, 255), (255, 255))\n", "")


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ImageError, match="0×5 pixels"):
        open_image(Image.new("RGB", (0, 5)))


# what cannot be read


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file_is_damaged_not_half_an_image(tmp_path, kind):
    file = tmp_path / "photo"
    data = encode(pattern(), kind)
    file.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError) as error:
        open_image(file)
    assert error.value.reason.startswith(("damaged or truncated (", "not an image"))
    assert str(error.value) == f"image {str(file)!r}: {error.value.reason}"


def test_a_truncated_image_object_is_an_image_error_too():
    data = encode(pattern())
    with pytest.raises(ImageError, match="damaged or truncated"):
        open_image(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"hello, I am text\n" * 50, b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_what_is_no_image_says_so_whatever_its_name(tmp_path, content):
    file = tmp_path / "photo.jpg"
    file.write_bytes(content)
    for source in (file, content):
        with pytest.raises(ImageError, match="not an image of a known format"):
            open_image(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_devices_and_folders_are_no_images_and_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(ImageError, match=r"cannot be opened \((not a regular file|Is a directory)\)"):
            open_image(name)


# image sources


@dataclass(frozen=True)
class Source:
    content: object

    def read(self):
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def __str__(self):
        return "the third page"


def test_a_source_is_read_when_it_is_opened():
    assert isinstance(Source(b""), ImageSource)
    for content in (encode(pattern()), pattern()):
        assert np.array_equal(open_image(Source(content)), pattern())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image", "not an image of a known format"),
        (encode(Image.new("RGB", (100, 50))), "100×50 pixels, more than the limit of 0.004998 megapixels"),
        (Image.new("RGB", (100, 50)), "100×50 pixels, more than the limit of 0.004998 megapixels"),
        (Image.new("RGB", (0, 5)), "0×5 pixels, there is nothing to see"),
        (ImageError("gone", "x"), "gone"),
        (FileNotFoundError(2, "no"), "file not found"),
        (OSError(5, "Input/output error"), "cannot be opened (Input/output error)"),
    ],
)
def test_a_source_has_the_limits_of_a_file_and_is_named(content, reason):
    with pytest.raises(ImageError) as error:
        open_image(Source(content), max_pixels=3332)
    assert error.value.reason == reason
    assert isinstance(content, ImageError) or str(error.value) == f"image 'the third page': {reason}"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError) as error:
        open_image(tmp_path / "no such.png")
    assert error.value.reason == "file not found"
    assert str(tmp_path / "no such.png") in str(error.value)


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 5000])
def test_a_name_that_cannot_be_opened_is_an_image_error(tmp_path, name):
    with pytest.raises(ImageError, match="cannot be opened"):
        open_image(f"{tmp_path}/{name}")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM"])
def test_flipped_bytes_give_an_image_or_an_image_error(kind):
    rng = random.Random(1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "description"
    data = encode(pattern(), kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
    outcomes = set()
    for _ in range(250):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(min(len(data), 300))] = rng.randrange(256)
        try:
            outcomes.add(open_image(bytes(damaged), max_pixels=1_000_000).mode)
        except ImageError as error:
            outcomes.add(type(error))
            assert "\n" not in str(error)
    assert ImageError in outcomes
    assert outcomes <= {"RGB", ImageError}


@pytest.mark.parametrize("error", [struct.error("required argument"), TypeError("float"), MemoryError(), IndexError()])
def test_whatever_a_decoder_raises_is_an_image_error(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match="damaged or truncated"):
        open_image(b"anything")


def test_threads_that_open_images_leave_the_filters_of_warnings_alone():
    """`warnings.catch_warnings` in several threads leaves one thread's filters installed for good."""
    data = encode(Image.new("RGB", (300, 300)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: open_image(data), range(200)))
    assert warnings.filters == before
