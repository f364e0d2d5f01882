"""Example queries shown under the search box: a JSON file, checked before the page opens."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanoise.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query to click: a text, a photo, or both."""

    text: str = ""
    image: Path | None = None
    label: str = ""
    """What the button says; the text if empty."""


def read_examples(
    path: str | Path, catalogs: Sequence[str], *, note: Callable[[str], None] = lambda message: None
) -> dict[str, list[Example]]:
    """Read `{"products": [{"text": "red mug"}, {"image": "shoe.jpg", "text": "in green", "label": "…"}], …}`.

    Image paths are relative to the file. Catalogues that are not on the page are left out, so that one file can
    serve several pages; those of the page that the file does not name are told to `note`. With a single catalogue the
    file may be the bare list.
    Raises: InputError naming file, catalogue and number of the entry.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"examples file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"examples file {path} cannot be read as JSON: {error}") from None
    if isinstance(content, list) and len(catalogs) == 1:
        content = {catalogs[0]: content}
    if not isinstance(content, Mapping):
        raise InputError(f'examples file {path}: expected {{"catalogue": [{{"text": …}}, …]}}')
    missing = [repr(catalog) for catalog in catalogs if catalog not in content]
    if missing:
        note(f"no examples for {', '.join(missing)}; {path} has: {', '.join(map(str, content)) or 'none'}")
    examples: dict[str, list[Example]] = {}
    for catalog in catalogs:
        entries = content.get(catalog, [])
        if not isinstance(entries, list):
            raise InputError(f"examples file {path}: {catalog}: expected a list, got {type(entries).__name__}")
        examples[catalog] = [
            _read_example(f"examples file {path}: {catalog}, entry {number}", entry, path.parent)
            for number, entry in enumerate(entries, start=1)
        ]
    return examples


def _read_example(where: str, entry: Any, folder: Path) -> Example:
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: expected an object with text, image or both, got {type(entry).__name__}")
    unknown = sorted(set(entry) - {"text", "image", "label"})
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; there are: text, image, label")
    values = {key: entry.get(key) or "" for key in ("text", "image", "label")}
    for key, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: {key} must be a string, got {type(value).__name__}")
    if not values["text"].strip() and not values["image"]:
        raise InputError(f"{where}: needs a text, an image or both")
    image = (folder / values["image"]).absolute() if values["image"] else None
    if image is not None and not image.is_file():
        raise InputError(f"{where}: image {image} does not exist")
    return Example(text=values["text"].strip(), image=image, label=values["label"].strip())
