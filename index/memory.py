"""What memory the machine can give, and what a FAISS index takes of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import faiss

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_GROWTH = 1.3
"""What inverted lists hold beyond their content while they grow."""
_ID = 8


def free_memory() -> int | None:
    """Bytes that this process may still take without swapping: the least that machine and control groups leave.

    Caches that the system gives back count as free. None where the system does not say.
    """
    limits = [*_of_machine(), *_of_cgroups()]
    return max(0, min(limits)) if limits else None


def index_memory(index: faiss.Index, count: int, *, building: bool = False) -> int:
    """Bytes that an index of this type holds with `count` rows; an estimate.

    Args:
        index: trained or not, empty or not.
        building: the most while rows are added, without the training sample.
    """
    part = faiss.downcast_index(index)  # by another name: it does not keep the whole alive
    if isinstance(part, faiss.IndexPreTransform):
        return index_memory(part.index, count, building=building)
    if isinstance(part, faiss.IndexRefine):
        parts = (part.base_index, part.refine_index)
        return sum(index_memory(one, count, building=building) for one in parts)
    if isinstance(part, faiss.IndexIVF):
        lists = int(count * (part.code_size + _ID) * (_GROWTH if building else 1))
        return lists + index_memory(part.quantizer, part.nlist, building=building)
    if isinstance(part, faiss.IndexHNSW):
        links = part.hnsw.nb_neighbors(0) + 1  # on the lowest level; the ones above hold a few percent of that
        return index_memory(part.storage, count, building=building) + count * (4 * links + 12)
    return int(count * part.sa_code_size())


def _of_machine() -> Iterator[int]:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        try:
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            pass
        return
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield 1024 * int(value.split()[0])


def _of_cgroups() -> Iterator[int]:
    """What each control group that this process is in, and each one around it, has left."""
    try:
        lines = _CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used, cached = _MOUNT, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit = _MOUNT / "memory", "memory.limit_in_bytes"
            used, cached = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = root / path.lstrip("/")
        # within a container, the path may be that of the host, and the mount the container's own
        for folder in dict.fromkeys((group, *group.parents, root)):
            if folder.is_relative_to(root):
                yield from _left(folder, limit, used, cached)


def _left(folder: Path, limit: str, used: str, cached: str) -> Iterator[int]:
    try:
        most, now = ((folder / name).read_text().strip() for name in (limit, used))
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return
    if most != "max":
        caches = sum(int(line.split()[1]) for line in lines if line.split()[0] == cached)
        yield int(most) - int(now) + caches
