"""An embedder whose model takes as long as wanted, and catalogues for it; builds and adds as child processes.

`python -m tests.index.encoding.fakes` starts builds that are asked for as JSON lines, see `serve`.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fanoise.catalog import Item
from fanoise.errors import ImageError, cli_errors
from fanoise.images import open_image
from tests.fake_embedder import FakeEmbedder, FakeModel

DIM = 16
ENCODING_MARK = "encoding"


class SlowModel(FakeModel):
    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self.delay_s = delay_s
        self.mark: Path | None = None
        """A file that is made when the first batch comes."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.mark is not None:
            self.mark.touch()
        time.sleep(self.delay_s)
        return super().forward(batch)


class SplitEmbedder(FakeEmbedder):
    """A vector is a fixed random function of the text and of the mean colours, as of the first conftest's embedder."""

    def __init__(self, path: str = "split", *, weights: str = "w1", delay_s: float = 0.0) -> None:
        super().__init__(path, dim=DIM, weights=weights)
        self.module = SlowModel(delay_s)

    def vector_of(self, item: Item) -> np.ndarray:
        return vector_of(item)


def vector_of(item: Item) -> np.ndarray:
    if item.text == "refused":
        raise ImageError("too thin for the vision tower")
    vector = np.zeros(DIM)
    if item.text:
        seed = int.from_bytes(hashlib.sha256(item.text.encode()).digest()[:8], "big")
        vector += np.random.default_rng(seed).normal(size=DIM)
    if item.image is not None:
        pixels = np.asarray(open_image(item.image).resize((2, 2)), dtype=float).ravel() / 255 - 0.5
        vector += np.random.default_rng(7).normal(size=(DIM, 12)) @ pixels
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def draw(path: Path, number: int, size: tuple[int, int] = (48, 36)) -> None:
    """A picture of 6 × 5 coloured patches, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, size=(5, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(path)


def write_catalog(path: Path, count: int, *, images: int = 0, text: str = "thing number {}") -> Path:
    """JSONL with id, text, price, and a picture of their own for every second of the first rows, `images` in all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        row: dict[str, Any] = {"id": f"r{i}", "text": text.format(i) + " and more" * (i * 7 % 5), "price": i}
        if i % 2 == 0 and i < 2 * images:
            row["image"] = f"pictures/{i}.png"
            if not (path.parent / row["image"]).exists():
                draw(path.parent / row["image"], i)
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def serve() -> None:
    """Fork a build for each request, from a process that has imported everything; or wait for one that was started.

    {"start": {"catalog", "out", "delay_s" per batch, "die_at" a call that touches `out`, and fields of Build}, "logs"}
    {"wait": pid, "block": bool}
    With "existing" among the first, as of `add_items`, it is an add or update.
    """
    import pyarrow as pa

    import index.build
    import index.update  # noqa: F401

    pa.array(np.zeros(1))  # imports pandas, where it is installed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits none
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = os.fork()
            if answer == 0:
                os._exit(_build(request["start"], Path(request["logs"])))
        else:
            pid, status = os.waitpid(request["wait"], 0 if request["block"] else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


def _build(options: dict[str, Any], logs: Path) -> int:
    from index.build import Build
    from index.update import add_items

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(logs / name, os.O_WRONLY | os.O_CREAT), descriptor)
    embedder: Any = SplitEmbedder(delay_s=options.pop("delay_s", 0.0))
    catalog, out = Path(options.pop("catalog")), Path(options.pop("out"))
    embedder.module.mark = logs / ENCODING_MARK
    _die_before(options.pop("die_at", 0), out)
    try:
        with cli_errors():
            if "existing" in options:
                add_items(embedder, catalog, out, progress=False, **options)
                return 0
            built = Build(embedder=embedder, catalog=catalog, out=out, progress=False, **options).run()
        counts = {name: getattr(built, name) for name in ("encoded", "reused", "removed", "rejected")}
        print(json.dumps({"done": built.manifest is not None, "here": sum(embedder.module.batches), **counts}))
        return 0
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _die_before(call: int, folder: Path) -> None:
    """Let SIGKILL end this process, not its workers, before its so manieth call that touches the folder; 0: never."""
    calls, process = 0, os.getpid()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        if os.getpid() == process and any(
            isinstance(argument, (str, os.PathLike)) and str(folder) in str(argument) for argument in arguments
        ):
            calls += 1
            if calls == call:
                os.kill(process, signal.SIGKILL)

    if call:
        sys.addaudithook(count)


if __name__ == "__main__":
    serve()
