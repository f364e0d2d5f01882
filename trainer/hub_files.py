"""Pair files that lie on the Hugging Face hub."""

import re
from pathlib import Path
from typing import Any, NoReturn

from fanoise.errors import CatalogError

_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


def is_on_hub(source: str) -> bool:
    return source.startswith("hf://")


def fetch(source: str) -> Path:
    """The local copy of `hf://datasets/OWNER/NAME[@REVISION]/FILE`, fetched into the hub's cache if it is not there.

    Raises: CatalogError when the address is malformed, or the file cannot be had.
    """
    address = _address(source)
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(address["repo"], address["file"], repo_type="dataset", revision=address["revision"])
        )
    except Exception as error:  # a dozen unrelated classes: no such file, no access, offline, a broken connection
        _fail(source, "fetched", error)


def matching_on_hub(pattern: str) -> list[str]:
    """The addresses of the files that an address with `*`, `?`, `[...]` or `**` stands for, sorted.

    Hidden files are only matched by name, as on disk. Raises: CatalogError when the hub cannot be asked.
    """
    _address(pattern)
    from huggingface_hub import HfFileSystem

    try:
        found: Any = HfFileSystem().glob(pattern.removeprefix("hf://"), detail=True)
    except Exception as error:  # as in `fetch`
        _fail(pattern, "looked up", error)
    names = [name for name, entry in found.items() if entry["type"] == "file"]
    return sorted(f"hf://{name}" for name in names if "/." not in name or "/." in pattern)


def _address(source: str) -> re.Match[str]:
    address = _ADDRESS.fullmatch(source)
    if address is None:
        raise CatalogError(f"{source}: not an address on the hub; write hf://datasets/OWNER/NAME/FILE")
    return address


def _fail(source: str, what: str, error: Exception) -> NoReturn:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    raise CatalogError(
        f"{source}: cannot be {what} ({reason.strip().rstrip('.')}); check the address and the login, or fetch "
        "the file yourself and give its path"
    ) from None
