"""Pairs per second of the trainer against sentence-transformers' CachedMultipleNegativesRankingLoss.

Both train the same random Qwen2-VL (1.8 M parameters) on the same captions and photos in the same order: same batch,
same chunk (`mini_batch_size`), temperature (1 / scale), AdamW, schedule, gradient clipping, prompts and pixels. Before
anything is timed, the loss of the first batch must agree. Data is part of the time on both sides: reading photos,
tokenising and image processing, in the training process or in as many workers; ours by `StepBatches`, theirs by
`SentenceTransformerDataCollator`. Ours is the trainer's own step on its own DeepSpeed engine (ZeRO 1), without noise,
metrics included. Theirs is the loop of `SentenceTransformerTrainer` without its callbacks and logging, with the
optimiser it takes by default (AdamW, fused); it gets the image processor that is loaded here for both, and a chat
template that spells an image as ours does, since a random checkpoint has none.

Needs: pip install sentence-transformers
"""

import argparse
from collections.abc import Iterable
from functools import partial
from typing import Any

from peer import load_peer
from timing import clock_of, how, paired, show

LARGEST_DIFFERENCE = 1e-4
"""Of the first losses; padding to another width moves the last digits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256, help="pairs a step")
    parser.add_argument("--chunk-size", type=int, default=32, help="rows that go through the model at once")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--steps", type=int, default=1, help="training steps in a turn; take several with workers")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches, on either side")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--varied", action="store_true", help="captions of one to twelve sentences, not one each")
    options = parser.parse_args()
    try:
        import sentence_transformers
    except ImportError:
        parser.exit(2, "error: sentence-transformers is not installed; pip install sentence-transformers\n")

    from fanoise.process import prepare_process, settle_accelerator

    prepare_process()
    settle_accelerator()
    import setting
    import torch

    torch.set_num_threads(options.threads)
    # with workers what counts is how long one waits for them
    clock = clock_of(options.threads if options.workers == 0 else 0)
    rows = []
    with setting.workspace(pairs=4 * options.batch_size, varied=options.varied) as folder:
        for lora in (True, False):
            config = setting.make_config(
                folder, batch_size=options.batch_size, chunk_size=options.chunk_size, lora=lora, noise=0.0
            )
            ours = Ours(setting.Training.start(config), options.workers)
            theirs = Theirs(ours.training, options.workers)
            check_same_loss(ours, theirs)
            sides: dict[str, Any] = {"ours": ours, "theirs": theirs}
            whole = paired(
                {name: partial(side.train, options.steps) for name, side in sides.items()},
                rounds=options.rounds,
                clock=clock,
            )
            step = paired(
                {name: partial(side.step, next(iter(side.batches(1)))) for name, side in sides.items()},
                rounds=options.rounds,
                clock=clock_of(options.threads),
            )
            pairs = options.batch_size * options.steps
            speeds = [f"{1e3 * pairs / whole.median_ms(name):.0f}" for name in ("theirs", "ours")]
            ratios = (whole.ratio("theirs", "ours"), step.ratio("theirs", "ours"))
            rows.append(("LoRA" if lora else "every parameter", *speeds, *ratios))
            ours.training.engine.destroy()
    show(("trained", "theirs pairs/s", "ours pairs/s", "ours / theirs", "without the data path"), rows)
    print(
        f"sentence-transformers {sentence_transformers.__version__}, batch {options.batch_size}, "
        f"chunk {options.chunk_size}, {options.workers} worker(s), {options.threads} thread(s); {how(clock)}"
    )


class Ours:
    def __init__(self, training: Any, workers: int) -> None:
        self.training, self._workers, self._done = training, workers, 0
        self._objective, self._batches = training.objective(0.0), training.batches()

    def batches(self, count: int) -> Iterable[Any]:
        """The next batches, and no others."""
        from trainer.batches import step_loader

        first, self._done = self._done + 1, self._done + count
        return step_loader(self._batches, first_step=first, last_step=self._done, workers=self._workers)

    def step(self, batch: Any) -> float:
        return self.training.step(batch, self._objective)["loss"]

    def train(self, steps: int) -> None:
        for batch in self.batches(steps):
            self.step(batch)


class Theirs:
    def __init__(self, training: Any, workers: int) -> None:
        import torch
        from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
        from transformers import get_linear_schedule_with_warmup

        from trainer.batches import load_plan

        config, embedder = training.config, training.embedder
        self._plan, self._workers, self._done = load_plan(config), workers, 0
        processor = type(embedder.backbone).load_processor(config.model.base)
        processor.image_processor.size = embedder.backbone.processor.image_processor.size
        self._model = load_peer(config.model.base, processor, dim=embedder.dim)
        if config.lora.enabled:
            from peft import LoraConfig

            targets = embedder.backbone.lora_targets
            settings = LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=targets)
            self._model.add_adapter(settings)
        self._model.train()
        self._loss = CachedMultipleNegativesRankingLoss(
            self._model, scale=1 / config.temperature, mini_batch_size=config.chunk_size
        )
        self._collate = SentenceTransformerDataCollator(self._model.preprocess)
        self._trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        expected = sum(p.numel() for p in embedder.module.parameters() if p.requires_grad)
        if sum(p.numel() for p in self._trained) != expected:
            raise SystemExit("error: the two sides do not train equally many parameters")
        optimizer = config.optimizer
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=optimizer.lr, weight_decay=optimizer.weight_decay, fused=True
        )
        self._schedule = get_linear_schedule_with_warmup(self._optimizer, optimizer.warmup_steps, config.max_steps)
        self._max_norm = optimizer.max_grad_norm

    def batches(self, count: int) -> Iterable[Any]:
        """The next batches, and no others; the same as ours."""
        from torch.utils.data import DataLoader

        first, self._done = self._done + 1, self._done + count
        pairs = [self._plan.pairs(step) for step in range(first, self._done + 1)]
        return DataLoader(
            pairs,  # type: ignore[arg-type]  # a list does
            batch_size=None,
            collate_fn=self._collated,
            num_workers=self._workers,
            prefetch_factor=4 if self._workers else None,
        )

    def _collated(self, pairs: list[Any]) -> dict[str, Any]:
        from PIL import Image

        photos = [Image.open(pair.positive.image).convert("RGB") for pair in pairs]
        return self._collate(
            [{"anchor": pair.query.text, "positive": photo} for pair, photo in zip(pairs, photos, strict=True)]
        )

    def step(self, batch: dict[str, Any]) -> float:
        import torch

        columns = [
            {key.removeprefix(f"{column}_"): value for key, value in batch.items() if key.startswith(f"{column}_")}
            for column in ("anchor", "positive")
        ]
        loss = self._loss(columns, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self._max_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    def train(self, steps: int) -> None:
        for batch in self.batches(steps):
            self.step(batch)


def check_same_loss(ours: Ours, theirs: Theirs) -> None:
    losses = [side.step(next(iter(side.batches(1)))) for side in (ours, theirs)]
    if abs(losses[0] - losses[1]) > LARGEST_DIFFERENCE * losses[0]:
        raise SystemExit(f"error: the first batch has loss {losses[0]} here and {losses[1]} there; they must agree")


if __name__ == "__main__":
    main()
