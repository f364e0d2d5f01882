"""Webdataset shards: tar files whose neighbouring members with one name, up to its first dot, are a sample.

Nothing is unpacked: an image is read from its place in the tar when it is opened, and names are only names.
"""

import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanoise.catalog.folders import not_read
from fanoise.catalog.rejects import Rejects
from fanoise.errors import ImageError, one_line
from fanoise.images import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, open_regular

TAR_SUFFIX = ".tar"
_TEXTS = {"txt": "text", "text": "text", "caption": "text", "cls": "cls"}
"""Suffixes of texts, and the columns they become."""
SAMPLE_COLUMNS = ("id", "image", "text")
_MAX_IMAGE_BYTES = 256 * 2**20
_MAX_TEXT_BYTES = 16 * 2**20  # also of the headers that hold long names
_META = re.compile(r"__[^/]*__(/|$)")  # members about the shard, by the format's convention
_HEADERS_WITH_CONTENT = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)


@dataclass(frozen=True)
class TarMember:
    """An image file inside a tar: `size` bytes from `offset`."""

    path: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        if self.size > _MAX_IMAGE_BYTES:
            raise ImageError(f"{self.size} bytes, more than the limit of {_MAX_IMAGE_BYTES}", self)
        with open_regular(self.path) as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"


def read_shards(shards: Iterable[tuple[str, Path]], reject: Rejects) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of every sample: its images, its texts by their suffix, the entries of its .json.

    Args:
        shards: what goes before the ids of a shard's samples, and its file.
    """
    number = 0
    for prefix, path in shards:
        members = _Members(path)
        for key, sample in itertools.groupby(members, key=lambda one: one[0]):
            number += 1
            row = _row(path, prefix + key, [member for _, *member in sample], reject)
            if row is not None:
                yield number, row
        if members.damage is not None:
            reject(prefix.rstrip("/") or path.name, path, members.damage)


class _Header(tarfile.TarInfo):
    """Refuses sizes that would lead the reader back to where it was, or make it read a name of gigabytes."""

    @classmethod
    def frombuf(cls, *args: Any) -> "_Header":
        header = super().frombuf(*args)
        if header.size < 0 or (header.type in _HEADERS_WITH_CONTENT and header.size > _MAX_TEXT_BYTES):
            raise tarfile.HeaderError(f"a size of {header.size} bytes")
        return header


class _Members:
    """(key, suffix, member) of all that belongs to samples; `damage` then says why there is no more, if it should.

    A member is its name alone if it is a link or something else without content.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damage: str | None = None

    def __iter__(self) -> Iterator[tuple[str, str, TarMember | str]]:
        last = "the start"
        try:
            with open_regular(self._path) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
                offset = -1
                while (member := tar.next()) is not None:
                    if member.size < 0 or tar.offset <= offset:
                        raise tarfile.HeaderError("a size that leads back")
                    offset, last = tar.offset, repr(member.name)
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                    name = member.name.removeprefix("./")
                    folder, slash, file_name = name.rpartition("/")
                    stem, _, suffix = file_name.partition(".")
                    if stem and suffix and not member.isdir() and not _META.match(name):
                        has_content = member.isreg() and not member.issparse()
                        where = TarMember(self._path, member.name, member.offset_data, member.size)
                        yield folder + slash + stem, suffix.lower(), where if has_content else member.name
                file.seek(tar.offset)
                block = file.read(tarfile.BLOCKSIZE)
                if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):  # tarfile takes broken headers for the end
                    raise tarfile.HeaderError("a broken header" if block else "no end mark; was it cut off?")
        except Exception as error:  # tarfile raises about anything on damaged headers: IndexError, ValueError, …
            reason = one_line(error)
            self.damage = f"not a tar file, or damaged after {last} ({reason})"


def _row(path: Path, id: str, members: list[list[Any]], reject: Rejects) -> dict[str, Any] | None:
    """The row of a sample's [suffix, member]s; None if it was rejected."""
    images: list[TarMember] = []
    texts: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    others: list[tuple[str, TarMember | str]] = []
    for suffix, member in members:
        kind = f".{suffix.rpartition('.')[2]}"
        is_image = kind in IMAGE_SUFFIXES
        if kind in OTHER_IMAGE_SUFFIXES:
            others.append((kind, member))
        if not is_image and suffix not in ("json", *_TEXTS):
            if kind not in OTHER_IMAGE_SUFFIXES:
                reject.pass_over(f"{id}.{suffix}")
            continue
        if isinstance(member, str):
            reject(id, f"{path}/{member}", "a link or special file; store the file itself")
            return None
        try:
            if is_image:
                images.append(member)
            elif suffix == "json":
                entries = _entries(member)
            else:
                texts[_TEXTS[suffix]] = _read_text(member).strip()
        except (ImageError, OSError) as error:
            reject(id, member, getattr(error, "reason", None) or str(error))
            return None
    if others and not images:  # its text alone would be another item
        kind, member = others[0]
        reject(id, member if isinstance(member, TarMember) else f"{path}/{member}", not_read(kind))
        return None
    # what the sample's own files say goes before what its .json says
    row = {**entries, **texts, "id": id}
    if images:
        row["image"] = images[0] if len(images) == 1 else images
    return row


def _entries(member: TarMember) -> dict[str, Any]:
    try:
        entries = json.loads(_read_text(member))
    except (ValueError, RecursionError):
        raise ImageError("not JSON") from None
    if not isinstance(entries, dict):
        raise ImageError(f"its JSON is a {type(entries).__name__}, must be an object")
    return entries


def _read_text(member: TarMember) -> str:
    if member.size > _MAX_TEXT_BYTES:
        raise ImageError(f"{member.size} bytes, more than the limit of {_MAX_TEXT_BYTES} for a text")
    try:
        return member.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ImageError("not UTF-8") from None
