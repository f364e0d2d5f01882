"""Pair files that lie on the Hugging Face hub."""

import re
from pathlib import Path

from fanoise.errors import CatalogError

_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


def is_on_hub(source: str) -> bool:
    return source.startswith("hf://")


def fetch(source: str) -> Path:
    """The local copy of `hf://datasets/OWNER/NAME[@REVISION]/FILE`, fetched into the hub's cache if it is not there.

    Raises: CatalogError when the address is malformed, or the file cannot be had.
    """
    address = _ADDRESS.fullmatch(source)
    if address is None:
        raise CatalogError(f"{source}: not an address on the hub; write hf://datasets/OWNER/NAME/FILE")
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(address["repo"], address["file"], repo_type="dataset", revision=address["revision"])
        )
    except Exception as error:  # a dozen unrelated classes: no such file, no access, offline, a broken connection
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CatalogError(
            f"{source}: cannot be fetched ({reason.strip().rstrip('.')}); check the address and the login, or fetch "
            "the file yourself and give its path"
        ) from None
