"""`where={"category": "shoes"}`: which rows match, and how FAISS is told to look at no others."""

from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from fanoise.errors import InputError
from index.items import Items


class FieldFilter:
    """Equality on fields, compared as text. A field is turned into codes once, when first asked for."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._codes: dict[str, tuple[dict[str, int], np.ndarray]] = {}

    def mask(self, where: Mapping[str, Any]) -> np.ndarray:
        """bool [N]: rows whose fields equal every value in `where`. Raises InputError for an unknown field."""
        mask = np.ones(len(self._items), dtype=bool)
        for name, value in where.items():
            if name not in self._items.field_names:
                known = ", ".join(self._items.field_names) or "none"
                raise InputError(f"where: unknown field {name!r}; the fields of this index are: {known}")
            code_of, codes = self._field(name)
            # -2 is no code, so an unknown value matches nothing; a missing value is -1 and never matches either
            mask &= codes == code_of.get(self._wanted(name, value), -2)
        return mask

    def _field(self, name: str) -> tuple[dict[str, int], np.ndarray]:
        if name not in self._codes:  # two threads may both do this once, with the same result
            assert self._items.fields is not None
            code_of: dict[str, int] = {}
            values = self._items.fields.field(name).to_pylist()
            codes = [-1 if value is None else code_of.setdefault(_as_text(value), len(code_of)) for value in values]
            self._codes[name] = (code_of, np.array(codes, dtype=np.int64))
        return self._codes[name]

    def _wanted(self, name: str, value: Any) -> str:
        """`value` in the spelling of the field's type: 20 and 20.0 are one price, true and True one flag."""
        assert self._items.fields is not None
        kind, text = self._items.fields.type.field(name).type, _as_text(value)
        if pa.types.is_boolean(kind):
            return text.capitalize()
        if pa.types.is_floating(kind):
            try:
                return _as_text(float(text))
            except ValueError:
                return text
        return text


def can_filter(index: faiss.Index) -> bool:
    """Whether FAISS can keep a search of this type to chosen rows: PQ and fast-scan cannot without IVF."""
    if isinstance(index, faiss.IndexPreTransform):
        return can_filter(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexRefine):
        return can_filter(faiss.downcast_index(index.base_index))
    return not isinstance(index, (faiss.IndexPQ, faiss.IndexFastScan))


def search_parameters(index: faiss.Index, mask: np.ndarray) -> faiss.SearchParameters:
    """FAISS search parameters that keep `index` to the rows of `mask`, all else as stored in the index."""
    return _parameters(index, faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little")))


def _parameters(index: faiss.Index, selector: faiss.IDSelector) -> faiss.SearchParameters:
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(faiss.downcast_index(index.index), selector)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(faiss.downcast_index(index.base_index), selector)
        return faiss.IndexRefineSearchParameters(base_index_params=inner, k_factor=index.k_factor)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
    return faiss.SearchParameters(sel=selector)


def _as_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
