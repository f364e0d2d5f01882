"""Text into HTML, safely. Every string of a catalogue, report or query passes through `escape`."""

import html
import re
from pathlib import Path
from urllib.parse import quote

# Gradio renders HTML components through a template language; escaping its marks as well keeps a title such as
# "{{x}}" or "${x}" what it is, wherever in the pipeline templates are filled in.
_TEMPLATE_MARKS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})
# Control characters, lone surrogates, and the marks that make text run the other way in the rest of a page.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(value: object) -> str:
    """Safe as element content and inside a quoted attribute. Control characters are dropped."""
    return html.escape(_UNSAFE.sub("", str(value)), quote=True).translate(_TEMPLATE_MARKS)


def picture_url(digest: str) -> str:
    """The address of a picture by the SHA-256 of its thumbnail, see `app.ui.picture`, relative to the page."""
    return "picture/" + quote(digest, safe="")


def file_url(path: Path) -> str:
    """The address under which Gradio serves a file of an allowed folder, relative to the page."""
    return "gradio_api/file=" + quote(path.absolute().as_posix(), safe="/:")
