"""GradCache: memory that hardly grows with the batch, and what it costs in time.

Memory: one fresh process for each batch size, same chunk. `step` is what training steps add at their highest point to
the model, optimiser and input batch that are there already: activations, gradients of a chunk, cached embeddings, with
LoRA also the features of images, loss. `input` is the collated batch (pixels, tokens), which any trainer must hold in
the host's memory. `process` is the highest resident size of the whole process, libraries and weights included.
Time: a step in chunks against the same step with one graph over the whole batch (two forward passes and a backward pass
against one and one: 4/3 if a backward pass costs two forward passes, less with LoRA, where the image tower runs once).
A random Qwen2-VL on the CPU, of 1.8 M parameters unless --hidden-size says otherwise; the trainer's own step on its own
DeepSpeed engine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from timing import clock_of, how, paired, show

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
"""glibc gives what is freed back at once: the resident size is what is alive, not what once was."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk-size", type=int, default=32, help="rows that go through the model at once")
    parser.add_argument("--small", type=int, default=64, help="smaller batch of the memory table")
    parser.add_argument("--large", type=int, default=1024, help="larger batch of the memory table")
    parser.add_argument("--batch-size", type=int, default=256, help="batch of the time table")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each kind in the time table")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repetitions", type=int, default=1, help="fresh processes for each entry of the memory table")
    parser.add_argument("--hidden-size", type=int, default=128, help="of the language tower, which has 3 layers")
    parser.add_argument("--only", choices=("memory", "time"), help="one of the two tables")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one fresh process: folder, batch size, lora, as JSON
    options = parser.parse_args()

    from fanoise.process import prepare_process, settle_accelerator

    prepare_process()
    settle_accelerator()
    import setting
    import torch

    torch.set_num_threads(options.threads)
    if options.measure:
        folder, batch_size, lora = json.loads(options.measure)
        print(json.dumps(memory(setting, Path(folder), batch_size, options.chunk_size, lora=lora)))
        return
    size = replace(setting.BaseSize(), hidden_size=options.hidden_size)
    with setting.workspace(pairs=max(options.large, options.batch_size), size=size) as folder:
        if options.only != "time":
            show_memory(folder, options)
        if options.only != "memory":
            show_time(setting, folder, options)


def show_memory(folder: Path, options: argparse.Namespace) -> None:
    rows = []
    for lora in (True, False):
        runs: dict[int, list[dict[str, float]]] = {options.small: [], options.large: []}
        for _ in range(options.repetitions):
            for size, found in runs.items():
                found.append(in_fresh_process(folder, size, options, lora=lora))
        for part in ("step", "input", "process"):
            small, large = (statistics.median(run[part] for run in found) for found in runs.values())
            what = f"{'LoRA' if lora else 'every parameter'}: {part}"
            rows.append((what, f"{small:.1f}", f"{large:.1f}", f"{large / small:.3f}×"))
    show((f"memory, chunk {options.chunk_size}", f"batch {options.small}: MiB", f"{options.large}: MiB", "ratio"), rows)


def in_fresh_process(folder: Path, batch_size: int, options: argparse.Namespace, *, lora: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--chunk-size", str(options.chunk_size), "--threads", str(options.threads)]
    command += ["--measure", json.dumps([str(folder), batch_size, lora])]
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory(setting: Any, folder: Path, batch_size: int, chunk_size: int, *, lora: bool) -> dict[str, float]:
    """MiB that this process takes for steps of one batch size."""
    config = setting.make_config(folder, batch_size=batch_size, chunk_size=chunk_size, lora=lora, noise=0.1)
    training = setting.Training.start(config)
    objective = training.objective(0.1)
    training.step(training.batches(batch_size=2 * chunk_size)[1], objective)  # makes the optimiser's state
    batch = training.batches()[1]
    chunks = (*batch.query.chunks, *batch.positive.chunks)
    held = sum(value.numel() * value.element_size() for chunk in chunks for value in chunk.values())
    level = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
    for _ in range(2):
        training.step(batch, objective)
    highest = resident("VmHWM")
    return {"step": highest - level, "input": held / 2**20, "process": highest}


def resident(field: str) -> float:
    """MiB: VmRSS is the size now, VmHWM the highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def show_time(setting: Any, folder: Path, options: argparse.Namespace) -> None:
    clock = clock_of(options.threads)
    rows = []
    for lora in (True, False):
        config = setting.make_config(
            folder, batch_size=options.batch_size, chunk_size=options.chunk_size, lora=lora, noise=0.1
        )
        training = setting.Training.start(config)
        objective, cached = training.objective(0.1), training.batches()[1]
        # a single chunk a side is one graph over the whole batch
        whole = training.batches(chunk_size=options.batch_size)[1]
        steps = {
            "cached": partial(training.step, cached, objective),
            "uncached": partial(training.step, whole, objective),
        }
        times = paired(steps, rounds=options.rounds, clock=clock)
        milliseconds = [f"{times.median_ms(name):.0f}" for name in ("uncached", "cached")]
        rows.append(("LoRA" if lora else "every parameter", *milliseconds, times.ratio("cached", "uncached")))
        training.engine.destroy()
    show((f"time, batch {options.batch_size}", "one graph ms", f"chunks of {options.chunk_size} ms", "ratio"), rows)
    print(f"{options.threads} thread(s); {how(clock)}")


if __name__ == "__main__":
    main()
