import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.examples import Example, read_examples
from app.ui.examples import render_examples
from fanoise.errors import InputError


def write(folder: Path, content: Any) -> Path:
    (folder / "mug.png").write_bytes(b"")
    (folder / "examples.json").write_text(json.dumps(content))
    return folder / "examples.json"


def test_examples_are_read_for_the_catalogues_of_the_page(tmp_path: Path) -> None:
    entries = [{"text": " red mug "}, {"image": "mug.png", "text": "in green", "label": "this"}]
    file = write(tmp_path, {"products": entries, "elsewhere": [{"text": "x"}]})
    assert read_examples(file, ["products", "documents"]) == {
        "products": [Example(text="red mug"), Example(text="in green", image=tmp_path / "mug.png", label="this")],
        "documents": [],
    }


def test_catalogues_without_examples_are_told(tmp_path: Path) -> None:
    file = write(tmp_path, {"products": [{"text": "x"}], "documents": []})
    notes: list[str] = []
    read_examples(file, ["products", "receipts", "shop"], note=notes.append)
    assert notes == [f"no examples for 'receipts', 'shop'; {file} has: products, documents"]
    read_examples(file, ["products", "documents"], note=notes.append)
    assert len(notes) == 1


def test_buttons_that_would_say_the_same_are_numbered() -> None:
    shown = [Example(text="red", label="a photo"), Example(text="b"), Example(text="blue", label="a photo")]
    html = render_examples(shown)
    assert re.findall(r"<span>(.*?)</span>", html) == ["a photo (1)", "b", "a photo (2)"]
    assert re.findall(r'data-example="(\d)"', html) == ["0", "1", "2"]


def test_a_bare_list_serves_a_single_catalogue(tmp_path: Path) -> None:
    file = write(tmp_path, [{"text": "red"}])
    assert read_examples(file, ["products"]) == {"products": [Example(text="red")]}
    with pytest.raises(InputError, match="expected"):
        read_examples(file, ["products", "documents"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text": ""}, "products, entry 2: needs a text, an image or both"),
        ({"query": "red"}, "entry 2: unknown key 'query'; there are: text, image, label"),
        ({"text": 3}, "entry 2: text must be a string, got int"),
        ({"image": "gone.png"}, "entry 2: image .*gone.png does not exist"),
        ("red", "entry 2: expected an object with text, image or both, got str"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_examples(write(tmp_path, {"products": [{"text": "fine"}, entry]}), ["products"])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json does not exist"):
        read_examples(tmp_path / "none.json", ["products"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken.json cannot be read as JSON"):
        read_examples(tmp_path / "broken.json", ["products"])
