"""Memory of building an index: a Parquet file of vectors in, an index folder out.

A child process builds; this one looks at it every 30 ms. What is counted:

private   anonymous memory of the child and of its workers (Pss_Anon: a page that a fork shares counts once): the
          interpreter, the libraries' data, the FAISS index, whatever is held of the rows. The system cannot drop it.
mapped    pages of files that are mapped (RssFile of the child): code of the libraries, and `vectors.npy` as far as it
          has been read. The system drops them when it needs the room; not part of `private`.

The page cache of files that are read and written belongs to no process and is in neither. `start` is the private memory
right before the build: interpreter, torch and FAISS, imported. The vectors are rows × dim × 4 bytes.
"""

import argparse
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from timing import show

PHASES = ("start", "reading", "joining", "index.faiss", "committing")
_ROWS_AT_ONCE = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="of each vector (default: %(default)s)")
    parser.add_argument("--factory", nargs="+", default=["Flat"], help="an index each (default: Flat)")
    parser.add_argument("--precision", default="fp32", help="of the stored vectors (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where 3 to 4 times the vectors find room (default: as tempfile)")
    parser.add_argument("--build", nargs=3, help=argparse.SUPPRESS)  # the child: catalogue, index folder, factory
    options = parser.parse_args()
    if options.build:
        build(*options.build, options.dim, options.precision)
        return

    size = options.rows * options.dim * 4
    with TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_vectors(folder / "vectors.parquet", options.rows, options.dim)
        rows = []
        for factory in options.factory:
            peaks = watch(folder, factory, options)
            private = max(peak.private for peak in peaks.values())
            mapped = max(peak.mapped for peak in peaks.values())
            by_phase = [f"{peaks[phase].private / 1e6:.0f}" if phase in peaks else "–" for phase in PHASES]
            ratio = f"{private / size:.2f}×"
            rows.append((factory, *by_phase, f"{private / 1e6:.0f}", ratio, f"{mapped / 1e6:.0f}"))
    print(f"{options.rows:,} × {options.dim} at {options.precision}: vectors of {size / 1e6:.0f} MB; peaks in MB")
    show(("factory", *PHASES, "private", "/ vectors", "mapped"), rows)


@dataclass
class Memory:
    """Bytes."""

    private: int = 0
    mapped: int = 0


def write_vectors(path: Path, count: int, dim: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), dim))])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, _ROWS_AT_ONCE):
            rows = range(start, min(start + _ROWS_AT_ONCE, count))
            vectors = rng.normal(size=(len(rows), dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            ids, texts = ([f"{word} {row}" for row in rows] for word in ("item", "text"))
            writer.write_batch(pa.record_batch([pa.array(ids), pa.array(texts), column], schema=schema))


def watch(folder: Path, factory: str, options: argparse.Namespace) -> dict[str, Memory]:
    """Peaks of a build in a child process, by phase."""
    out = folder / f"index-{factory}"
    command = [sys.executable, __file__, "--dim", str(options.dim), "--precision", options.precision]
    peaks: dict[str, Memory] = {}
    process = subprocess.Popen([*command, "--build", str(folder / "vectors.parquet"), str(out), factory])
    while process.poll() is None:
        peak = peaks.setdefault(phase_of(out), Memory())
        now = memory_of(process.pid)
        peak.private, peak.mapped = max(peak.private, now.private), max(peak.mapped, now.mapped)
        time.sleep(0.03)
    if process.returncode:
        sys.exit(process.returncode)
    return peaks


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


def build(catalog: str, out: str, factory: str, dim: int, precision: str) -> None:
    from index.build import Build

    class GivenVectors:
        """Stands for the embedder that made the vectors; nothing is encoded."""

        name = path = "given"

        def __init__(self) -> None:
            self.dim = dim
            self.noise: dict[str, object] = {}
            self.fingerprint = {"weights": "given", "dim": str(dim)}

    time.sleep(0.5)  # so that the memory of the imports is seen alone
    Build(
        embedder=GivenVectors(),  # type: ignore[arg-type]
        catalog=Path(catalog),
        out=Path(out),
        factory=factory,
        vectors="vector",
        precision=precision,  # type: ignore[arg-type]
    ).run()


if __name__ == "__main__":
    main()
