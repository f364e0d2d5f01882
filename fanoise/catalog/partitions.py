"""Hive partitions: what the folders of Parquet files say of their rows, as in `year=2024/part-0.parquet`."""

import re
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_NULL = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"-?[0-9]+")


def partition_fields(files: Sequence[Path], root: Path) -> list[dict[str, Any]]:
    """Of each file, the fields that its folders below `root` name, with the values that `pyarrow.dataset` gives them.

    All files have the same fields, None where their folders do not say. Whole numbers are such where all values of a
    field are.
    """
    found = [dict(_named(file.relative_to(root).parts[:-1])) for file in files]
    names = list(dict.fromkeys(name for fields in found for name in fields))
    columns = {name: _typed([fields.get(name) for fields in found]) for name in names}
    return [{name: columns[name][number] for name in names} for number in range(len(files))]


def _named(folders: Iterable[str]) -> Iterable[tuple[str, str | None]]:
    for folder in folders:
        name, equals, value = folder.partition("=")
        if name and equals:
            yield urllib.parse.unquote(name), None if value in ("", _NULL) else urllib.parse.unquote(value)


def _typed(values: list[str | None]) -> list[Any]:
    given = [value for value in values if value is not None]
    if all(_WHOLE.fullmatch(value) and -(2**31) <= int(value) < 2**31 for value in given):
        return [None if value is None else int(value) for value in values]
    return list(values)
