"""Encoding by `index build`: against sentence-transformers' `encode`, the share of the model in it, and its memory.

Speed: the same random CLIP (photos of 224 × 224 pixels, patches of 32) on the same photos and cores. Ours is all that
`index build` does before FAISS: reading the catalogue, worker processes, thumbnails, hashes, shards on the disk. Theirs
is `SentenceTransformer.encode` on the photos' paths, which returns an array. Before anything is timed, the vectors must
agree. Wall time, since what counts is whether decoding is hidden; so let nothing else run.
In the model: the part of our time that the model is at work. What is missing to 100 % is waiting for photos that are
not ready. A core that prepares photos is no core for the model, so few cores and a light model cannot reach it.
Memory: the resident size of a build and its workers over a catalogue of short texts, every fifth with a photo, from the
moment that the first shard of 4,096 rows is finished. Pages that processes share count once for each.

Needs, for the first table: pip install sentence-transformers
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from peer import load_peer
from timing import how, paired, show

CLIPS = {"tiny": (128, 4, 2), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, layers and heads of both towers of a CLIP; `base` is ViT-B/32, `small` as ViT-S/32."""
VLM = "vlm"
"""A Qwen2-VL, which sees each photo in its own size; see `save_vlm`."""
LARGEST_DIFFERENCE = 1e-5
SMALL_PHOTOS = 200
SAMPLES_A_SECOND = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos", type=Path, nargs="+", help="folders with photos (default: some are drawn, 640 × 640 pixels)"
    )
    parser.add_argument("--count", type=int, default=512, help="photos that are encoded (default: %(default)s)")
    parser.add_argument(
        "--sizes", nargs="+", choices=(*CLIPS, VLM), default=list(CLIPS), help="models (default: CLIPs)"
    )
    parser.add_argument(
        "--opened", action="store_true", help="give theirs opened images, which it sorts by pixels, not paths"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="our worker processes (default: as `index build` by the cores)")
    parser.add_argument("--rows", type=int, default=100_000, help="of the memory table (default: %(default)s)")
    parser.add_argument("--only", choices=("speed", "memory"), help="one of the two tables")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # build: embedder, catalogue, index
    options = parser.parse_args()

    from fanoise.process import prepare_process, settle_accelerator

    prepare_process()
    settle_accelerator()
    if options.measure:
        build(*options.measure, workers=options.workers)
        return
    with tempfile.TemporaryDirectory(prefix="fanoise-benchmark-") as name:
        if options.only != "memory":
            show_speed(Path(name), options)
        if options.only != "speed":
            show_memory(Path(name), options)


def show_speed(folder: Path, options: argparse.Namespace) -> None:
    try:
        import sentence_transformers
    except ImportError:
        raise SystemExit("error: sentence-transformers is not installed; pip install sentence-transformers") from None
    from index.encoding.workers import cores_of_this_process, default_workers

    cores = cores_of_this_process()
    workers = default_workers(cores) if options.workers is None else options.workers
    photos = take_photos(options.photos, folder / "photos", options.count)
    rows = []
    for size in options.sizes:
        (save_vlm if size == VLM else save_clip)(folder / size, size)
        ours = Ours(folder, size, photos, workers)
        theirs = Theirs(folder / size, photos, ours.embedder if size == VLM else None, opened=options.opened)
        check_same_vectors(ours, theirs)
        times = paired({"ours": ours.encode, "theirs": theirs.encode}, rounds=options.rounds)
        speeds = [f"{1e3 * len(photos) / times.median_ms(name):.1f}" for name in ("theirs", "ours")]
        share = statistics.median(ours.shares[-options.rounds :])
        rows.append((size, *speeds, times.ratio("theirs", "ours"), f"{share:.1%}"))
    show(("model", "theirs images/s", "ours images/s", "ours / theirs", "in the model"), rows)
    print(
        f"sentence-transformers {sentence_transformers.__version__}, {len(photos)} photos, batches of 32, {cores} "
        f"core(s), {workers} worker(s), load {os.getloadavg()[0]:.1f}; {how()}"
    )


class Ours:
    def __init__(self, folder: Path, size: str, photos: list[Path], workers: int) -> None:
        from fanoise import Embedder

        self._catalog, self._folder = photos[0].parent, folder / f"indices-{size}"
        self.embedder, self._workers = Embedder.from_pretrained(folder / size, device="cpu"), workers
        self.shares: list[float] = []
        """Of the model in the time of each call."""

    def encode(self) -> Any:
        from index.encoding.cut import SHARD_ROWS, catalog_rows
        from index.encoding.encode import Encoder
        from index.encoding.plan import Plan, PlanFolder, catalog_state
        from index.encoding.progress import Progress
        from index.encoding.run import ShardRun
        from index.encoding.shard import ShardOptions
        from index.manifest import VECTORS
        from index.store import VectorStore

        out = self._folder / str(len(self.shares))  # removing it would be part of the time
        start = time.perf_counter()
        shape = ShardOptions(dim=self.embedder.dim, precision="fp32")
        state, fingerprint = catalog_state(self._catalog), self.embedder.fingerprint
        plan = Plan(catalog=state, reading={}, fingerprint=fingerprint, shard_rows=SHARD_ROWS, options=shape)
        folder = PlanFolder(out, plan)
        with (
            folder.open(fresh=True) as claims,
            Encoder(
                self.embedder, shape, batch_size=32, workers=self._workers, index=out, root=self._catalog
            ) as encoder,
        ):
            run = ShardRun(folder, claims, shard_rows=SHARD_ROWS, progress=Progress("", None, shown=False))
            run.encode(encoder, catalog_rows(self._catalog))
        self.shares.append(encoder.model_seconds / (time.perf_counter() - start))
        return VectorStore.open(folder.shard(0) / VECTORS).rows(slice(None))


class Theirs:
    def __init__(self, checkpoint: Path, photos: list[Path], vlm: Any | None, *, opened: bool) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Transformer

        if vlm is None:
            self._model = SentenceTransformer(modules=[Transformer(str(checkpoint)), Normalize()], device="cpu")
        else:
            processor = type(vlm.backbone).load_processor(checkpoint)
            self._model = load_peer(checkpoint, processor, dim=vlm.dim, prompt=vlm.prompts["item"])
        self._photos, self._opened = photos, opened

    def encode(self) -> Any:
        from PIL import Image

        photos = [Image.open(photo) if self._opened else str(photo) for photo in self._photos]
        return self._model.encode(photos, batch_size=32, show_progress_bar=False)


def check_same_vectors(ours: Ours, theirs: Theirs) -> None:
    import numpy as np

    difference = np.abs(ours.encode() - theirs.encode()).max()
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"error: the vectors differ by {difference:.1e}, more than {LARGEST_DIFFERENCE}")


def take_photos(sources: list[Path] | None, folder: Path, count: int, *, side: int = 640) -> list[Path]:
    """So many photos in a folder of their own: links to those of `sources`, drawn by lot where there are several.

    Without `sources` they are made.
    """
    import numpy as np

    from demo import products
    from fanoise.images import IMAGE_SUFFIXES

    folder.mkdir()
    if sources is not None:
        found = [
            path for source in sources for path in sorted(source.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if len(found) < count:
            raise SystemExit(f"error: the folders hold {len(found)} photos, not the {count} of --count")
        if len(sources) > 1:
            found = [found[place] for place in np.random.default_rng(5).permutation(len(found))]
        found = found[:count]
        for number, path in enumerate(found):
            (folder / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
    else:
        for number, product in enumerate(products.sample_products(count, seed=5, held_out=False)):
            products.render(product, view=number).resize((side, side)).save(folder / f"{number:06d}.jpg", quality=88)
    return sorted(folder.iterdir())


def save_clip(folder: Path, size: str) -> None:
    """A random CLIP checkpoint that both sides load."""
    import torch
    import transformers

    from tests.fanoise.backbones.tiny_clip import CONTEXT, train_tokenizer

    folder.mkdir()
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    side = {"height": 224, "width": 224}
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "crop_size": side}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    width, layers, heads = CLIPS[size]
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    text = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = transformers.CLIPConfig(
        text_config={**tower, **text, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT},
        vision_config={**tower, "image_size": 224, "patch_size": 32},
        projection_dim=width,
    )
    torch.manual_seed(5)
    transformers.CLIPModel(config).save_pretrained(folder)


def save_vlm(folder: Path, _: str) -> None:
    """A random Qwen2-VL, whose language tower does more than half of the work, as in the 7B; 1,280 tokens at most."""
    from demo.base import BaseSize, save_random_base

    size = BaseSize(
        hidden_size=512, layers=3, heads=8, vision_size=128, vision_layers=2, vision_heads=4, max_pixels=1280 * 28**2
    )
    save_random_base(folder, ["a photo of a thing"], size=size, seed=5)


# memory


def build(embedder: str, catalog: str, out: str, *, workers: int | None) -> None:
    from fanoise import Embedder
    from index.build import Build

    model = Embedder.from_pretrained(embedder, device="cpu")
    Build(embedder=model, catalog=Path(catalog), out=Path(out), workers=workers, progress=False).run()


def show_memory(folder: Path, options: argparse.Namespace) -> None:
    from index.encoding.cut import SHARD_ROWS
    from tests.fanoise.backbones import tiny_clip

    base, catalog, index = folder / "clip", folder / "catalog.csv", folder / "memory"
    tiny_clip.save(base)
    write_catalog(catalog, take_photos(None, folder / "small", SMALL_PHOTOS, side=96), options.rows)
    command = [sys.executable, __file__, "--measure", str(base), str(catalog), str(index)]
    if options.workers is not None:
        command += ["--workers", str(options.workers)]
    encoding, assembling = sampled(command, index, -(-options.rows // SHARD_ROWS))
    rows = []
    for what, measured in (("resident", 0), ("without what is shared", 1)):
        sizes = [sample[measured] for sample in encoding]
        few = max(1, len(sizes) // 20)
        first, last = statistics.median(sizes[:few]), statistics.median(sizes[-few:])
        ends = (first, min(sizes), max(sizes), last)
        after = max(sample[measured] for sample in assembling)
        rows.append((what, *(f"{size:.0f}" for size in ends), *(f"{size / first:.3f}×" for size in ends[1:]), after))
    names = ("lowest", "highest", "last")
    show(
        ("MiB", "after shard 1", *names, *(f"{name} / first" for name in names), "afterwards"),
        [(*row[:-1], f"{row[-1]:.0f}") for row in rows],
    )
    print(f"{options.rows:,} rows, {len(encoding)} samples; afterwards: the highest while the index is written")


def write_catalog(path: Path, photos: list[Path], rows: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "image", "price"])
        for row in range(rows):
            photo = photos[row // 5 % len(photos)].relative_to(path.parent) if row % 5 == 0 else ""
            writer.writerow([f"item-{row}", f"thing number {row}" + " and more" * (row % 7), photo, row % 100])


Sizes = tuple[float, float]


def sampled(command: list[str], index: Path, count: int) -> tuple[list[Sizes], list[Sizes]]:
    """MiB of a process and its children, resident and proportional: from the first shard on, and after the last.

    Args:
        count: of shards.
    """
    process = subprocess.Popen(command)
    encoding: list[Sizes] = []
    assembling: list[Sizes] = []
    while process.poll() is None:
        start = time.perf_counter()
        shards = sum(1 for _ in index.glob("encoding/*/shard-*"))
        begun = any(index.glob(".partial-generation/vectors.npy")) or any(index.glob("generation-*"))
        sizes = [memory_of(pid) for pid in tree(process.pid)]
        total = (sum(one[0] for one in sizes), sum(one[1] for one in sizes))
        if begun or shards == count:
            assembling.append(total)
        elif shards:
            encoding.append(total)
        time.sleep(max(0.0, 1 / SAMPLES_A_SECOND - (time.perf_counter() - start)))
    if process.returncode:
        raise SystemExit(process.returncode)
    return encoding, assembling or encoding[-1:]


def tree(pid: int) -> Iterable[int]:
    yield pid
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from tree(int(child))


def memory_of(pid: int) -> Sizes:
    """MiB of a process: resident, and proportional, in which a page that n processes share counts as 1/n."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
        return values["Rss"], values["Pss"]
    return 0.0, 0.0


if __name__ == "__main__":
    main()
