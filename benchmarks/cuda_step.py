"""A training step at the size of Qwen2-VL-2B on a CUDA device, for several chunk sizes, with noise and without.

Random weights of the 2B shape, made on the device; LoRA of rank 8, bfloat16, ZeRO 1, one process; the trainer's own
step on its own DeepSpeed engine. A pair is a text query and an image with text, all of one size. The batch lies in the
host's memory, collated, as a data worker leaves it.

FLOPs are 2 x parameters x tokens for each forward pass of a tower (attention's share that grows with the square of the
length, and the embeddings, are left out). A frozen tower needs its forward pass; one with LoRA also gradients through
its frozen weights, as much again; a trained one twice as much again. `share of peak` counts only that; `executed` adds
what the step runs on top to save memory, as counted while it runs: GradCache's second forward passes, which a frozen
tower is spared, and with checkpointing the language tower's recomputation.
"""

import argparse
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from timing import how, paired, show

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16, from the data sheets (SXM)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256, help="pairs a step")
    parser.add_argument("--chunks", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="chunk sizes, ascending")
    parser.add_argument("--image-size", type=int, default=448, help="pixels on a side; 28 x 28 make a token")
    parser.add_argument("--words", type=int, default=24, help="length of each text")
    parser.add_argument("--noise", type=float, default=0.1, help="strength")
    parser.add_argument("--every-parameter", action="store_true", help="train everything, not LoRA")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each kind for each chunk size")
    parser.add_argument("--peak", type=float, help="bfloat16 TFLOP/s of the device, where the script does not know it")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu needs --tiny")
    parser.add_argument("--tiny", action="store_true", help="two small layers: to try the script, not to measure")
    options = parser.parse_args()

    from fanoise.process import prepare_process, settle_accelerator

    prepare_process()
    settle_accelerator()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, nothing to measure")
        return
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu needs --tiny")
    if options.device == "cpu" and torch.cuda.is_available():
        parser.error("--device cpu is for machines without a CUDA device; hide it by CUDA_VISIBLE_DEVICES=")
    peak = options.peak and options.peak * 1e12
    if options.device == "cuda":
        name = torch.cuda.get_device_name()
        peak = peak or next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)
        if peak is None:
            parser.error(f"the peak of {name} is not known; pass --peak in TFLOP/s")
    rows = []
    with TemporaryDirectory(prefix="fanoise-benchmark-") as folder:
        for checkpointing in (False, True):
            rows += sweep(Path(folder), options, peak, checkpointing=checkpointing)
    show(
        (
            *("checkpointing", "chunk", "pairs/s", "without ms", "with ms", "with / without", "loss stage: noise adds"),
            *("peak GiB", "share of peak", "executed"),
        ),
        rows,
    )
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    size = f"images of {options.image_size}² pixels"
    print(f"{where}, batch {options.batch_size}, {size}, strength {options.noise}; {how()}")


def sweep(folder: Path, options: argparse.Namespace, peak: float | None, *, checkpointing: bool) -> list[list[str]]:
    """A row for each chunk size, up to the first that does not fit."""
    import setting
    import torch

    training, towers = start(folder, options, checkpointing=checkpointing)
    kinds = {"with": training.objective(options.noise), "without": training.objective(0.0)}
    items = make_items(options)
    rows = []
    for chunk in options.chunks:
        row = ["on" if checkpointing else "off", str(chunk)]
        batch = make_batch(training.embedder, items, chunk)
        try:
            needed, executed = count_flops(training, towers, batch, kinds["without"], recomputed=checkpointing)
            if training.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times = paired(
                {
                    name: partial(finished, partial(training.step, batch, objective))
                    for name, objective in kinds.items()
                },
                rounds=options.rounds,
            )
        except torch.OutOfMemoryError:
            rows.append([*row, "out of memory", *[""] * 7])
            break
        stage = setting.LossStage(training, batch)
        losses = paired(
            {name: partial(finished, partial(stage.run, objective)) for name, objective in kinds.items()},
            rounds=50,
            warmup=5,
        )
        added, without = losses.median_ms("with") - losses.median_ms("without"), times.median_ms("without")
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if training.device.type == "cuda" else "–"
        shares = [f"{flops / (without / 1e3) / peak:.1%}" if peak else "–" for flops in (needed, executed)]
        rows.append(
            [
                *(*row, f"{options.batch_size / (without / 1e3):.1f}", f"{without:.0f}"),
                *(f"{times.median_ms('with'):.0f}", str(times.ratio("with", "without"))),
                *(f"{added:.1f} ms = {added / without:.2%}", memory, *shares),
            ]
        )
    training.engine.destroy()
    del training, towers
    gc.collect()  # the engine is full of cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return rows


def finished(call: Callable[[], object]) -> None:
    """Run it and wait for the device."""
    import torch

    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start(folder: Path, options: argparse.Namespace, *, checkpointing: bool) -> tuple[Any, list["Tower"]]:
    """The trainer's parts around a model of random weights, and its towers."""
    import setting
    import torch
    import transformers

    from demo.base import BaseSize, save_random_base
    from fanoise.backbones.qwen_vl import Qwen2VLBackbone
    from fanoise.embedder import Embedder, EmbedderSpec
    from trainer.config import DataConfig, LoraConfig, ModelConfig, RunConfig
    from trainer.engine import init_process_group, make_engine, resolve_dtype
    from trainer.model import add_lora

    transformers.utils.logging.disable_progress_bar()
    config = RunConfig(
        model=ModelConfig(base=str(folder / "base")),
        data=DataConfig(pairs=["made here"]),
        output_dir=folder / "run",
        lora=LoraConfig(enabled=not options.every_parameter, rank=8),
        batch_size=options.batch_size,
        chunk_size=min(options.chunks),
        precision="bf16" if options.device == "cuda" else "fp32",
    )
    device = init_process_group()
    small = BaseSize(hidden_size=64, layers=2, heads=2, vision_size=64, vision_layers=2, vision_heads=2)
    if not (folder / "base").exists():  # for its tokenizer and image processor
        save_random_base(folder / "base", ["a small thing"], size=small, seed=0)
    shape = transformers.AutoConfig.from_pretrained(folder / "base")
    if not options.tiny:
        shape = of_2b(shape)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(resolve_dtype(config))
    try:
        with device:
            model = Qwen2VLBackbone.model_class(shape)
    finally:
        torch.set_default_dtype(default)
    backbone = Qwen2VLBackbone(model=model, processor=Qwen2VLBackbone.load_processor(folder / "base"))
    towers = towers_of(model)  # before adapters are put around
    if config.lora.enabled:
        add_lora(backbone, config.lora)
    if checkpointing:
        backbone.unwrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    embedder = Embedder(
        backbone, EmbedderSpec(max_pixels=options.image_size**2), path=folder / "base", device=str(device)
    )
    embedder.module.train()
    return setting.Training(config, make_engine(embedder.module, config), embedder, device), towers


def of_2b(small: Any) -> Any:
    """Qwen2-VL-2B's shape with the special tokens of another checkpoint."""
    import transformers

    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "pad_token_id": small.text_config.pad_token_id,
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
        tie_word_embeddings=True,
        **{name: getattr(small, name) for name in tokens},
    )


class Tower:
    """Counts the tokens that go through a tower.

    Args:
        length: of the tower's input, from its arguments.
        parameters: that each token meets.
    """

    def __init__(self, module: Any, length: Callable[..., int], parameters: float) -> None:
        self._module, self._length, self._parameters = module, length, parameters
        self.tokens = 0
        module.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.tokens += self._length(*inputs, **named)

    def flops(self, tokens: int, *, recomputed: bool) -> tuple[float, float]:
        """Needed for a step on so many tokens, and executed, if `self.tokens` were counted in the step.

        Args:
            recomputed: every layer's forward pass runs once more in the backward pass.
        """
        trained = [parameter.requires_grad for parameter in self._module.parameters()]
        backward = 2 if all(trained) else int(any(trained))  # in forward passes
        again = tokens if recomputed and backward else 0
        needed, executed = (1 + backward) * tokens, self.tokens + backward * tokens + again
        return 2 * self._parameters * needed, 2 * self._parameters * executed


def towers_of(model: Any) -> list[Tower]:
    """Image and language tower; a patch is a token of the former, four of them one of its last part."""
    visual, language = model.model.visual, model.model.language_model
    last = size_of(visual.merger)
    return [
        Tower(visual, lambda patches, *_, **__: len(patches), size_of(visual) - last + last / 4),
        Tower(
            language,
            lambda *_, inputs_embeds, **__: inputs_embeds.shape[0] * inputs_embeds.shape[1],
            size_of(language) - size_of(language.embed_tokens),
        ),
    ]


def size_of(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_flops(training: Any, towers: list[Tower], batch: Any, objective: Any, *, recomputed: bool) -> list[float]:
    """Needed and executed FLOPs of a step, which this runs."""
    chunks = [*batch.query.chunks, *batch.positive.chunks]
    patches = sum(len(chunk["pixel_values"]) for chunk in chunks if "pixel_values" in chunk)
    tokens = sum(chunk["input_ids"].numel() for chunk in chunks)
    for tower in towers:
        tower.tokens = 0
    training.step(batch, objective)
    counts = [
        tower.flops(length, recomputed=recomputed) for tower, length in zip(towers, (patches, tokens), strict=True)
    ]
    return [sum(column) for column in zip(*counts, strict=True)]


def make_items(options: argparse.Namespace) -> list[tuple[Any, Any]]:
    """Queries and their positives, all of one size: random words, and random pixels with random words."""
    import numpy as np
    from PIL import Image

    from fanoise.catalog import Item

    rng = np.random.default_rng(0)
    size = (options.image_size, options.image_size, 3)

    def text() -> str:
        return " ".join(rng.choice(["small", "thing"], options.words))

    return [
        (Item(text=text()), Item(text=text(), image=Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))))
        for _ in range(options.batch_size)
    ]


def make_batch(embedder: Any, items: list[tuple[Any, Any]], chunk: int) -> Any:
    import numpy as np

    from trainer.batches import StepBatch
    from trainer.gradcache import Side

    cuts = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    return StepBatch(
        step=1,
        query=Side([embedder.collate([query for query, _ in cut], "query") for cut in cuts]),
        positive=Side([embedder.collate([positive for _, positive in cut], "item") for cut in cuts]),
        negative=Side([]),
        rows=list(range(len(items))),
        negative_counts=[0] * len(items),
        valid_answers=np.zeros((len(items), len(items)), dtype=bool),
    )


if __name__ == "__main__":
    main()
