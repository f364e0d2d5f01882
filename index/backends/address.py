"""The address of a Milvus collection.

    milvus://HOST[:19530]/[DATABASE/]COLLECTION           a server or a cluster
    milvus+https://HOST[:443]/[DATABASE/]COLLECTION       the same over TLS
    milvus+file:PATH.db/COLLECTION                        Milvus Lite, in a file of this machine

`?thumbnails=FOLDER` at the end names the index folder, or a copy of it, whose `thumbnails` are shown. `export-milvus`
also takes the server alone: `http://HOST:19530`, `https://HOST` or `PATH.db`. A user, password or token is no part of
an address: it comes from the environment variable MILVUS_TOKEN.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from fanoise.errors import InputError

TOKEN_VARIABLE = "MILVUS_TOKEN"
_SCHEMES = {"milvus": "http", "milvus+https": "https", "http": "http", "https": "https"}
_PORTS = {"http": 19530, "https": 443}
_FILE = "milvus+file:"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
"""Milvus allows no other names of collections and databases."""
_FORMS = "milvus://HOST:19530/COLLECTION, milvus+https://HOST/COLLECTION or milvus+file:PATH.db/COLLECTION"


@dataclass(frozen=True)
class Address:
    server: str
    """What pymilvus connects to: `http://host:port`, `https://host:port`, or the path of a file."""
    collection: str
    database: str = ""
    thumbnails: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is Milvus Lite."""
        return "://" not in self.server

    @property
    def folder(self) -> Path:
        """Where relative references of the collection start: the folder of the file; for a server, there are none."""
        return Path(self.server).absolute().parent if self.is_file else Path("/")

    def __str__(self) -> str:
        if self.is_file:
            place = f"{_FILE}{quote(self.server)}"
        else:
            scheme, _, host = self.server.partition("://")
            place = f"{'milvus' if scheme == 'http' else 'milvus+https'}://{host}"
        middle = f"/{self.database}" if self.database else ""
        return f"{place}{middle}/{self.collection}"


def is_milvus(place: Path | str) -> bool:
    return isinstance(place, str) and place.startswith(("milvus:", "milvus+"))


def parse_address(text: str, *, collection: str | None = None) -> Address:
    """Read an address, or with `collection` that of a server or a file alone.

    Raises: InputError for anything else, and for an address with a password in it, which is not repeated.
    """
    parts = urlsplit(text)
    is_file = text.startswith(_FILE) or (parts.scheme not in _SCHEMES and "://" not in text and not is_milvus(text))
    if not is_file and parts.scheme not in _SCHEMES:
        raise InputError(f"Milvus address {_without_secrets(text)!r}: must be {_FORMS}")
    if not is_file and "@" in text.partition("?thumbnails=")[0]:  # a password may have slashes
        raise InputError(
            f"Milvus address {_without_secrets(text)!r} holds a user or password; leave it out and set "
            f"{TOKEN_VARIABLE}=user:password in the environment"
        )
    try:
        server, names = _file(text) if is_file else _server(text)
    except ValueError as error:
        raise InputError(f"Milvus address {text!r}: {error}; must be {_FORMS}") from None
    takes_collection = is_milvus(text)
    if takes_collection and names:
        named = names.pop()
        if collection not in (None, named):
            raise InputError(f"Milvus address {text!r} names the collection {named!r}, but --collection {collection!r}")
        collection = named
    if not collection:
        raise InputError(f"Milvus address {text!r} names no collection; must be {_FORMS}, or come with --collection")
    if len(names) > (0 if is_file else 1):
        raise InputError(f"Milvus address {text!r} has too many parts; must be {_FORMS}")
    for what, name in (("collection", collection), *(("database", name) for name in names)):
        if not _NAME.fullmatch(name):
            raise InputError(
                f"Milvus {what} {name!r}: must be letters, digits and _, not begin with a digit, and have at most 255"
            )
    return Address(server, collection, names[0] if names else "", _thumbnails(text))


def _file(text: str) -> tuple[str, list[str]]:
    path = text.removeprefix(_FILE).partition("?")[0] if text.startswith(_FILE) else text
    path = unquote(path) if text.startswith(_FILE) else path
    path = re.sub(r"^//+", "/", path)  # file:///data/x.db is /data/x.db
    if path.endswith(".db"):
        return path, []
    file, _, name = path.rpartition("/")
    if not text.startswith(_FILE) or not file.endswith(".db"):
        raise ValueError("the name of a Milvus Lite file ends in .db")
    return file, [name]


def _server(text: str) -> tuple[str, list[str]]:
    parts = urlsplit(text)
    if not parts.hostname:
        raise ValueError("it names no host")
    scheme = _SCHEMES[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}:{parts.port or _PORTS[scheme]}", [part for part in parts.path.split("/") if part]


def _thumbnails(text: str) -> str | None:
    query = parse_qs(text.partition("?")[2], keep_blank_values=True) if is_milvus(text) else {}
    unknown = sorted(set(query) - {"thumbnails"})
    if unknown:
        raise InputError(f"Milvus address {text!r}: unknown {unknown[0]!r} after the question mark; known: thumbnails")
    return query["thumbnails"][-1] if "thumbnails" in query else None


def _without_secrets(text: str) -> str:
    return re.sub(r"//.*@", "//…@", text)
