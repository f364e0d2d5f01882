"""One name for many files: {000..012} and {a,b} as in a shell, *, ? and [] by what is there and not hidden."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from fanoise.errors import CatalogError

_MAX_COUNT = 1_000_000


def is_pattern(path: Path) -> bool:
    """Whether a path has braces or wildcards, and is not itself there."""
    return (_is_wild(str(path)) or "{" in str(path)) and not path.exists()


def pattern_root(path: Path) -> Path:
    """The deepest folder that all the files of a pattern lie in."""
    return Path(*itertools.takewhile(lambda part: not _is_wild(part) and "{" not in part, path.parent.parts))


def pattern_files(pattern: Path) -> list[Path]:
    """The files of a pattern, in the order of its braces, then of their names.

    Raises: CatalogError when nothing matches it, or a file that its braces name is missing.
    """
    files: list[Path] = []
    for name in _expand_braces(str(pattern)):
        path = Path(name)
        if path.is_file():
            files.append(path)
        elif found := _matches(path):
            files += found
        else:
            raise CatalogError(f"{pattern}: no such file: {name}")
    return files


def _matches(pattern: Path) -> list[Path]:
    root = pattern_root(pattern)
    found = (file for file in root.glob(str(pattern.relative_to(root))) if file.is_file())
    return sorted(file for file in found if not any(part[0] == "." for part in file.relative_to(root).parts))


def _is_wild(text: str) -> bool:
    return any(letter in text for letter in "*?[")


def _expand_braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    choices = match[1].split(",")
    if numbers := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", match[1]):
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < _MAX_COUNT:
            raise CatalogError(f"{pattern}: {match[0]} must count up, to fewer than {_MAX_COUNT} files")
        choices = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
