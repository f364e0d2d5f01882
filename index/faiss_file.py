"""`index.faiss` is read with suspicion: FAISS itself trusts a file, and reads from whatever one it names.

Callers compare the checksum first. Then the sizes must be plausible, no single allocation may exceed the file, and only
index types that this project makes are taken; anything else is refused by its name.
"""

import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import faiss

from fanoise.errors import ArtifactError, InputError, one_line
from index.manifest import LONGEST_FACTORY

INDEX_TYPES = frozenset(
    {
        "IndexFlat",
        "IndexFlatIP",
        "IndexFlatL2",
        "IndexHNSWFlat",
        "IndexHNSWSQ",
        "IndexIVFFlat",
        "IndexIVFPQ",
        "IndexIVFPQFastScan",
        "IndexIVFRaBitQ",
        "IndexIVFRaBitQFastScan",
        "IndexIVFScalarQuantizer",
        "IndexPQ",
        "IndexPQFastScan",
        "IndexPreTransform",
        "IndexRaBitQ",
        "IndexRaBitQFastScan",
        "IndexRefine",
        "IndexRefineFlat",
        "IndexScalarQuantizer",
    }
)
REFINERS = frozenset({"IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexPQ", "IndexRaBitQ", "IndexScalarQuantizer"})
TRANSFORMS = frozenset(
    {
        "CenteringTransform",
        "HadamardRotation",
        "LinearTransform",
        "NormalizationTransform",
        "OPQMatrix",
        "PCAMatrix",
        "RandomRotationMatrix",
    }
)
INVERTED_LISTS = frozenset({"ArrayInvertedLists", "BlockInvertedLists"})  # not those in a file that the index names

_WORDS = frozenset(
    "Flat HNSW HR IVF L M OPQ PCA PCAR PCAW PCAWR PQ RFlat RR RaBitQ RaBitQfs Refine SQ SQbf SQfp SQtq SQtqmse direct "
    "fs fsr k norm np signed x".split()
)
"""Of factory strings for these types. What others allocate follows rules of their own, which are not checked here."""
_NUMBER = re.compile(r"(IVF|HNSW|x|)(\d+)([kM]?)")
_FACTORS = {"": 1, "k": 1 << 10, "M": 1 << 20}
_MOST_LISTS = 1 << 22
_MOST_BITS = 12
"""Of a product code: a table of 2^bits lines is made with the empty index."""
_LEAST_MOST = 1024
"""What other numbers of a factory string may be for the smallest vectors: links, codes, dimensions, lines at once."""
_LEAST_LINKS = 2
"""Of a graph: with fewer, as with a number 0 anywhere, FAISS ends the process, or fails once it is trained."""
_NAMES_IN_FILES = {"IndexFlat": "IndexFlatIP", "OPQMatrix": "LinearTransform"}
"""What the types become that FAISS does not keep apart in a file."""
_HEADER = struct.Struct("<4siq")  # which kind, d, ntotal
_LEAST_LIMIT = 1 << 28
"""Bytes: tables that are computed from a small file may be larger than it."""
_reading = threading.Lock()  # the limits are global to the process


def read_header(path: Path) -> tuple[int, int]:
    """(dim, rows) from the first bytes of a FAISS file. Raises ArtifactError for a file too short to be one."""
    with path.open("rb") as file:
        start = file.read(_HEADER.size)
    if len(start) < _HEADER.size:
        raise ArtifactError(f"{path} has {len(start)} bytes, too few for a FAISS index")
    _, dim, rows = _HEADER.unpack(start)
    return dim, rows


def read_index(path: Path, *, rows: int, dim: int, factory: str) -> faiss.Index:
    """Read an index of `rows` inner-product vectors of `dim`, whose checksum has been compared.

    Args:
        factory: the FAISS factory string that it was made with.
    Raises: ArtifactError for another size, metric or type, for a file that asks for more memory than it has bytes, and
        for index types other than INDEX_TYPES, by name.
    """
    found_dim, found_rows = read_header(path)
    if (found_rows, found_dim) != (rows, dim):
        raise ArtifactError(f"{path} holds {found_rows} vectors of dim {found_dim}, not {rows} of dim {dim}")
    # a file of inverted lists that the index names is looked for beside it, where there is none
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
    try:
        with _limits(size=path.stat().st_size, loops=max(rows, dim)):
            index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise ArtifactError(f"{path} cannot be read ({faiss_reason(error)})") from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ArtifactError(f"{path} has another metric than the inner product")
    if (index.ntotal, index.d) != (rows, dim):
        raise ArtifactError(f"{path} holds {index.ntotal} vectors of dim {index.d}, not {rows} of dim {dim}")
    unknown = next(unexpected_parts(index), None)
    if unknown is not None:
        raise ArtifactError(f"{path} holds a {unknown}, which is not one of the types that are read")
    misfit = next(misfits(index), None)
    if misfit is not None:
        raise ArtifactError(f"{path} holds {misfit}")
    _check_made_with(index, factory, path)
    return index


def empty_index(factory: str, dim: int) -> faiss.Index:
    """An untrained index of inner products.

    Raises: InputError for a string that FAISS does not know, or that has FAISS allocate what no index needs.
    """
    _check_size(factory, dim)
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as error:
        raise InputError(
            f"factory {factory!r} is not one that FAISS can build for inner products and dim {dim}: "
            f"{faiss_reason(error)}; use auto, Flat, or for example HNSW32 or IVF256,Flat"
        ) from error


def _check_size(factory: str, dim: int) -> None:
    """Raise InputError for what would exhaust the memory or the stack, or end the process, before FAISS refuses it."""
    if len(factory) > LONGEST_FACTORY:
        raise InputError(f"factory {factory[:20]!r}… has {len(factory)} characters; {LONGEST_FACTORY} is the most")
    lists = 0
    for before, digits, factor in _NUMBER.findall(factory):
        number = int(digits) * _FACTORS[factor]
        lists += number if before == "IVF" else 0
        most = {"IVF": _MOST_LISTS, "x": _MOST_BITS}.get(before, max(_LEAST_MOST, dim))
        if number > most or lists > _MOST_LISTS:
            raise InputError(
                f"factory {factory!r} asks for {before}{digits}{factor} where {before}{most} is the most for dim {dim}"
            )
        least = _LEAST_LINKS if before == "HNSW" else 1
        if number < least:
            raise InputError(f"factory {factory!r} asks for {before}{digits} where {before}{least} is the least")


def named_index(factory: str, dim: int) -> faiss.Index:
    """As `empty_index`, for a string that a manifest names, which may be a stranger's."""
    unknown = sorted(set(re.findall(r"[^\W\d_]+|[^\w,()]", factory)) - _WORDS)
    if unknown:
        raise InputError(f"factory {factory[:20]!r} has {unknown[0][:20]!r} in it, which no type has that is read")
    return empty_index(factory, dim)


def write_index(index: faiss.Index, path: Path) -> None:
    """Write an index. Raises OSError, such as for a full disk.

    FAISS's own writer only prints a note if the last bytes of a file could not be written, and leaves it too short.
    """
    failed: list[OSError] = []

    def write(data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:  # FAISS would make a RuntimeError of it
            failed.append(error)
            raise

    with path.open("wb") as file:
        try:
            faiss.write_index(index, faiss.PyCallbackIOWriter(write))
        except RuntimeError:
            if failed:
                raise failed[0] from None
            raise


def reserve(index: faiss.Index, rows: int) -> None:
    """Make room for `rows` more before they are added block by block.

    Codes that lie in one array would be copied each time it doubles, the old and the new one in memory at once.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        reserve(index.index, rows)
    elif isinstance(index, faiss.IndexRefine):
        reserve(index.base_index, rows)
        reserve(index.refine_index, rows)
    elif isinstance(index, faiss.IndexHNSW):
        reserve(index.storage, rows)
    elif isinstance(index, faiss.IndexFlatCodes):
        size = index.codes.size()
        index.codes.resize(size + rows * index.code_size)
        index.codes.resize(size)  # std::vector keeps what it has taken


def check_types(index: faiss.Index, factory: str) -> None:
    """Raise InputError, naming the part, for a factory string whose index `read_index` would refuse."""
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"factory {factory!r} makes an index without inner products; use another, such as HNSW32")
    unknown = next(unexpected_parts(index), None)
    if unknown is not None:
        raise InputError(
            f"factory {factory!r} makes a {unknown}, which is not supported; use flat, IVF (with flat, PQ, SQ or "
            "RaBitQ), HNSW, PQ, SQ or RaBitQ, behind OPQ or PCA and before RFlat where wanted"
        )


def check_trainable(index: faiss.Index, factory: str) -> None:
    """Raise InputError for a part, at any depth, that FAISS would refuse to train."""
    index = faiss.downcast_index(index)
    for transform in transforms(index):
        if isinstance(transform, faiss.PCAMatrix) and transform.d_out > transform.d_in:
            raise InputError(
                f"factory {factory!r} asks PCA for {transform.d_out} dimensions of {transform.d_in}, and it can only "
                f"make fewer: write {transform.d_in} at most"
            )
        if isinstance(transform, faiss.OPQMatrix) and transform.d_out % transform.M:
            raise InputError(
                f"factory {factory!r} has OPQ cut {transform.d_out} dimensions into {transform.M} equal parts, which "
                "does not come out; take a divisor"
            )
    if isinstance(index, faiss.IndexIVF) and index.by_residual and faiss.try_extract_index_ivf(index.quantizer):
        raise InputError(
            f"factory {factory!r} has lists find their lists, whose codes are of what is left of a vector then, and "
            "FAISS cannot train those; use HNSW to find them, such as in IVF65536_HNSW32,SQ8"
        )
    for part, _ in parts(index):
        check_trainable(part, factory)


def unexpected_parts(index: faiss.Index) -> Iterator[str]:
    """Names of the types within an index, at any depth, that are not on the lists above."""
    index = faiss.downcast_index(index)
    name = type(index).__name__
    if name not in INDEX_TYPES:
        yield name
    elif isinstance(index, faiss.IndexPreTransform):
        yield from {type(transform).__name__ for transform in transforms(index)} - TRANSFORMS
        yield from unexpected_parts(index.index)
    elif isinstance(index, faiss.IndexRefine):
        yield from unexpected_parts(index.base_index)
        yield from unexpected_parts(index.refine_index)
        if not _compares_one_by_one(index.refine_index):
            yield f"{type(faiss.downcast_index(index.refine_index)).__name__} to refine by"
    elif isinstance(index, faiss.IndexIVF):
        lists = type(faiss.downcast_InvertedLists(index.invlists)).__name__
        if lists not in INVERTED_LISTS:
            yield lists
        yield from unexpected_parts(index.quantizer)
    elif isinstance(index, faiss.IndexHNSW):
        yield from unexpected_parts(index.storage)


def _compares_one_by_one(index: faiss.Index) -> bool:
    """Whether FAISS can ask an index for single similarities; where it cannot, it would end the process."""
    index = faiss.downcast_index(index)
    inner = index.index if isinstance(index, faiss.IndexPreTransform) else index
    return type(faiss.downcast_index(inner)).__name__ in REFINERS


def misfits(index: faiss.Index) -> Iterator[str]:
    """What within an index, of types that are expected, has another size than the rest: where FAISS does not look when
    it reads, it would read beyond an end when it searches."""
    index = faiss.downcast_index(index)
    for name in ("pq", "sq", "rabitq"):
        codes = getattr(index, name, None)
        if codes is not None and codes.d != index.d:
            yield f"codes of dim {codes.d} in an index of dim {index.d}"
    for part, rows in parts(index):
        dim = part.d if isinstance(index, faiss.IndexPreTransform) else index.d  # which FAISS compares with its chain
        if (part.ntotal, part.d) != (rows, dim):
            yield f"{part.ntotal} vectors of dim {part.d} where there must be {rows} of dim {dim}"
        yield from misfits(part)
    if isinstance(index, faiss.IndexIVF):
        yield from _misfits_of_lists(index)


def every_part(index: faiss.Index) -> Iterator[faiss.Index]:
    """The index and those within it, at any depth, each as the type that it is."""
    index = faiss.downcast_index(index)
    yield index
    for part, _ in parts(index):
        yield from every_part(part)


def parts(index: faiss.Index) -> list[tuple[faiss.Index, int]]:
    """The indices within an index, and how many vectors each must have."""
    if isinstance(index, faiss.IndexPreTransform):
        return [(index.index, index.ntotal)]
    if isinstance(index, faiss.IndexRefine):
        return [(index.base_index, index.ntotal), (index.refine_index, index.ntotal)]
    if isinstance(index, faiss.IndexIVF):
        return [(index.quantizer, index.nlist)]
    return [(index.storage, index.ntotal)] if isinstance(index, faiss.IndexHNSW) else []


def transforms(index: faiss.Index) -> list[faiss.VectorTransform]:
    """What vectors go through before the index within an index."""
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]


def _misfits_of_lists(index: faiss.IndexIVF) -> Iterator[str]:
    lists = faiss.downcast_InvertedLists(index.invlists)
    if lists.nlist != index.nlist:
        yield f"{lists.nlist} inverted lists where there must be {index.nlist}"
        return
    if isinstance(lists, faiss.ArrayInvertedLists) and lists.code_size != index.code_size:
        yield f"inverted lists of {lists.code_size} bytes a vector where there must be {index.code_size}"
    for number in range(lists.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
        if ids.min() < 0 or ids.max() >= index.ntotal:
            yield f"a row beyond its {index.ntotal} in inverted list {number}"


def _check_made_with(index: faiss.Index, factory: str, path: Path) -> None:
    """Raise ArtifactError for an index of other types or sizes than those that the factory string makes."""
    try:
        empty = named_index(factory, index.d)
    except InputError as error:
        raise ArtifactError(f"{path} is said to be of a type that there is not: {error}") from None
    for ours, theirs in zip_longest(_layout(empty), _layout(index), fillvalue="nothing more"):
        if ours != theirs:
            raise ArtifactError(
                f"{path} holds {theirs} where factory {factory!r}, which the manifest names, has {ours}"
            )


def _layout(index: faiss.Index) -> Iterator[str]:
    """Type and sizes of an index, then of the parts within it, in words; the same before it is written and after."""
    index = faiss.downcast_index(index)
    sizes = [f"dim {index.d}"]
    if isinstance(index, faiss.IndexIVF):
        sizes.append(f"{index.nlist} lists")
    if isinstance(index, faiss.IndexHNSW):
        sizes.append(f"{index.hnsw.nb_neighbors(1)} links")
    if hasattr(index, "pq"):
        sizes.append(f"{index.pq.M} codes of {index.pq.nbits} bits")
    if hasattr(index, "sq"):
        sizes.append(f"scalar type {index.sq.qtype}")
    if hasattr(index, "rabitq"):
        sizes.append(f"{index.rabitq.nb_bits} bits")
    yield f"{_name_in_file(index)} ({', '.join(sizes)})"
    for transform in transforms(index):
        yield f"{_name_in_file(transform)} (dim {transform.d_in} to {transform.d_out})"
    for part, _ in parts(index):
        yield from _layout(part)


def _name_in_file(part: faiss.Index | faiss.VectorTransform) -> str:
    name = type(part).__name__
    return _NAMES_IN_FILES.get(name, name)


def faiss_reason(error: Exception) -> str:
    """FAISS's message without its C++ signature and file."""
    return one_line(error).split(".cpp:", 1)[-1].split(": ", 1)[-1].removeprefix("Error: ").strip()


@contextmanager
def _limits(*, size: int, loops: int) -> Iterator[None]:
    """No vector larger than the file, no loop longer than the rows (or dimensions) there are."""
    with _reading:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(max(size, _LEAST_LIMIT))
        faiss.set_deserialization_loop_limit(loops)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])
