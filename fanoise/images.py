"""Open an untrusted image as RGB, or say in a few words why not."""

import io
import math
import os
import stat
import warnings
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fanoise.errors import ImageError, one_line

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
OTHER_IMAGE_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg"})
"""Pictures to whoever put them there, and passed over in silence they would be missed: each is a reject."""
# Pillow opens dozens of formats; decoders that nobody sends are only attack surface.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Both limits stay near the memory that `max_pixels` of RGBA always took, 1.5 GB by default: 96 million pixels of RGBA
# take 1.6 GB, being there twice while they are reduced, and 176 million of progressive JPEG 1.2 GB.
_MOST_OF_JPEG = 2.75
_MOST_OF_OTHERS = 1.5
"""Times `max_pixels` that a file may have; by default 176 million, just what Pillow opens, and 96 million."""
_JPEG_PREFIX = b"\xff\xd8\xff"
_MAX_ASPECT = 150  # Qwen2-VL refuses an aspect ratio of 200 and more; stay clear of it after rounding
# Pillow warns of what lies between its limit and ours. Once for the process, since `catch_warnings` is not for threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@runtime_checkable
class ImageSource(Protocol):
    """An image that is fetched or drawn when it is opened; `str()` names it."""

    def read(self) -> bytes | Image.Image:
        """The image file's bytes, or the image. Raises ImageError or OSError."""
        ...


def open_image(source: Path | str | bytes | Image.Image | ImageSource, *, max_pixels: int = 64_000_000) -> Image.Image:
    """Decode to RGB: EXIF orientation applied, first frame, transparency on white, 16-bit scaled to 8.

    Args:
        source: a path, the file's bytes, an image (returned as RGB), or an image source, which is read.
        max_pixels: a larger image is reduced to as many, JPEG to half its sides while it is decoded. One of more than
            half as many again, JPEG of more than 2.75 times as many, is refused by its header, before any pixel is
            decoded (decompression bombs), and so is what Pillow itself refuses: 2 × `Image.MAX_IMAGE_PIXELS`, 179
            million.
    Raises: ImageError with a short reason.
    """
    if isinstance(source, bytes | Image.Image):
        return _decode(source, max_pixels, None)
    try:
        if not isinstance(source, str | Path):
            return _decode(source.read(), max_pixels, source)
        with open_regular(source) as file:
            return _decode(file, max_pixels, source)
    except FileNotFoundError:
        raise ImageError("file not found", source) from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ImageError(f"cannot be opened ({getattr(error, 'strerror', None) or error})", source) from None


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a file for reading, but no pipe or device: one of those, named in a table, would never end.

    Raises: OSError, ValueError for a name that no file can have.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError("not a regular file")
        return descriptor

    return open(path, "rb", opener=opener)  # pathlib has no opener


def _decode(source: IO[bytes] | bytes | Image.Image, max_pixels: int, name: object) -> Image.Image:
    is_jpeg, most = False, int(_MOST_OF_OTHERS * max_pixels)
    try:
        if not isinstance(source, Image.Image):
            stream = io.BytesIO(source) if isinstance(source, bytes) else source
            if is_jpeg := stream.read(len(_JPEG_PREFIX)) == _JPEG_PREFIX:
                most = int(_MOST_OF_JPEG * max_pixels)
            stream.seek(0)
            source = Image.open(stream, formats=FORMATS)
        width, height = source.size
        if width * height > most:
            raise ImageError(f"{width}×{height} pixels, more than the limit of {_megapixels(most)}", name)
        if not width * height:
            raise ImageError(f"{width}×{height} pixels, there is nothing to see", name)
        if is_jpeg and width * height > max_pixels:
            source.draft(None, (max(1, width // 2), max(1, height // 2)))
        source.load()
        image = _to_rgb(_reduced(source, max_pixels))
        thin = max(width, height) > _MAX_ASPECT * min(width, height)
        return _pad_to_aspect(image, max_pixels) if thin else image
    except UnidentifiedImageError:
        raise ImageError("not an image of a known format", name) from None
    except ImageError:
        raise
    except Image.DecompressionBombError:
        most = min(most, 2 * (Image.MAX_IMAGE_PIXELS or most))
        raise ImageError(f"more pixels than the limit of {_megapixels(most)}", name) from None
    except Exception as error:  # on damaged files Pillow raises about anything: struct.error, TypeError, …
        raise ImageError(f"damaged or truncated ({one_line(error)})", name) from None


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.10g} megapixels"


def _reduced(image: Image.Image, max_pixels: int) -> Image.Image:
    """An image of at most `max_pixels` as it is; a larger one of like shape, in a mode that can be averaged."""
    factor = math.sqrt(max_pixels / (image.width * image.height))
    if factor >= 1:
        return image
    if image.mode == "PA" or "transparency" in image.info:
        image = image.convert("RGBA")
    elif to := {"1": "L", "P": "RGB", "I;16": "I", "I;16B": "I", "I;16L": "I", "I;16N": "I"}.get(image.mode):
        image = image.convert(to)
    size = max(1, int(image.width * factor)), max(1, int(image.height * factor))
    # no overshoot, which would have 8-bit values in a wide type taken for 16-bit ones
    return image.resize(size, Image.Resampling.HAMMING)


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0)
        peak = values.max(initial=0)
        # 16-bit scans use the whole range; small values in an "I" image are 8-bit ones in a wide type, and float images
        # up to 1 are fractions
        scale = 1.0 if image.mode == "F" and peak <= 1 else 255.0 if peak <= 255 else 65535.0
        return Image.fromarray((values.clip(0, scale) * (255.0 / scale)).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _pad_to_aspect(image: Image.Image, max_pixels: int) -> Image.Image:
    """Centre a hair-thin image on white so that its aspect ratio is one a vision tower accepts.

    One that would then have more than `max_pixels` is shrunk first: a file of 1×500,000 pixels is next to nothing, but
    padded it would take gigabytes.
    """
    longest = max(1, _MAX_ASPECT * math.isqrt(max_pixels // _MAX_ASPECT))
    if longest < max(image.size):
        factor = longest / max(image.size)
        image = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))
    width, height = image.size
    least = -(-max(width, height) // _MAX_ASPECT)
    canvas = Image.new("RGB", (max(width, least), max(height, least)), "white")
    canvas.paste(image, ((canvas.width - width) // 2, (canvas.height - height) // 2))
    return canvas
