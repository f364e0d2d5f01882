"""The two named endpoints for programs. They return JSON: no HTML, no paths of this machine."""

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from app.service import ARMS, CATEGORY, Service
from app.ui.search import SEARCH_QUEUE
from fanoise.errors import FANoiseError, ImageError, InputError

MAX_IMAGE_BYTES = 20 * 2**20


def add_endpoints(service: Service) -> None:
    """Add `/search` and `/compare` to the open Blocks."""
    first = service.catalogs[0]

    def search(
        text: str = "", image: str = "", catalog: str = first, arm: str = "fanoise", k: int = 10, category: str = ""
    ) -> dict:
        """Search one index with a text, an image, or both.

        `text`: what is looked for, at most 2,000 characters.
        `image`: base64 or a `data:` URL of a JPEG, PNG, WebP, GIF, BMP or TIFF, at most 20 MB; above 40
            megapixels it is reduced, above 60 (JPEG: 110) refused.
        `catalog`: a catalogue of this page, the first unless given.
        `arm`: "baseline" or "fanoise", the index that answers.
        `k`: how many items, a whole number from 1 to 50.
        `category`: only items of this category; "" is all.
        The answer has `hits` and `latency_ms`; docs/api.md describes both.
        """
        with _spoken_errors():
            return service.search(catalog, arm, text, _read_image(image), k, _where(category)).to_json()

    def compare(text: str = "", image: str = "", catalog: str = first, k: int = 10, category: str = "") -> dict:
        """Search both indices of a catalogue and say how the items moved.

        The parameters are those of `/search`, without `arm`.
        The answer has an answer of `/search` for each of `baseline` and `fanoise`, and `moves`; see docs/api.md.
        """
        with _spoken_errors():
            found = service.compare(catalog, text, _read_image(image), k, _where(category))
            answers = {"baseline": found.baseline, "fanoise": found.fanoise}
            moves = {arm: [{"kind": move.kind, "by": move.by} for move in found.moves[arm]] for arm in ARMS}
            return {arm: answer.to_json() for arm, answer in answers.items()} | {"moves": moves}

    for function, name in ((search, "search"), (compare, "compare")):
        gr.api(function, api_name=name, concurrency_id=SEARCH_QUEUE, concurrency_limit=1)


def _where(category: str) -> dict[str, str] | None:
    if category is not None and not isinstance(category, str):
        raise InputError(f"category is {category!r}; it must be a string")
    return {CATEGORY: category} if category else None


def _read_image(image: str) -> bytes | None:
    if not image:
        return None
    if not isinstance(image, str):  # the client's handle_file() sends an object, which could name a file of the server
        raise ImageError("image must be base64 or a data: URL, not an uploaded file")
    encoded = image.partition(",")[2] if image.startswith("data:") else image
    if len(encoded) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise ImageError(f"larger than {MAX_IMAGE_BYTES // 2**20} MB")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("image must be base64 or a data: URL") from None


@contextmanager
def _spoken_errors() -> Iterator[None]:
    """Our errors reach the caller word for word; anything else stays in the server's log."""
    try:
        yield
    except FANoiseError as error:
        raise gr.Error(str(error), print_exception=False) from None
