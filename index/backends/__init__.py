"""The places where an index can lie: a folder of this machine with FAISS, or a Milvus collection."""

from pathlib import Path
from typing import TYPE_CHECKING

from index.backends.address import is_milvus

if TYPE_CHECKING:
    from index.backends.base import Backend


def open_backend(place: Path | str, *, verify: bool = True) -> "Backend":
    """Open an index folder, or a collection such as `milvus://host:19530/products` (see `index.backends.address`).

    Args:
        verify: False checks the sizes of a folder's files but not their checksums.
    Raises: InputError if there is no index; ArtifactError for one that is damaged, unfinished or out of reach.
    """
    if is_milvus(place):
        from index.backends.milvus import MilvusBackend

        return MilvusBackend.open(str(place))
    from index.opened import Index

    return Index.open(place, verify=verify)
