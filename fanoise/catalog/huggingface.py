"""Folders written by `save_to_disk` of Hugging Face datasets, read without that package.

Layout: a dataset is state.json (its files, in order), dataset_info.json (its features) and Arrow streams; a dict of
datasets is dataset_dict.json (its splits) and a folder for each.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fanoise.catalog.arrow import arrow_rows
from fanoise.catalog.tables import open_arrow
from fanoise.errors import CatalogError, one_line

_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def is_dataset(folder: Path) -> bool:
    return (folder / _DICT).is_file() or ((folder / _STATE).is_file() and (folder / _INFO).is_file())


def read_dataset(folder: Path, vectors: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of a dataset, or of all splits, which then are the field `split`. Class labels are names.

    Args:
        vectors: a column whose lists of numbers come as NumPy rows.
    Raises: CatalogError.
    """
    number = 0
    for split, part in _splits(folder):
        labels = _labels(part)
        for file in _files(part):
            for batch in _batches(file):
                for row in arrow_rows(batch, str(file), number + 1, vectors):
                    number += 1
                    for name, names in labels.items():
                        row[name] = _label(names, row.get(name))
                    yield number, row if split is None else {**row, "split": split}


def count_dataset_rows(folder: Path) -> int:
    """How many rows all splits have. Raises: CatalogError."""
    return sum(_count(file) for _, part in _splits(folder) for file in _files(part))


def _splits(folder: Path) -> list[tuple[str | None, Path]]:
    if not (folder / _DICT).is_file():
        return [(None, folder)]
    splits = _read_json(folder / _DICT).get("splits")
    if not isinstance(splits, list) or not splits:
        raise CatalogError(f"{folder / _DICT}: names no splits; save the dataset again")
    return [(split, folder / _plain_name(folder / _DICT, split)) for split in splits]


def _files(folder: Path) -> list[Path]:
    state = _read_json(folder / _STATE)
    if state.get("_indices_data_files"):
        raise CatalogError(f"{folder}: saved with an index of its rows by an old version of datasets; save it again")
    files = state.get("_data_files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise CatalogError(f"{folder / _STATE}: names no data files; save the dataset again")
    return [folder / _plain_name(folder / _STATE, file.get("filename")) for file in files]


def _plain_name(source: Path, name: object) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
        raise CatalogError(f"{source}: {name!r} is not the plain name of a file or folder beside it")
    return name


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with _readable(path), open_arrow(path) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            batch.validate(full=True)  # offsets in a damaged file could lead anywhere
            yield batch


def _count(path: Path) -> int:
    import pyarrow as pa

    # mapped, the stream's values stay on the disk
    with _readable(path), pa.memory_map(os.fsencode(path)) as file, pa.ipc.open_stream(file) as stream:
        return sum(len(batch) for batch in stream)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"{path}: not a readable Arrow stream ({one_line(error)})") from None


def _labels(folder: Path) -> dict[str, list[str]]:
    features = _read_json(folder / _INFO).get("features") or {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }


def _label(names: list[str], number: Any) -> Any:
    """The class's name; -1 is how datasets writes an unknown one."""
    if not isinstance(number, int):
        return number
    return names[number] if 0 <= number < len(names) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CatalogError(f"{path}: cannot be read ({one_line(error)}); save the dataset again") from None
    if not isinstance(content, dict):
        raise CatalogError(f"{path}: expected an object, got {type(content).__name__}; save the dataset again")
    return content
