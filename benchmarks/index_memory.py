"""Memory of an index: a Parquet file of vectors, and perhaps of much text, in; built, searched and changed.

A child process does each command; this one looks at it every 30 ms. What is counted:

private   anonymous memory of the child and of its workers (Pss_Anon: a page that a fork shares counts once): the
          interpreter, the libraries' data, the FAISS index, whatever is held of the rows. The system cannot drop it.
mapped    pages of files that are mapped (RssFile of the child): code of the libraries, and `vectors.npy` as far as it
          has been read. The system drops them when it needs the room; not part of `private`.
resident  the most that the child alone had of both at once, as the system itself notes it (VmHWM).

The page cache of files that are read and written belongs to no process and is in none. `start` is the private memory
right before the build: interpreter, torch and FAISS, imported. The vectors are rows × dim × 4 bytes. The text is random
letters, in `text` and, as the catalogue's own column, in the fields; so `items.parquet` holds it twice.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from timing import show

PHASES = ("start", "reading", "joining", "index.faiss", "committing")
FIGURES = ("private", "mapped", "resident", "/ rows")
COMMANDS = ("search", "add", "delete", "compact", "export")
_CATALOG = "vectors.parquet"
_MORE = "more.parquet"
_ROWS_AT_ONCE = 10_000
_BYTES_AT_ONCE = 32 << 20
_ADDED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="of each vector (default: %(default)s)")
    parser.add_argument("--text", type=int, default=0, metavar="BYTES", help="of each row (default: a word)")
    parser.add_argument("--factory", nargs="+", default=["Flat"], help="an index each (default: Flat)")
    parser.add_argument("--precision", default="fp32", help="of the stored vectors (default: %(default)s)")
    parser.add_argument(
        "--commands", nargs="+", default=[], choices=COMMANDS, help="run with each index, in this order (default: none)"
    )
    parser.add_argument(
        "--only-faiss", action="store_true", help="make index.faiss of a finished vectors.npy: where builds peak"
    )
    parser.add_argument("--folder", type=Path, help="where 3 to 4 times the rows find room (default: as tempfile)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)  # command, folder of catalogues, index, factory
    options = parser.parse_args()
    if options.child:
        run(*options.child, options.dim, options.precision)
        return

    vectors, text = options.rows * options.dim * 4, options.rows * options.text
    with TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.only_faiss:
            write_vectors(folder / "vectors.npy", options)
            found = [
                (factory, *highest(*watch("faiss", folder, factory, options), vectors)) for factory in options.factory
            ]
            print(f"index.faiss of {options.rows:,} × {options.dim}: vectors of {vectors / 1e6:.0f} MB; peaks in MB")
            show(("factory", *FIGURES), found)
            return
        write_catalog(folder / _CATALOG, options.rows, options.dim, options.text)
        write_catalog(folder / _MORE, _ADDED, options.dim, options.text, first=options.rows)
        builds, changes = [], []
        for factory in options.factory:
            peaks, resident = watch("build", folder, factory, options)
            by_phase = [f"{peaks[phase].private / 1e6:.0f}" if phase in peaks else "–" for phase in PHASES]
            builds.append((factory, *by_phase, *highest(peaks, resident, vectors + text)))
            for command in options.commands:
                found = watch(command, folder, factory, options)
                changes.append((command, factory, *highest(*found, vectors + text)))
    what = f"vectors of {vectors / 1e6:.0f} MB, texts of {text / 1e6:.0f} MB"
    print(f"{options.rows:,} × {options.dim} at {options.precision}: {what}; peaks in MB")
    show(("build", *PHASES, *FIGURES), builds)
    if changes:
        print()
        show(("command", "factory", *FIGURES), changes)


@dataclass
class Memory:
    """Bytes."""

    private: int = 0
    mapped: int = 0


def highest(peaks: dict[str, Memory], resident: int, rows: int) -> tuple[str, ...]:
    private, mapped = (max(getattr(peak, name) for peak in peaks.values()) for name in ("private", "mapped"))
    return (*(f"{size / 1e6:.0f}" for size in (private, mapped, resident)), f"{resident / rows:.2f}×")


def write_catalog(path: Path, count: int, dim: int, text: int, *, first: int = 0) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(first)
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), dim))])
    step = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, text)))
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(first, first + count, step):
            rows = range(start, min(start + step, first + count))
            vectors = rng.normal(size=(len(rows), dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            ids, texts = ([f"{word} {row}" for row in rows] for word in ("item", "text"))
            if text:
                letters = rng.integers(97, 123, size=(len(rows), text), dtype=np.uint8)
                letters[:, ::8] = 32
                texts = [line.tobytes().decode() for line in letters]
            writer.write_batch(pa.record_batch([pa.array(ids), pa.array(texts), column], schema=schema))


def write_vectors(path: Path, options: argparse.Namespace) -> None:
    from index_data import Synthetic

    from index.store import VectorWriter

    with VectorWriter(path, options.dim, options.precision) as vectors:
        for block in Synthetic(options.rows, options.dim).blocks():
            vectors.append(block)


def watch(command: str, folder: Path, factory: str, options: argparse.Namespace) -> tuple[dict[str, Memory], int]:
    """Peaks of a command in a child process: by phase if it is a build, else under its name; and its resident size."""
    out = folder / f"index-{factory}"
    fixed = [sys.executable, __file__, "--dim", str(options.dim), "--precision", options.precision]
    peaks: dict[str, Memory] = {}
    process = subprocess.Popen([*fixed, "--child", command, str(folder), str(out), factory])
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        peak = peaks.setdefault(phase_of(out) if command == "build" else command, Memory())
        now = memory_of(process.pid)
        peak.private, peak.mapped = max(peak.private, now.private), max(peak.mapped, now.mapped)
        time.sleep(0.03)
    if status:
        sys.exit(f"{command} ended with status {os.waitstatus_to_exitcode(status)}")
    return peaks, 1024 * usage.ru_maxrss


def phase_of(out: Path) -> str:
    stage = out / ".partial-generation"
    if not out.exists():
        return "start"
    if (stage / "deleted.npy").exists() or (out / "manifest.json").exists():
        return "committing"
    if (stage / "items.parquet").exists() and (stage / "items.parquet").stat().st_size > 4:
        return "index.faiss"
    return "joining" if (stage / "vectors.npy").exists() else "reading"


def memory_of(pid: int) -> Memory:
    total = Memory()
    with suppress(OSError):  # it has just ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                total.private += 1024 * int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssFile:"):
                total.mapped += 1024 * int(line.split()[1])
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total.private += memory_of(int(child)).private
    return total


def run(command: str, folder: str, out: str, factory: str, dim: int, precision: str) -> None:
    """What the child does."""
    import numpy as np
    import torch

    from index.ann import write_ann
    from index.build import Build
    from index.export import export_index
    from index.search import Index
    from index.update import add_items, compact_index, delete_items

    class GivenVectors:
        """Stands for the embedder that made the vectors; nothing but queries is encoded, and they are made up."""

        name = path = "given"

        def __init__(self) -> None:
            self.dim, self.module = dim, torch.nn.Module()
            self.noise: dict[str, object] = {}
            self.fingerprint = {"weights": "given", "dim": str(dim)}

        def encode(self, items: list[object], role: str = "query") -> np.ndarray:
            vectors = np.random.default_rng(0).normal(size=(len(items), dim)).astype(np.float32)
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    time.sleep(0.5)  # so that the memory of the imports is seen alone
    embedder: object = GivenVectors()
    if command == "build":
        Build(
            embedder=embedder,  # type: ignore[arg-type]
            catalog=Path(folder) / _CATALOG,
            out=Path(out),
            factory=factory,
            vectors="vector",
            precision=precision,  # type: ignore[arg-type]
        ).run()
    elif command == "faiss":
        write_ann(Path(folder), factory)
    elif command == "search":
        Index.open(out).find(GivenVectors().encode([None]), 10)
    elif command == "add":
        add_items(embedder, Path(folder) / _MORE, out)  # type: ignore[arg-type]
    elif command == "delete":
        delete_items(out, ids=["item 17"])
    elif command == "compact":
        compact_index(out)
    else:
        export_index(out, Path(folder) / f"exported-{factory}")


if __name__ == "__main__":
    main()
