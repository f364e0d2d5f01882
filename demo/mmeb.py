"""A small benchmark in the published MMEB format: four meta-tasks, sets in and out of distribution.

Layout of the folder:
    train/<set>/original-00000-of-00001.parquet    sets in distribution, by their training names
    eval/<set>/test-00000-of-00001.parquet         every set; of its targets the first is the right one
    images/                                        what the image columns name, relative to this folder
    meta.json                                      each set's names, meta-task, split (IND or OOD) and sizes
Columns, texts and instructions follow TIGER-Lab/MMEB-train and MMEB-eval (arXiv 2410.05160), with their traps.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from demo.catalogs import draw
from demo.mmeb_rows import Album, crop_files
from demo.mmeb_scenes import crops_of, render_collage
from demo.mmeb_sets import Side, TaskSet, plan_sets
from fanoise.storage import staged_directory

VERSION = 1
"""Raised when the same size and seed would give another benchmark."""
TRAIN_FILE = "original-00000-of-00001.parquet"
EVAL_FILE = "test-00000-of-00001.parquet"
_TEXTS = pa.list_(pa.string())
TRAIN_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
    ]
)
EVAL_SCHEMA = pa.schema(
    [("qry_text", pa.string()), ("qry_img_path", pa.string()), ("tgt_text", _TEXTS), ("tgt_img_path", _TEXTS)]
)


@dataclass(frozen=True, kw_only=True)
class MmebSize:
    """How large each set is."""

    train: int = 40
    """Training rows a set."""
    eval: int = 20
    """Queries a set."""
    candidates: int = 16
    """Targets a query, at most."""

    def __post_init__(self) -> None:
        if self.train < 1 or self.eval < 1:
            raise ValueError(f"size.train and size.eval must be >= 1, got {self.train} and {self.eval}")
        if self.candidates < 3:
            raise ValueError(f"size.candidates must be >= 3 (right, tempting, other), got {self.candidates}")


SMALL = MmebSize()


def make_mmeb(folder: str | Path, *, size: MmebSize = SMALL, seed: int = 0, progress: bool = True) -> Path:
    """Write the benchmark; deterministic by size and seed. The folder appears when it is complete.

    Raises: ValueError if `size` asks for more than there are products.
    """
    folder = Path(folder)
    sets, album = plan_sets(train=size.train, evaluation=size.eval, candidates=size.candidates, seed=seed)
    with staged_directory(folder) as staging:
        draw(list(album.pictures.values()), staging / "images", label=folder.name, progress=progress)
        _draw_collages(album, staging / "images")
        for each in sets:
            if each.train_name is not None:
                _write_table(staging / "train" / each.train_name / TRAIN_FILE, _train_rows(each), TRAIN_SCHEMA)
            _write_table(staging / "eval" / each.name / EVAL_FILE, _eval_rows(each), EVAL_SCHEMA)
        meta = {"version": VERSION, "seed": seed, "size": asdict(size), "images": "images"}
        meta["sets"] = [_summary(each) for each in sets]
        (staging / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return folder


def _draw_collages(album: Album, folder: Path) -> None:
    for name in ("scenes", "crops"):
        (folder / name).mkdir()
    for scene, collage in album.collages.items():
        picture = render_collage(collage)
        picture.save(folder / scene, quality=88)
        for file, crop in zip(crop_files(collage), crops_of(collage, picture), strict=True):
            crop.save(folder / file, quality=88)


def _write_table(file: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)


def _train_rows(task_set: TaskSet) -> list[dict[str, Any]]:
    columns = TRAIN_SCHEMA.names
    return [
        dict(zip(columns, (*_pair(row.query), *_pair(row.positive), *_pair(row.negative)), strict=True))
        for row in task_set.train
    ]


def _eval_rows(task_set: TaskSet) -> list[dict[str, Any]]:
    return [
        {
            "qry_text": row.query.text,
            "qry_img_path": row.query.image,
            "tgt_text": [side.text for side in candidates],
            "tgt_img_path": [side.image for side in candidates],
        }
        for row, candidates in zip(task_set.eval, task_set.candidates, strict=True)
    ]


def _pair(side: Side) -> tuple[str, str]:
    return side.text, side.image


def _summary(task_set: TaskSet) -> dict[str, Any]:
    return {
        "name": task_set.name,
        "train_name": task_set.train_name,
        "meta_task": task_set.meta_task,
        "split": "OOD" if task_set.train_name is None else "IND",
        "train_rows": len(task_set.train),
        "eval_rows": len(task_set.eval),
        "candidates": max(len(candidates) for candidates in task_set.candidates),
    }
