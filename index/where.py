"""The command-line form of a filter: `--where FIELD=VALUE`, repeated."""

from collections.abc import Sequence

from fanoise.errors import InputError


def parse_where(pairs: Sequence[str]) -> dict[str, str]:
    """`["category=shoes"]` as a mapping; InputError for a pair without `=`, an empty side, or a field given twice."""
    where: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not (separator and name and value):
            raise InputError(f"--where {pair!r}: must be FIELD=VALUE, as in --where category=shoes")
        if name in where:
            raise InputError(f"--where {name} is given twice ({where[name]!r} and {value!r}); give each field once")
        where[name] = value
    return where
