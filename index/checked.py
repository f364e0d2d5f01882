"""Dataclasses read from JSON that a stranger may have written: every value is of the type that is annotated."""

import math
from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints, is_typeddict

T = TypeVar("T", bound="Checked")

UNFIT = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading such JSON may raise."""
_DEEPEST = 8
"""Levels of lists and objects within a value of any type."""
_LARGEST = 2**63 - 1


class Checked:
    """A dataclass whose values are of the types that its annotations say, at any depth: ValueError for others."""

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            _check_type(name, getattr(self, name), kind)


_kinds: Callable[[Any], dict[str, Any]] = cache(get_type_hints)  # which takes longer than checking


def record_of(cls: type[T], content: dict[str, Any]) -> T:
    """The dataclass of these values. Raises ValueError for keys that it lacks or does not have."""
    known, given = set(_kinds(cls)), set(content)
    if known != given:
        raise ValueError(f"keys missing: {sorted(known - given)}, unknown: {sorted(given - known)}")
    return cls(**content)


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError, naming the place, for a value, as JSON has it, that is not of the annotated type.

    Of a TypedDict, keys that it does not name are left alone: a later version may have written them.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        _check_depth(name, value)
    elif is_typeddict(kind):
        _check_instance(name, value, dict)
        for key, part in _kinds(kind).items():
            if key in value:
                _check_type(f"{name}.{key}", value[key], part)
            elif key in kind.__required_keys__:
                raise ValueError(f"{name} lacks {key!r}")
    elif origin is UnionType:
        fitting = [part for part in parts if isinstance(value, get_origin(part) or part)]
        _check_type(name, value, (fitting or parts)[0])
    elif origin is Literal:
        if value not in parts:
            raise ValueError(f"{name} must be one of {', '.join(map(str, parts))}, got {value!r}")
    elif origin in (list, tuple):
        _check_instance(name, value, (list, tuple))
        for i, one in enumerate(value):
            _check_type(f"{name}[{i}]", one, parts[0])
    elif origin is dict:
        _check_instance(name, value, dict)
        for key, one in value.items():
            _check_type(f"{name}.{key}", one, parts[1])
    elif kind is float:
        _check_instance(name, value, (int, float))
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value!r}")
    else:
        _check_instance(name, value, kind)
        if kind is int and abs(value) > _LARGEST:
            raise ValueError(f"{name} must be at most {_LARGEST}")


def _check_instance(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ValueError(f"{name} must be of type {' or '.join(k.__name__ for k in kinds)}, got {value!r:.60}")


def _check_depth(name: str, value: Any, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"{name} is nested more than {_DEEPEST} deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for one in inner:
        _check_depth(name, one, depth + 1)
