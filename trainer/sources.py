"""From the settings to the tables of pairs: own files, MMEB's, and those on the hub."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from fanoise.distributed import rank
from fanoise.errors import CatalogError, ConfigError
from trainer.config import RunConfig
from trainer.hub_files import fetch, is_on_hub, matching_on_hub
from trainer.mmeb import is_mmeb_train, read_mmeb_train
from trainer.outcomes import once_per_machine
from trainer.pair_table import PairTable
from trainer.pairs import read_pairs
from trainer.shared_tables import shared_tables

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def matching(pattern: str) -> list[str]:
    """The files that a pattern (`*`, `?`, `[...]`, `**`) stands for, sorted; what is none stands for itself.

    Raises: CatalogError for a pattern that matches no file.
    """
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [pattern]
    if is_on_hub(pattern):
        found = matching_on_hub(pattern)
    else:
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    if not found:
        raise CatalogError(f"{pattern}: no file matches this pattern; check the path, or fetch the files first")
    return found


def matching_each(patterns: Sequence[str]) -> list[list[str]]:
    """`matching` of each, as the first process of this machine finds it: what is there may change meanwhile."""
    return once_per_machine(lambda: [matching(pattern) for pattern in patterns])


def load_pairs(sources: Sequence[str], config: RunConfig, *, max_pairs: int | None) -> list[PairTable]:
    """A table for each source, of at most `max_pairs` pairs drawn by the run's seed; read once on each machine.

    Raises: CatalogError naming file, row and remedy; ConfigError where `data.images` is needed or does not exist.
    """
    images = config.data.images
    if images is not None and not Path(images).is_dir():
        raise ConfigError(
            f"data.images {images}: no such folder; fetch the images, or, where no pair file is MMEB-train's or from "
            "the hub, take --data.images null"
        )
    tables = shared_tables(lambda: _read(sources, images))
    return [table.sample(max_pairs, seed=config.seed) for table in tables]


def _read(sources: Sequence[str], images: str | None) -> list[PairTable]:
    paths = [fetch(source) if is_on_hub(source) else Path(source) for source in sources]
    sets = [is_mmeb_train(path) for path in paths]
    for source, is_set in zip(sources, sets, strict=True):
        if is_set and images is None:
            raise ConfigError(
                f"data.images is not set; {source} is in MMEB format, give the folder its image paths start in"
            )
    tables = []
    with tqdm(desc="read pairs", unit="pair", unit_scale=True, delay=1, disable=rank() != 0) as bar:
        for source, path, is_set in zip(sources, paths, sets, strict=True):
            bar.set_postfix_str(short_names([source])[0], refresh=False)
            if is_set:
                table = read_mmeb_train(path, images=str(images), on_rows=bar.update)
            else:
                table = read_pairs(path, images=images if is_on_hub(source) else None, on_rows=bar.update)
                if is_on_hub(source) and table.names_images and images is None:
                    raise ConfigError(
                        f"data.images is not set; {source} names images, give the folder you have them in"
                    )
            tables.append(table)
    return tables


def short_names(sources: Sequence[str]) -> list[str]:
    """The files' names without folder and suffix, or their folders' where all are called alike, as in MMEB.

    Where two come out the same, folder and name, and at last a number, tell them apart.
    """
    paths = [Path(source) for source in sources]
    names = [path.parent.name if _SHARD.search(path.stem) and path.parent.name else path.stem for path in paths]
    names = [
        "/".join([*path.parts[-2:-1], path.stem]) if count > 1 else name
        for path, name, count in zip(paths, names, _counts(names), strict=True)
    ]
    return [
        f"{name}#{number}" if count > 1 else name
        for number, (name, count) in enumerate(zip(names, _counts(names), strict=True), start=1)
    ]


def _counts(names: Sequence[str]) -> list[int]:
    counts = Counter(names)
    return [counts[name] for name in names]
