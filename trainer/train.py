"""The training loop: one readable function on top of `deepspeed.initialize`."""

import json
import math
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fanoise.distributed import gather_rows, rank, world_size
from fanoise.embedder import Embedder, EmbedderSpec, base_reference, read_spec, weights_digest
from fanoise.errors import ArtifactError, ConfigError, TrainingError
from fanoise.noise import noise_in_logits
from trainer.batches import BatchPlan, StepBatch, StepBatches, load_plan, step_loader
from trainer.checkpoint import cut_log, load_newest_checkpoint, save_checkpoint
from trainer.config import RunConfig
from trainer.engine import init_process_group, make_engine, resolve_dtype
from trainer.gradcache import gradcache_backward
from trainer.model_card import model_card
from trainer.objective import Labels, Objective
from trainer.run_folder import (
    METRICS_FILE,
    REJECTS_FILE,
    check_run_folder,
    is_finished,
    lock_run_folder,
    publish,
    write_config,
)


def train(config: RunConfig) -> Path:
    """Train to `max_steps` and leave a finished run folder; returns it. The same on every process."""
    run = config.output_dir
    check_run_folder(config, _plain(config))
    if config.resume == "auto" and is_finished(run):
        return run
    plan = load_plan(config)  # bad input is found before a weight is loaded
    device = init_process_group()
    if world_size() > config.batch_size:
        raise ConfigError(f"batch_size ({config.batch_size}) must be at least the number of processes ({world_size()})")
    torch.manual_seed(config.seed)
    embedder = build_embedder(config, device)
    dist.barrier()  # every process has checked the folder
    lock = lock_run_folder(run) if rank() == 0 else None
    try:
        if rank() == 0:
            write_config(run, _plain(config))
            print(_summary(config, embedder), file=sys.stderr)
        dist.barrier()
        _train_in(run, config, plan, embedder, device)
    finally:
        if lock is not None:
            os.close(lock)
    return run


def _train_in(run: Path, config: RunConfig, plan: BatchPlan, embedder: Embedder, device: torch.device) -> None:
    engine = make_engine(embedder.module, config)
    done = load_newest_checkpoint(engine, run) if config.resume == "auto" else 0
    objective = Objective(config.noise, temperature=config.temperature, seed=config.seed)
    batches = StepBatches(plan, embedder, config, rank=rank(), world_size=world_size())
    loader = step_loader(batches, first_step=done + 1, last_step=config.max_steps, workers=config.data.workers)
    if rank() == 0:
        for name in (METRICS_FILE, REJECTS_FILE):
            cut_log(run / name, done)
    seconds = 0.0
    with _metrics_file(run, done) as metrics, _progress(config, done) as bar:
        before = time.perf_counter()
        for batch in loader:
            torch.manual_seed(_dropout_seed(config.seed, batch.step))
            row = train_step(engine, objective, batch, device)
            seconds += time.perf_counter() - before
            row["items_per_s"] = round(2 * config.batch_size / (time.perf_counter() - before), 1)
            before = time.perf_counter()
            if rank() == 0:
                metrics.write(json.dumps(row) + "\n")
                metrics.flush()
                bar.set_postfix(loss=f"{row['loss']:.3f}", items_per_s=row["items_per_s"], refresh=False)
                bar.update()
                if config.monitors:
                    engine.monitor.write_events([(f"train/{k}", v, batch.step) for k, v in row.items() if k != "step"])
            _note_rejects(run, batch)
            if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                raise TrainingError(
                    f"step {batch.step} has loss {row['loss']} and gradient norm {row['grad_norm']}; the newest "
                    f"checkpoint is in {run / 'checkpoints'}; lower optimizer.lr or noise.strength"
                )
            if batch.step % config.save_every == 0 and batch.step < config.max_steps:
                save_checkpoint(engine, run, batch.step, keep=config.keep_checkpoints)
    state_dict = _gathered_state_dict(engine, config)
    if rank() == 0:
        embedder.spec = replace(embedder.spec, noise=asdict(config.noise))
        card = model_card(config, run / METRICS_FILE, seconds=seconds, dim=embedder.dim, device=str(device))
        publish(embedder, run, state_dict=state_dict, card=card)
    dist.barrier()
    engine.destroy()


def build_embedder(config: RunConfig, device: torch.device) -> Embedder:
    """The base checkpoint as an embedder, with fresh LoRA adapters unless every parameter is trained."""
    base = Path(config.model.base)
    inherited = read_spec(base) if base.is_dir() else EmbedderSpec()
    if inherited.base_model is not None:
        raise ArtifactError(f"model.base {base} is an adapter; start from its base {inherited.base_model!r} instead")
    model = config.model
    embedder = Embedder.from_pretrained(
        config.model.base, device="cpu", dtype=resolve_dtype(config), attention=model.attention
    )
    spec = replace(
        inherited,
        prompts={
            "query": embedder.prompts["query"] if model.query_prompt is None else model.query_prompt,
            "item": embedder.prompts["item"] if model.item_prompt is None else model.item_prompt,
        },
        pooling=inherited.pooling if model.pooling is None else model.pooling,
        max_pixels=inherited.max_pixels if model.max_pixels is None else model.max_pixels,
        max_tokens=inherited.max_tokens if model.max_tokens is None else model.max_tokens,
        noise={},
    )
    if config.lora.enabled:
        spec = replace(
            spec,
            base_model=base_reference(config.model.base, config.output_dir),
            base_revision=getattr(embedder.backbone.model.config, "_commit_hash", None),
            base_weights=weights_digest(config.model.base),
        )
        _add_lora(embedder, config)
    embedder = Embedder(embedder.backbone, spec, path=config.output_dir, device=str(device))
    embedder.module.train()
    embedder.module.normalize = config.noise.features == "normalized"
    return embedder


def train_step(engine: Any, objective: Objective, batch: StepBatch, device: torch.device) -> dict[str, Any]:
    """Gradient, update, and the step's row of `metrics.jsonl`."""
    if not batch.rows:
        raise TrainingError(
            f"step {batch.step}: not one pair of this process's share could be read; see {REJECTS_FILE}"
        )
    labels = _labels(batch, device)
    stats: dict[str, float] = {}

    def loss_of(sides: dict[str, Tensor]) -> Tensor:
        item = torch.cat([sides["positive"], sides["negative"]]) if "negative" in sides else sides["positive"]
        loss = objective.loss(sides["query"], item, labels, step=batch.step)
        stats.update(_similarities(sides["query"].detach(), sides["positive"].detach(), labels))
        strength = objective.strength_at(batch.step)
        stats["noise_energy"] = strength**2 * objective.energy(sides["positive"].detach()) if strength else 0.0
        stats["noise_in_logits"] = noise_in_logits(strength, item.shape[1], objective.temperature)
        return loss

    sides = {
        side: [{key: value.to(device) for key, value in chunk.items()} for chunk in chunks]
        for side, chunks in (("query", batch.query), ("positive", batch.positive), ("negative", batch.negative))
    }
    loss = gradcache_backward(engine, sides, loss_of)
    lr = engine.get_lr()[0]
    # DeepSpeed has the norm only under ZeRO; without it the gradients lie whole on every process
    norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    if torch.isfinite(loss) and torch.isfinite(norm):  # never update on a broken loss
        engine.step()
    grad_norm = float(norm if engine.get_global_grad_norm() is None else engine.get_global_grad_norm())
    return {"step": batch.step, "loss": float(loss), "lr": lr, "grad_norm": grad_norm, **stats}


def _labels(batch: StepBatch, device: torch.device) -> Labels:
    rows = gather_rows(torch.tensor(batch.rows, device=device))
    counts = gather_rows(torch.tensor([len(batch.rows)], device=device))
    owners = gather_rows(torch.tensor(batch.has_negative, device=device)).nonzero()[:, 0]
    exclude = torch.from_numpy(batch.valid_answers).to(device)[rows][:, rows]
    return Labels(exclude=exclude, negative_owner=owners, rows_per_process=tuple(counts.tolist()))


def _similarities(query: Tensor, positive: Tensor, labels: Labels) -> dict[str, float]:
    similarity = F.normalize(query.float(), dim=-1) @ F.normalize(positive.float(), dim=-1).T
    other = ~labels.exclude
    other.fill_diagonal_(False)
    return {
        "positive_similarity": round(float(similarity.diagonal().mean()), 5),
        "negative_similarity": round(float(similarity[other].mean()), 5) if bool(other.any()) else 0.0,
    }


def _add_lora(embedder: Embedder, config: RunConfig) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.targets or embedder.backbone.lora_targets,
    )
    try:
        embedder.backbone.model = get_peft_model(embedder.backbone.model, settings)
    except ValueError as error:
        raise ConfigError(f"lora.targets {settings.target_modules!r} matches no module ({error})") from None


def _gathered_state_dict(engine: Any, config: RunConfig) -> dict[str, Tensor] | None:
    """Under ZeRO 3 every process holds a part of each parameter; elsewhere none is needed."""
    if config.zero_stage < 3:
        return None
    import deepspeed

    state = {}
    for name, parameter in engine.module.model.named_parameters():
        if parameter.requires_grad or not config.lora.enabled:
            with deepspeed.zero.GatheredParameters([parameter]):
                state[name] = parameter.detach().cpu().clone()
    return state


def _note_rejects(run: Path, batch: StepBatch) -> None:
    if batch.rejects:
        with (run / REJECTS_FILE).open("a") as file:
            file.writelines(json.dumps(reject) + "\n" for reject in batch.rejects)


def _metrics_file(run: Path, done: int) -> Any:
    return (run / METRICS_FILE).open("a" if done else "w") if rank() == 0 else Path(os.devnull).open("w")


def _summary(config: RunConfig, embedder: Embedder) -> str:
    """One line on what is about to run."""
    parameters = list(embedder.module.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    strength = config.noise.strength
    logits = noise_in_logits(strength, embedder.dim, config.temperature)
    noise = f"{config.noise.scaling} noise {strength} ({logits:.2f} logits)" if strength else "no noise"
    return (
        f"{config.output_dir}: {trained / 1e6:.2f} of {total / 1e6:.2f} M parameters, "
        f"{config.max_steps} steps of {config.batch_size} pairs over {world_size()} process(es), "
        f"{str(resolve_dtype(config)).removeprefix('torch.')}, ZeRO {config.zero_stage}, {noise}"
    )


def _progress(config: RunConfig, done: int) -> tqdm:
    return tqdm(
        total=config.max_steps,
        initial=done,
        desc=f"train {config.output_dir.name}",
        unit="step",
        disable=rank() != 0,
        mininterval=0.5,
    )


def _dropout_seed(seed: int, step: int) -> int:
    return int(np.random.default_rng([seed, 2, step, rank()]).integers(2**62))


def _plain(config: RunConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config), default=str))
