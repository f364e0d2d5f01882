"""Open an untrusted image as RGB, or say in a few words why not."""

import io
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fanoise.errors import ImageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
# Pillow opens dozens of formats; decoders that nobody sends are only attack surface.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MAX_ASPECT = 150  # Qwen2-VL refuses an aspect ratio of 200 and more; stay clear of it after rounding


def open_image(source: Path | str | bytes | Image.Image, *, max_pixels: int = 64_000_000) -> Image.Image:
    """Decode to RGB: EXIF orientation applied, first frame, transparency on white, 16-bit scaled to 8.

    Args:
        source: a path, the file's bytes, or an image (returned as RGB).
        max_pixels: checked against the header before any pixel is decoded (decompression bombs).
    Raises: ImageError with a short reason.
    """
    if isinstance(source, Image.Image):
        return _decode(source, max_pixels, None)
    name = None if isinstance(source, bytes) else source
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")
    except FileNotFoundError:
        raise ImageError("file not found", name) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ImageError(f"cannot be opened ({getattr(error, 'strerror', None) or error})", name) from None
    with stream:
        return _decode(stream, max_pixels, name)


def _decode(source: IO[bytes] | Image.Image, max_pixels: int, name: Path | str | None) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata and bombs; both are decided here
        try:
            image = source if isinstance(source, Image.Image) else Image.open(source, formats=_FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{width}×{height} pixels, more than the limit of {max_pixels}", name)
            if not width * height:
                raise ImageError(f"{width}×{height} pixels, there is nothing to see", name)
            image.load()
            thin = max(width, height) > _MAX_ASPECT * min(width, height)
            return _pad_to_aspect(_to_rgb(image)) if thin else _to_rgb(image)
        except UnidentifiedImageError:
            raise ImageError("not an image of a known format", name) from None
        except ImageError:
            raise
        except Image.DecompressionBombError:
            raise ImageError(f"far more pixels than the limit of {max_pixels}", name) from None
        except Exception as error:  # on damaged files Pillow raises about anything: struct.error, TypeError, …
            raise ImageError(
                f"damaged or truncated ({str(error).splitlines()[0] if str(error) else type(error).__name__})", name
            ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit scans use the whole range; small values in an "I" image are 8-bit ones in a wide type
        scale = 255.0 if values.max(initial=0) <= 255 else 65535.0
        return Image.fromarray((values.clip(0, scale) * (255.0 / scale)).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _pad_to_aspect(image: Image.Image) -> Image.Image:
    """Centre a hair-thin image on white so that its aspect ratio is one a vision tower accepts."""
    width, height = image.size
    least = -(-max(width, height) // _MAX_ASPECT)
    canvas = Image.new("RGB", (max(width, least), max(height, least)), "white")
    canvas.paste(image, ((canvas.width - width) // 2, (canvas.height - height) // 2))
    return canvas
