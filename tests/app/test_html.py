from html import unescape
from pathlib import Path

import pytest

from app.ui.html import escape, file_url


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "a & b", "\"'><img src=x>", "${1+1} {{x}} `y`", "größe 🙂"]
)
def test_escaped_text_reads_the_same_and_marks_nothing_up(text: str) -> None:
    escaped = escape(text)
    assert unescape(escaped) == text
    assert not set(escaped) & set("<>\"'{}$`")


def test_control_characters_are_dropped() -> None:
    assert escape("a\x00b\x1b[31m\u202ec\nd") == "ab[31mc\nd"


def test_file_addresses_are_quoted() -> None:
    assert file_url(Path("/data/a b#c?/d%.jpg")) == "gradio_api/file=/data/a%20b%23c%3F/d%25.jpg"
