"""PDF documents: a page is an image, drawn by PDFium when it is opened."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fanoise.errors import CatalogError, ImageError
from fanoise.images import open_regular

PDF_SUFFIX = ".pdf"
_DPI = 144  # an A4 page is 1190×1684 then: small print stays legible
_MAX_PIXELS, _MAX_SIDE = 8_000_000, 20_000  # a poster is drawn smaller than at _DPI
_MAX_PAGES = 50_000  # a damaged or hostile file may claim millions that are not there

_LOCK = threading.Lock()  # PDFium may run in one thread of a process only
if hasattr(os, "register_at_fork"):  # a child must not inherit a lock that no thread of its own will release
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


@dataclass(frozen=True)
class PdfPage:
    """One page of a PDF document; `number` counts from 1."""

    path: Path
    number: int

    def read(self) -> Image.Image:
        """Draw the page on white at 144 dots an inch, or fewer if that would be more than 8 million pixels.

        Raises: ImageError.
        """
        with _document(self.path) as document:
            if not 1 <= self.number <= len(document):
                raise ImageError(f"the document has {len(document)} pages", self)
            try:
                if document.get_formtype():  # what was filled in is drawn only then
                    document.init_forms()
                page = document[self.number - 1]
                # closed here, under the lock; the collector would close it whenever
                with closing(page.render(scale=_scale(*page.get_size()))) as bitmap:
                    return bitmap.to_pil().convert("RGB")
            except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:  # PdfiumError is a RuntimeError
                raise ImageError(f"page cannot be drawn ({error})", self) from None

    def __str__(self) -> str:
        return f"{self.path}#{self.number}"


def count_pages(path: Path) -> int:
    """How many pages a document has. Raises ImageError when it cannot be read, CatalogError without pypdfium2."""
    with _document(path) as document:
        pages = len(document)
    if not 0 < pages <= _MAX_PAGES:
        raise ImageError(f"has {pages} pages, must have 1 to {_MAX_PAGES}", path)
    return pages


def _scale(width: float, height: float) -> float:
    """Pixels per point (1/72 inch) for a page of this size in points."""
    return min(_DPI / 72, math.sqrt(_MAX_PIXELS / (width * height)), _MAX_SIDE / max(width, height))


@contextmanager
def _document(path: Path) -> Iterator[Any]:
    try:
        import pypdfium2
    except ImportError:
        raise CatalogError(f"{path}: reading PDFs needs the package pypdfium2; pip install pypdfium2") from None
    try:
        with _LOCK, open_regular(path) as file, closing(pypdfium2.PdfDocument(file)) as document:
            yield document
    except pypdfium2.PdfiumError as error:
        if error.err_code in (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY):
            raise ImageError("encrypted PDF; save it without the password", path) from None
        raise ImageError("damaged, or not a PDF", path) from None
    except FileNotFoundError:
        raise ImageError("file not found", path) from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be opened ({getattr(error, 'strerror', None) or error})", path) from None
