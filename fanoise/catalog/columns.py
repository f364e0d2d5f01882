"""Which column is what: rows in, items out."""

import functools
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanoise.catalog.cells import ImageCells, is_empty
from fanoise.catalog.item import Item
from fanoise.catalog.rejects import Fault, Rejects
from fanoise.catalog.tables import listed
from fanoise.errors import CatalogError
from fanoise.values import is_missing, spelled

ID, TEXT, IMAGE, ITEM = "id", "text", "image", "item"
"""Names of columns and, the last one, of the field that says which item one of several images belongs to."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """`text`, `images` and `vectors` as in `read_catalog`; several images make one item for each."""

    text: str | None = None
    images: tuple[str, ...] = (IMAGE,)
    vectors: str | None = None

    @classmethod
    def of(cls, text: str | None, image: str | Sequence[str], vectors: str | None = None) -> "Columns":
        images = (image,) if isinstance(image, str) else tuple(image)
        if not images or len(set(images)) != len(images):
            raise CatalogError(f"image columns {', '.join(images) or '(none)'}: name at least one, and each once")
        return cls(text=text, images=images, vectors=vectors)

    def fault(self, columns: Collection[str]) -> str | None:
        """What is to be said where a column that was asked for is not among `columns`. Raises: as `number_rows`."""
        wanted = [] if self.text is None else list(self._texts())
        if self.images != (IMAGE,):
            wanted += self.images
        if self.vectors is not None:
            wanted.append(self.vectors)
        if (unknown := next((name for name in wanted if name not in columns), None)) is not None:
            return f"unknown column {unknown!r}; the columns are {listed(list(columns))}"
        if self.text is None and TEXT not in columns and not set(self.images) & set(columns):
            return (
                f"no column 'image' or 'text'; name yours (--image COLUMN, --text COLUMN), "
                f"the columns are {listed(list(columns))}"
            )
        return None

    @property
    def number_rows(self) -> str | None:
        """The column that may come as NumPy rows: that of the vectors, unless more is made of it.

        Raises: CatalogError for a template of the text that is none.
        """
        return None if self.vectors in (ID, *self.images, *self._texts()) else self.vectors

    def items(
        self, path: str | Path, number: int, row: Mapping[str, Any], cells: ImageCells, reject: Rejects
    ) -> Iterator[Item]:
        """The items of one row: one, or as many as it has images. What is wrong with it goes to `reject`."""
        id = str(number) if is_missing(row.get(ID)) else spelled(row[ID])
        place = f"{path}: row {number}"
        fields = {
            key: value
            for key, value in row.items()
            if key != ID and key not in self.images and not (isinstance(value, _CONTAINERS) and _is_binary(value))
        }
        images = self._images(row)
        several = len(self.images) > 1 or any(isinstance(row.get(name), list) for name in self.images)
        try:
            text = self._text(row)
            if text is None and not images:
                raise Fault(None, "neither a text nor an image; fill one of them or drop the row")
        except Fault as fault:
            reject(id, path, fault.reason, place=place)
            return
        if not several:
            images = images or {0: None}
        elif not images:
            yield Item(id=id, text=text, fields={**fields, ITEM: id})
        for position, cell in images.items():
            own_id = f"{id}#{position}" if several else id
            try:
                image = None if cell is None else cells.read(cell, place)
            except Fault as fault:
                name = path if fault.source is None else fault.source
                reject(own_id, name, fault.reason, place=place if name is path else f"{place}: image {name!r}")
                continue
            yield Item(id=own_id, text=text, image=image, fields={**fields, ITEM: id} if several else fields)

    def _texts(self) -> tuple[str, ...]:
        """The columns that the text is made of. Raises: as `number_rows`."""
        if self.text is None:
            return (TEXT,)
        try:
            return _template_columns(self.text) or (self.text,)
        except ValueError as error:
            raise CatalogError(
                f"text template {self.text!r}: {error}; write it like '{{title}}. {{description}}'"
            ) from None

    def _images(self, row: Mapping[str, Any]) -> dict[int, Any]:
        """Image cells that are not empty, by their place among all of the row's."""
        cells: list[Any] = []
        for name in self.images:
            cell = row.get(name)
            cells += cell if isinstance(cell, list) else [cell]
        return {position: cell for position, cell in enumerate(cells) if not is_empty(cell)}

    def _text(self, row: Mapping[str, Any]) -> str | None:
        if self.text is not None and (names := _template_columns(self.text)):
            if all(is_missing(row.get(name)) for name in names):
                return None
            parts = string.Formatter().parse(self.text)
            # str.format would also follow attributes ("{title.__class__}"); looking up whole names cannot
            return "".join(literal + ("" if name is None else _word(row, name)) for literal, name, _, _ in parts)
        return _word(row, TEXT if self.text is None else self.text) or None


@functools.lru_cache
def _template_columns(template: str) -> tuple[str, ...]:
    parts = list(string.Formatter().parse(template))
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError("a column's name may not be followed by ':' or '!'")
    return tuple(name for _, name, _, _ in parts if name is not None)


def _word(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, str):
        return value
    if is_missing(value):
        return ""
    if isinstance(value, list) and not any(isinstance(member, _CONTAINERS) for member in value):
        return ", ".join(str(member) for member in value if not is_missing(member))  # tags, colours, captions
    if isinstance(value, _CONTAINERS):
        raise Fault(None, f"column {name!r} is a {type(value).__name__}, must be a text, number or list of them")
    return str(value)


_CONTAINERS = (bytes, dict, list)
_PLAIN = (str, int, float)


def _is_binary(value: Any) -> bool:
    """Whether a value is an image or another binary file: none of that is carried along as a field."""
    if isinstance(value, dict):
        return value.keys() == {"bytes", "path"} or any(map(_is_binary, value.values()))
    if isinstance(value, list):
        # bytes come from Arrow only, whose lists hold one type: a vector's numbers need not be looked at one by one
        return not (value and isinstance(value[0], _PLAIN)) and any(map(_is_binary, value))
    return isinstance(value, bytes)
