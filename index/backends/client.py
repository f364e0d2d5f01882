"""A connection to Milvus whose failures are one line that names the address."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fanoise.errors import ArtifactError, InputError
from index.backends.address import TOKEN_VARIABLE, Address

if TYPE_CHECKING:
    from pymilvus import MilvusClient

TIMEOUT_S = 30.0
"""For a search or another call that is answered at once."""
_CONNECT_S = 10.0
_RARE_PINGS = {"grpc.keepalive_time_ms": 2**31 - 1, "grpc.keepalive_permit_without_calls": 0}
"""pymilvus pings every ten seconds. The server in Milvus Lite allows one in five minutes, and drops the connection."""
INSTALL = "pip install -r requirements-milvus.txt"


def connect(address: Address) -> "MilvusClient":
    """Connect, with the token in the environment if there is one. Raises InputError without pymilvus, ArtifactError."""
    if importlib.util.find_spec("pymilvus") is None:
        raise InputError(f"{address} needs the package pymilvus, which is not installed; {INSTALL}")
    if address.is_file and importlib.util.find_spec("milvus_lite") is None:
        raise InputError(f"{address} needs the package milvus-lite, which is not installed; {INSTALL}")
    from pymilvus import MilvusClient

    for name in ("pymilvus", "milvus_lite"):  # they log a traceback for each error that they raise
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    token = os.environ.get(TOKEN_VARIABLE, "")
    with milvus_errors(address):
        options = {"grpc_options": _RARE_PINGS} if address.is_file else {}
        return MilvusClient(address.server, token=token, db_name=address.database, timeout=_CONNECT_S, **options)


@contextmanager
def milvus_errors(address: Address) -> Iterator[None]:
    """Turn what pymilvus and gRPC raise into an ArtifactError of one line."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        reason = getattr(error, "message", "") or str(error)
        hidden = reason.replace(os.environ.get(TOKEN_VARIABLE) or "\0", "…")
        raise ArtifactError(f"{address}: {' '.join(hidden.split())[:500]}; {_remedy(address, reason)}") from None


def _remedy(address: Address, reason: str) -> str:
    lowered = reason.lower()
    if "auth" in lowered or "permission" in lowered:
        return f"set {TOKEN_VARIABLE}=user:password in the environment"
    if "no space" in lowered or "errno 28" in lowered:
        return "make room and run the same command again"
    if not address.is_file:
        return f"look whether Milvus runs at {address.server}, or try again"
    return "look whether another process has the file open" if "lock" in lowered or "open" in lowered else "try again"
