"""Opening MMEB-train: column by column and once a machine, against row by row in every process, as it was.

    python benchmarks/pair_files.py --sets 20 --rows 51600

The old way is written out below as the simple oracle; both must give the same keys and pairs.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from timing import clock_of, how, paired, show
from tqdm import tqdm

from fanoise.catalog import read_rows
from trainer.mmeb import IMAGE_PLACEHOLDER, read_mmeb_train
from trainer.pair_columns import SCHEMA, Content, PairRow, batch_of_rows
from trainer.pair_table import PairTable, parts

IMAGES = Path("images")


def write_tree(folder: Path, *, sets: int, rows: int) -> list[Path]:
    """Questions about pictures with short answers, as most of the published sets are; every second has many answers."""
    words = [f"word{number}" for number in range(2000)]
    files = []
    for number in tqdm(range(sets), desc="make sets", mininterval=0.5):
        draw = random.Random(number)
        queries = (" ".join(draw.choices(words, k=12)) for _ in range(rows))
        table = {
            "qry": [f"{IMAGE_PLACEHOLDER}\nAnswer the question: {query} {n}\n" for n, query in enumerate(queries)],
            "qry_image_path": [f"images/Set{number}/Train/{n}.jpg" for n in range(rows)],
            "pos_text": [" ".join(draw.choices(words, k=1 + number % 2)) for _ in range(rows)],
            "pos_image_path": [""] * rows,
            "neg_text": [draw.choice(words) for _ in range(rows)],
            "neg_image_path": [""] * rows,
        }
        files.append(folder / f"Set{number}" / "original-00000-of-00001.parquet")
        files[-1].parent.mkdir()
        pq.write_table(pa.table(table), files[-1])
    return files


def read_by_rows(path: Path) -> np.ndarray:
    """[N, 3] keys, each row checked, hashed and written by itself."""
    root, keys = os.path.abspath(IMAGES), []  # noqa: PTH100  # as the trainer does

    def rows() -> Iterator[PairRow]:
        for _, row in read_rows(path):
            query, positive, negative = (
                content(row, *names)
                for names in (("qry", "qry_image_path"), ("pos_text", "pos_image_path"), ("neg_text", "neg_image_path"))
            )
            keys.append((key(query), key(positive), 0))
            negatives = [each for each in [negative] if each not in ((None, None), positive)]
            yield PairRow(query, positive, negatives)

    def content(row: dict[str, str | None], text: str, image: str) -> Content:
        for name in (text, image):
            if not isinstance(row[name], str | None):
                raise TypeError(name)
        return (row[text] or "").replace(IMAGE_PLACEHOLDER, "").strip() or None, row[image]

    def key(content: Content) -> int:
        text, image = content
        path = "" if image is None else os.path.normpath(os.path.join(root, str(image)))  # noqa: PTH118
        digest = blake2b(f"{len(text or '')} {text or ''}{path}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    with tempfile.TemporaryFile() as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for part in parts(rows()):
            writer.write_batch(batch_of_rows(part))
    return np.array(keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--rows", type=int, default=51_600, help="of each set")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_tree(Path(folder), sets=options.sets, rows=options.rows)
        tables = [read_mmeb_train(file, images=IMAGES) for file in files]
        for file, table in zip(files, tables, strict=True):
            assert np.array_equal(table.keys, read_by_rows(file)), file
        handles = [table.handle for table in tables]
        times = paired(
            {
                "rows": lambda: [read_by_rows(file) for file in files],
                "columns": lambda: [read_mmeb_train(file, images=IMAGES) for file in files],
                "open": lambda: [PairTable.open(handle) for handle in handles],
            },
            rounds=options.rounds,
            warmup=0,
            clock=clock_of(1),
        )
    seconds = {name: times.median_ms(name) / 1e3 for name in times.seconds}
    eight = [8 * seconds["rows"], seconds["columns"] + 7 * seconds["open"]]
    lines = [
        ["one process", f"{seconds['rows']:.1f}", f"{seconds['columns']:.1f}", str(times.ratio("rows", "columns"))],
        ["each other of its machine", f"{seconds['rows']:.1f}", f"{seconds['open']:.2f}", ""],
        ["eight of a machine, together", f"{eight[0]:.0f}", f"{eight[1]:.1f}", f"{eight[0] / eight[1]:.0f}×"],
    ]
    print(f"{options.sets * options.rows:,} pairs in {options.sets} files")
    show(["", "row by row, s", "now, s", "ratio"], lines)
    print(how(clock_of(1)))


if __name__ == "__main__":
    sys.exit(main())
