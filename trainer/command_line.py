"""The trainer's options, on top of jsonargparse: what it refuses in its own terms is said here in the user's.

Three things it lacks: an unknown setting names the nearest known one, a switch needs no value (`--dry_run`), and a list
needs no brackets (`--data.pairs a.csv b.csv`, as a shell expands `*.csv`).
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from fanoise.errors import ConfigError
from trainer.config import RunConfig

_OTHERS = ("help", "config", "print_config")
_LAUNCHERS = ("local_rank", "local-rank")
"""Given by DeepSpeed's launcher, which puts the same into the environment."""
_EPILOG = "A list takes several values (--data.pairs a.csv b.csv), a switch none (--dry_run). See docs/training.md."
_WRONG_TYPE = re.compile(
    r'Parser key "(?P<name>[\w.]+)".*?(?:Got|Given) value: (?P<value>.*?)\s*(?:- Expected|$)', re.DOTALL
)
_OPTION = re.compile(r"--|-[A-Za-z]")
_MISSING = re.compile(r"arguments are required: (.*)")


def parse(argv: Sequence[str]) -> RunConfig:
    """The run that these arguments ask for, `--help` and `--print_config` aside, which end the process.

    Raises: ConfigError naming setting, value, rule and remedy.
    """
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m trainer", description=RunConfig.__doc__, epilog=_EPILOG, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="Recipe (YAML); options after it override it.")
    parser.add_class_arguments(RunConfig, as_group=False)
    known = _settings(RunConfig)
    try:
        values = parser.parse_args(_plain_arguments(argv, known))
        values.pop("config", None)
        return RunConfig(**vars(parser.instantiate(values)))
    except (ArgumentError, ConfigError) as error:
        raise ConfigError(_explained(str(error), known)) from None


def _settings(config: type, prefix: str = "") -> dict[str, Any]:
    """Type of every setting by its dotted name; a group of settings has its dataclass."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(config).items():
        found[prefix + name] = kind
        if is_dataclass(kind) and isinstance(kind, type):
            found |= _settings(kind, f"{prefix}{name}.")
    return found


def _plain_arguments(argv: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """`argv` as jsonargparse wants it: each option with one value, a list in brackets.

    Raises: ConfigError for an unknown setting, here or in a recipe, and for a value without an option.
    """
    plain, rest = [], list(argv)
    while rest:
        option = rest.pop(0)
        if not option.startswith("-"):
            hint = f"--config {option}" if option.endswith((".yaml", ".yml")) else "--setting value"
            raise ConfigError(f"{option!r} belongs to no option; write {hint}")
        name, equals, value = option.removeprefix("--").partition("=")
        values = [value] if equals else []
        while not equals and rest and not _OPTION.match(rest[0]):
            values.append(rest.pop(0))
        if name == "config":
            _check_recipe(values[0] if values else "", known)
        if name in _LAUNCHERS:
            continue
        if option in ("-h", "--help") or name in _OTHERS:
            plain += [option] if equals else [option, *values]
            continue
        setting = name.removesuffix("+")
        if not option.startswith("--") or setting not in known:
            raise ConfigError(_unknown(option.partition("=")[0], setting, known))
        kind = known[setting]
        if kind is bool and not values:
            values = ["true"]
        if _item_type(kind) is not None and values and name == setting and values != ["null"]:
            values = [_as_list(values, _item_type(kind))]
        if len(values) != 1:
            given = f"has {len(values)} values: {' '.join(values)}" if values else "has no value"
            raise ConfigError(f"{setting} {given}; it must be {_rule(kind)}")
        plain.append(f"--{name}={values[0]}")
    return plain


def _as_list(values: Sequence[str], item: Any) -> str:
    if values[0].startswith("["):
        return " ".join(values)
    return f"[{', '.join(values)}]" if item in (int, float) else json.dumps(values)


def _check_recipe(path: str, known: Mapping[str, Any]) -> None:
    if not Path(path).is_file():
        there = ", ".join(sorted(recipe.name for recipe in (Path(__file__).parent / "recipes").glob("*.yaml")))
        raise ConfigError(f"--config {path}: no such file; give a recipe, of trainer/recipes there are {there}")
    try:
        recipe = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML ({error}); see trainer/recipes for examples") from None
    if not isinstance(recipe, dict):
        raise ConfigError(f"--config {path}: must hold settings by name, as trainer/recipes do")
    for name in _names(recipe, known):
        if name not in known:
            raise ConfigError(f"--config {path}: {_unknown(name, name, known)}")


def _names(recipe: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in recipe.items():
        name = f"{prefix}{key}"
        found.append(name)
        if isinstance(value, dict) and name in known:
            found += _names(value, known, f"{name}.")
    return found


def _unknown(written: str, name: str, known: Mapping[str, Any]) -> str:
    leaves = [setting for setting in known if setting.rpartition(".")[2] == name.rpartition(".")[2]]
    near = leaves or difflib.get_close_matches(name, known, n=1)
    ask = f"did you mean {' or '.join(near)}?" if near else "--help lists them all"
    return f"unknown setting {written!r}; {ask}"


def _explained(message: str, known: Mapping[str, Any]) -> str:
    if (found := _WRONG_TYPE.search(message)) and found["name"] in known:
        return f"{found['name']} must be {_rule(known[found['name']])}, got {found['value'].strip()}"
    if found := _MISSING.search(message):
        return f"{found[1]} must be given, as --setting value or in a recipe (--config trainer/recipes/demo.yaml)"
    return message


def _item_type(kind: Any) -> Any:
    """Type of a list's items; None for what is no list."""
    lists = [part for part in _parts(kind) if get_origin(part) is list]
    return get_args(lists[0])[0] if lists else None


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _rule(kind: Any) -> str:
    """What a value of this type looks like, for a person."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    said = []
    for part in _parts(kind):
        if part is NoneType:
            said.append("null")
        elif get_origin(part) is Literal:
            said.append(", ".join(map(str, get_args(part))))
        elif get_origin(part) is list:
            said.append(f"a list, [FIRST, ...], each {_rule(get_args(part)[0])}")
        else:
            said.append(names.get(part, "a group of settings"))
    text = " or ".join(said)
    return f"one of {text}" if "," in text and "list" not in text else text
