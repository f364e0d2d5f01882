"""The two named endpoints for programs. They return JSON: no HTML, no paths of this machine."""

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from app.service import ARMS, CATEGORY, Service
from app.ui.search import SEARCH_QUEUE
from fanoise.errors import FANoiseError, ImageError

MAX_IMAGE_BYTES = 20 * 2**20


def add_endpoints(service: Service) -> None:
    """Add `/search` and `/compare` to the open Blocks."""
    first = service.catalogs[0]

    def search(
        text: str = "", image: str = "", catalog: str = first, arm: str = "fanoise", k: int = 10, category: str = ""
    ) -> dict:
        """Search one index. `image` is base64 or a `data:` URL; `arm` is baseline or fanoise."""
        with _spoken_errors():
            return service.search(catalog, arm, text, _read_image(image), k, _where(category)).to_json()

    def compare(text: str = "", image: str = "", catalog: str = first, k: int = 10, category: str = "") -> dict:
        """Search both indices of a catalogue and say how the items moved."""
        with _spoken_errors():
            found = service.compare(catalog, text, _read_image(image), k, _where(category))
            answers = {"baseline": found.baseline, "fanoise": found.fanoise}
            moves = {arm: [{"kind": move.kind, "by": move.by} for move in found.moves[arm]] for arm in ARMS}
            return {arm: answer.to_json() for arm, answer in answers.items()} | {"moves": moves}

    for function, name in ((search, "search"), (compare, "compare")):
        gr.api(function, api_name=name, concurrency_id=SEARCH_QUEUE, concurrency_limit=1)


def _where(category: str) -> dict[str, str] | None:
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
