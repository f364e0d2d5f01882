"""Single steps and whole runs, on any number of processes: what the loss makes of a batch, and when a run must stop.

Run by test_step.py with a JSON object: `base`, `out`, and `jobs`. A job is a number of `processes` and what they do, by
name: `steps`, then `runs`. A step is settings of a run, whose first `StepBatch` goes through `train_step`; the result
is written beside what plain autograd gives for a loss that is spelled out here. A run is options of the command line.
"""

import contextlib
import io
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from fanoise.process import prepare_process, settle_accelerator

prepare_process()
settle_accelerator()

import forked  # noqa: E402
import torch  # noqa: E402
from gradcache_cases import DEFAULTS, make_embedder  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

import trainer.train  # noqa: E402, F401  (imported once, for all processes)
from fanoise.catalog import Item  # noqa: E402
from fanoise.distributed import rank, world_size  # noqa: E402
from fanoise.embedder import Embedder  # noqa: E402
from fanoise.noise import NoiseConfig  # noqa: E402
from trainer.__main__ import main as train  # noqa: E402
from trainer.batches import StepBatch, StepBatches, load_plan  # noqa: E402
from trainer.config import DataConfig, LoraConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig  # noqa: E402
from trainer.engine import init_process_group, make_engine  # noqa: E402
from trainer.full_state import full_tensors  # noqa: E402
from trainer.objective import Objective  # noqa: E402
from trainer.step import count, train_step  # noqa: E402

TEMPERATURE, SEED = 0.1, 3


def make_config(base: str, step: dict[str, Any]) -> RunConfig:
    """Of the first step over a file, which is one batch."""
    return RunConfig(
        model=ModelConfig(base=base),
        data=DataConfig(pairs=[step["pairs"]]),
        output_dir=Path("unused"),
        noise=NoiseConfig(strength=step.get("noise", 0.0)),
        loss=LossConfig(**step.get("loss", {})),
        lora=LoraConfig(dropout=step.get("dropout", 0.0)),
        optimizer=OptimizerConfig(max_grad_norm=0.0),
        batch_size=len(Path(step["pairs"]).read_text().splitlines()),
        chunk_size=3,
        temperature=TEMPERATURE,
        seed=SEED,
        zero_stage=step.get("stage", 1),
    )


def take_step(name: str, step: dict[str, Any], base: str, out: Path, device: torch.device) -> None:
    config = make_config(base, step)
    embedder = make_embedder(config, {**DEFAULTS, "dropout": config.lora.dropout})
    plan = load_plan(config)
    shares = [
        StepBatches(plan, embedder, config, rank=number, world_size=world_size()) for number in range(world_size())
    ]
    batch = shares[rank()][1]
    batch_of_all = [share[1] for share in shares]
    rows = [int(str(pair.query.id).rpartition(":")[2]) - 1 for pair in plan.pairs(1)]
    expected = Expected(step["pairs"], rows, embedder, config, batch_of_all)
    plain = expected.gradients() if rank() == 0 else {}
    objective = Objective(config.noise, temperature=TEMPERATURE, seed=SEED, loss=config.loss)
    engine = make_engine(embedder.module, config)
    counts = count(batch, device)
    torch.manual_seed(rank())
    row = train_step(
        engine,
        objective,
        batch,
        device,
        views=config.loss.dropout_pairs > 0,
        spectrum=True,
        keep_image_features=config.keeps_image_features,
    )
    # AdamW's first mean is a tenth of the gradient that it received
    found = {name: (mean / 0.1).clone() for name, mean in full_tensors(engine, "exp_avg")}
    engine.destroy()
    if rank() == 0:
        save_file(found, out / f"{name}, found.safetensors")
        save_file(plain, out / f"{name}, expected.safetensors")
        facts = {"row": row, "counts": counts, "loss": expected.loss, "left": len(expected.pairs)}
        facts |= {"tokens": expected.tokens, "filtered": expected.filtered, "rows": [len(b.rows) for b in batch_of_all]}
        (out / f"{name}.json").write_text(json.dumps(facts))


class Expected:
    """A step's loss and gradients from the pair file itself: readable pairs one by one, the loss term by term."""

    def __init__(
        self, file: str, rows: list[int], embedder: Embedder, config: RunConfig, batches: list[StepBatch]
    ) -> None:
        records = [json.loads(line) for line in Path(file).read_text().splitlines()]
        self._folder, self._embedder, self._config, self._batches = Path(file).parent, embedder, config, batches
        self.pairs = [records[row] for row in rows if self._is_readable(records[row])]
        """Of the batch, in its order."""
        self.loss, self.tokens, self.filtered = 0.0, 0, 0

    def gradients(self) -> dict[str, Tensor]:
        module = self._embedder.module
        embedded = self._in_chunks() if self._config.lora.dropout else self._one_by_one()
        loss = self._loss(*embedded)
        loss.backward()
        self.loss = float(loss)
        found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        module.zero_grad()
        return found

    def _loss(self, queries: Tensor, positives: Tensor, negatives: list[Tensor], views: Tensor) -> Tensor:
        noisy = self._perturbed(queries, is_item=False)
        items = self._perturbed(torch.cat([positives, *negatives]), is_item=True)
        count, start, total = len(self.pairs), len(self.pairs), torch.zeros(())
        for i, query in enumerate(noisy):
            own = items[start : start + len(negatives[i])]
            start += len(own)
            others = [items[j] for j in range(count) if j != i and not self._is_answer(i, j)]
            total = total + self._term(query, items[i], [*others, *own])
        weight = self._config.loss.dropout_pairs
        for i, query in enumerate(queries):
            others = [views[j] for j in range(count) if j != i and not self._is_answer(i, j)]
            logits = torch.stack([query @ view for view in (views[i], *others)]) / TEMPERATURE
            total = total + weight * (logits.logsumexp(0) - logits[0])
        return total / count

    def _term(self, query: Tensor, positive: Tensor, others: list[Tensor]) -> Tensor:
        loss, right = self._config.loss, query @ positive
        logits = [right / TEMPERATURE]
        for item in others:
            wrong = query @ item
            if loss.false_negative_margin is not None and float(wrong) > float(right) + loss.false_negative_margin:
                self.filtered += 1
                continue
            logits.append(wrong / TEMPERATURE + loss.hardness * wrong.detach())
        return torch.stack(logits).logsumexp(0) - logits[0]

    def _perturbed(self, x: Tensor, *, is_item: bool) -> Tensor:
        """FANoise with square-root scaling by the singular value decomposition itself."""
        strength = self._config.noise.strength
        if not strength:
            return x
        u, sigma, vt = torch.linalg.svd(x.detach().double(), full_matrices=False)
        root = torch.where(sigma > 1e-5 * sigma[0], sigma, 0).sqrt()
        scale = root / root[root > 0].mean()
        generator = torch.Generator().manual_seed((SEED << 21) + (1 << 1) + is_item)
        noise = torch.randn(len(x), len(x), generator=generator).double() @ u @ torch.diag(scale) @ vt
        return torch.nn.functional.normalize(x + strength / x.shape[1] ** 0.5 * noise.to(x.dtype), dim=-1)

    def _is_answer(self, i: int, j: int) -> bool:
        """Whether the positive of pair j, too, is right for the query of pair i."""
        one, other = self.pairs[i], self.pairs[j]
        same = [
            [one.get(f"{side}_{kind}") for kind in ("text", "image")]
            == [other.get(f"{side}_{kind}") for kind in ("text", "image")]
            for side in ("query", "positive")
        ]
        return any(same) or (one.get("group") is not None and one.get("group") == other.get("group"))

    def _one_by_one(self) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        queries = torch.stack([self._embed(pair, "query") for pair in self.pairs])
        positives = torch.stack([self._embed(pair, "positive") for pair in self.pairs])
        negatives = []
        for pair in self.pairs:
            contents = [{"n_text": text} for text in pair.get("negative_text", [])]
            contents += [{"n_image": image} for image in pair.get("negative_image", []) if self._opens(image)]
            embedded = [self._embed(content, "n") for content in contents]
            negatives.append(torch.stack(embedded) if embedded else queries[:0])
        return queries, positives, negatives, queries

    def _embed(self, record: dict[str, Any], side: str) -> Tensor:
        image = record.get(f"{side}_image")
        item = Item(text=record.get(f"{side}_text"), image=image and Image.open(self._folder / image))
        batch = self._embedder.collate([item], "query" if side == "query" else "item")
        self.tokens += batch["input_ids"].numel()
        return self._embedder.module(batch)[0]

    def _in_chunks(self) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """As each process draws its dropout masks: one chunk after the other, the queries once more at the end."""
        found: dict[str, list[Tensor]] = {"query": [], "positive": [], "negative": [], "view": []}
        for number, batch in enumerate(self._batches):
            torch.manual_seed(number)
            sides = {"query": batch.query, "positive": batch.positive, "negative": batch.negative, "view": batch.query}
            for name, side in sides.items():
                if side.chunks:
                    found[name].append(side.in_order(torch.cat([self._embedder.module(each) for each in side.chunks])))
        whole = {name: torch.cat(parts) for name, parts in found.items()}
        sizes = [count for batch in self._batches for count in batch.negative_counts]
        return whole["query"], whole["positive"], list(whole["negative"].split(sizes)), whole["view"]

    def _is_readable(self, record: dict[str, Any]) -> bool:
        return all(self._opens(record[name]) for name in ("query_image", "positive_image") if name in record)

    def _opens(self, image: str) -> bool:
        try:
            Image.open(self._folder / image).close()
        except OSError:
            return False
        return True


def take_run(name: str, options: list[str], out: Path) -> None:
    said = io.StringIO()
    status: Any = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = train(options)
        except SystemExit as stopped:
            status = stopped.code
    (out / f"{name}, process {rank()}.json").write_text(json.dumps({"status": status, "said": said.getvalue()}))


def work(job: dict[str, Any], base: str, out: Path) -> None:
    torch.set_num_threads(1)
    forked.partition_above(0)
    device = init_process_group()
    for name, step in job["steps"].items():
        take_step(name, step, base, out, device)
    for name, options in job["runs"].items():
        take_run(name, options, out)


def main() -> None:
    task = json.loads(sys.argv[1])
    Embedder.from_pretrained(task["base"], device="cpu")  # what transformers works out once, all processes inherit
    for job in task["jobs"]:
        code = forked.wait(forked.start(partial(work, job, task["base"], Path(task["out"])), job["processes"]))
        if code:
            sys.exit(f"a process of {job['processes']} ended with {code}")


if __name__ == "__main__":
    main()
