"""The training loop: one readable function on top of `deepspeed.initialize`."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fanoise.backbones import load_skeleton
from fanoise.distributed import rank, world_size
from fanoise.embedder import Embedder
from fanoise.errors import ConfigError, TrainingError, printable
from fanoise.storage import write_atomic
from trainer.batches import BatchPlan, StepBatch, StepBatches, load_plan, load_validation, step_loader
from trainer.checkpoint import (
    cut_log,
    gathered_state_dict,
    load_newest_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from trainer.config import RunConfig
from trainer.engine import init_process_group, make_engine, resolve_dtype
from trainer.hub import push
from trainer.log_files import append, write
from trainer.lost_processes import naming_lost_processes
from trainer.model import add_lora, attach_input_noise, build_embedder, check_backbone, read_base_spec
from trainer.model_card import model_card
from trainer.monitors import failing_once, go_on_with_monitors, same_wandb_run, write_to_monitors
from trainer.objective import Objective
from trainer.outcomes import on_every_process, on_first_process
from trainer.rejects import RejectShare, broken_pairs, skipped
from trainer.run_folder import (
    METRICS_FILE,
    REJECTS_FILE,
    check_inputs,
    check_run_folder,
    is_finished,
    lock_run_folder,
    publish,
    write_config,
)
from trainer.startup import describe_run
from trainer.step import count, train_step
from trainer.validation import VALIDATION_FILE, HeldOut, History, read_held_out, validate

FAILURE_FILE = "failure.json"
_BEST = "best"


def train(config: RunConfig) -> Path:
    """Train to `max_steps` and leave a finished run folder; returns it. The same on every process."""
    run = config.output_dir
    check_run_folder(config)
    if config.resume == "auto" and is_finished(run):
        if os.environ.get("RANK", "0") == "0":
            _push(config)
        return run
    device = init_process_group()
    _check_processes(config, world_size())
    plan = load_plan(config)  # bad input is found before a weight is loaded
    validation = load_validation(config)
    held_out, left_out = read_held_out(validation)
    torch.manual_seed(config.seed)
    # no process goes on before all have checked the folder
    embedder = on_every_process(lambda: build_embedder(config, device))
    with ExitStack() as stack:

        def begin() -> None:
            stack.callback(os.close, lock_run_folder(run))
            write_config(config)
            check_inputs(run, {config.model.base: embedder.spec.base_weights, **plan.digests()})
            print(_describe(config, embedder, plan), file=sys.stderr)
            if left_out:
                print(printable(left_out), file=sys.stderr)

        on_first_process(begin)
        with naming_lost_processes():
            _train_in(run, config, plan, held_out, embedder, device)
        if rank() == 0:
            _push(config)
    return run


def dry_run(config: RunConfig) -> str:
    """What `train` would do with this config, from the pair files and the checkpoint's config.json alone."""
    check_run_folder(config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    _check_processes(config, processes)
    plan = load_plan(config)
    load_validation(config)
    spec = read_base_spec(config)  # refuses an adapter
    limit = config.model.max_pixels or spec.max_pixels
    backbone = load_skeleton(config.model.base)
    if limit is not None and backbone.processor is not None:
        backbone.set_max_pixels(limit)
    if config.lora.enabled:
        add_lora(backbone, config.lora)
    check_backbone(config, backbone)
    table = describe_run(config, backbone, processes=processes, dtype=resolve_dtype(config), files=plan.files)
    notes = list(plan.notes)
    if config.precision == "auto" and not torch.cuda.is_available():
        notes.append("precision auto is float32 on this machine; --precision bf16 shows what a GPU would need")
    return "\n".join([table, *notes])


def _train_in(
    run: Path,
    config: RunConfig,
    plan: BatchPlan,
    held_out: Sequence[HeldOut],
    embedder: Embedder,
    device: torch.device,
) -> None:
    with same_wandb_run(run) if rank() == 0 and "wandb" in config.monitors else nullcontext():
        engine = make_engine(embedder.module, config)
    done = load_newest_checkpoint(engine, run) if config.resume == "auto" else 0
    objective = Objective(
        config.noise, temperature=config.temperature, seed=config.seed, loss=config.loss, last_step=config.max_steps
    )
    input_noise = attach_input_noise(embedder, config)
    batches = StepBatches(plan, embedder, config, rank=rank(), world_size=world_size())
    loader = step_loader(batches, first_step=done + 1, last_step=config.max_steps, workers=config.data.workers)

    def go_on_with_logs() -> list[int]:
        for name in (METRICS_FILE, REJECTS_FILE, VALIDATION_FILE):
            cut_log(run / name, done)
        go_on_with_monitors(engine, run, done)
        (run / FAILURE_FILE).unlink(missing_ok=True)
        return broken_pairs(run / REJECTS_FILE, done)

    broken = on_first_process(go_on_with_logs)
    history = History(run, config.validation)
    share = RejectShare(config.data.max_rejects, before=[(config.batch_size, number) for number in broken])
    with _metrics_file(run, done) as metrics, _progress(config, done) as bar, failing_once():
        before = time.perf_counter()
        for batch in [] if history.is_over else loader:
            step = batch.step
            torch.manual_seed(_dropout_seed(config.seed, step))
            if input_noise is not None:
                input_noise.strength = objective.strength_at(step)
            note_rejects(run, batch)
            counts = count(batch, device)
            share.add(planned=config.batch_size, broken=counts.broken_pairs)
            if counts.pairs == 0:
                raise TrainingError(
                    f"step {step}: no pair is left, each has a broken image; {run / REJECTS_FILE} names them: repair "
                    "them, or take them out of data.pairs in another output_dir"
                )
            row = train_step(
                engine,
                objective,
                batch,
                device,
                views=config.loss.dropout_pairs > 0,
                spectrum=step % config.log_spectrum_every == 0 or step == 1,
                keep_image_features=config.keeps_image_features,
            )
            seconds, before = time.perf_counter() - before, time.perf_counter()
            row["seconds"] = round(seconds, 4)
            row["items_per_s"] = round(2 * counts.pairs / seconds, 1)
            row["tokens_per_s"] = round(counts.tokens / seconds, 1)
            if rank() == 0:
                write(metrics, _json(row) + "\n")
                bar.set_postfix(loss=f"{row['loss']:.3f}", items_per_s=row["items_per_s"], refresh=False)
                bar.update()
                if config.monitors:
                    write_to_monitors(engine, run, "train", row)
            if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                raise _failure(engine, run, config, plan, row)
            last = step == config.max_steps
            if held_out and (last or step % config.validation.every == 0):
                _validate(engine, embedder, held_out, config, history, run, step)
                before = time.perf_counter()
            # also at the end: what follows, validation to publishing, can fail, and must not cost the steps before it
            if last or history.is_over or step % config.save_every == 0:
                if rank() == 0:
                    os.fsync(metrics.fileno())  # a checkpoint must not outlive the log of its steps
                save_checkpoint(engine, run, step, keep=config.keep_checkpoints)
            if history.is_over:
                break
    if rank() == 0 and (said := skipped(run / REJECTS_FILE)):
        print(printable(said), file=sys.stderr)
    published = history.best
    if held_out and config.validation.keep == "best":
        step = load_weights(engine, run / "checkpoints" / _BEST)
        published = next((row for row in history.rows if row["step"] == step), None)
        if published is not history.best:  # a resumed run that was not the uninterrupted one to the bit
            print(f"the best weights kept are those of step {step}", file=sys.stderr)
    state_dict = gathered_state_dict(engine, lora=config.lora.enabled)

    def finish() -> None:
        embedder.spec = replace(embedder.spec, noise=asdict(config.noise))
        card = model_card(
            config, run / METRICS_FILE, dim=embedder.dim, device=str(device), files=plan.files, best=published
        )
        publish(embedder, run, state_dict=state_dict, card=card)

    on_first_process(finish)
    engine.destroy()


def _push(config: RunConfig) -> None:
    if config.push_to_hub:
        print(f"pushed to {push(config.output_dir, config.push_to_hub)}", file=sys.stderr)


def _validate(
    engine: Any,
    embedder: Embedder,
    held_out: Sequence[HeldOut],
    config: RunConfig,
    history: History,
    run: Path,
    step: int,
) -> None:
    row = {"step": step, **validate(engine, embedder, list(held_out), config)}
    history.add(row)
    if config.validation.keep == "best" and history.best is row:
        save_weights(engine, run / "checkpoints" / _BEST, step=step)
    if rank() == 0:
        metric = config.validation.metric
        note = " (best so far)" if history.best is row else ""
        tqdm.write(f"step {step}: {metric} {row[metric]:.3f} on held-out pairs{note}", file=sys.stderr)
        if config.monitors:
            write_to_monitors(engine, run, "validation", row)
        if history.is_over:
            tqdm.write(f"step {step}: stopping, the last {config.validation.patience} brought nothing", file=sys.stderr)


def _failure(engine: Any, run: Path, config: RunConfig, plan: BatchPlan, row: dict[str, Any]) -> TrainingError:
    """Keep what led to a step without a finite gradient: the state before it, and its pairs."""
    step = row["step"]
    if rank() == 0:
        pairs = [pair.query.id for pair in plan.pairs(step)]
        write_atomic(run / FAILURE_FILE, _json({**row, "pairs": pairs}, indent=2) + "\n")
    save_checkpoint(engine, run, step - 1, keep=config.keep_checkpoints)
    return TrainingError(
        f"step {step} has loss {row['loss']} and gradient norm {row['grad_norm']}; its pairs are in "
        f"{run / FAILURE_FILE}, the state before it in {run / 'checkpoints'}; "
        "start again in another output_dir with a lower optimizer.lr or noise.strength"
    )


def _json(row: dict[str, Any], indent: int | None = None) -> str:
    """NaN and infinity, which JSON does not have, are null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, indent=indent, allow_nan=False)


def note_rejects(run: Path, batch: StepBatch) -> None:
    if batch.rejects:
        append(run / REJECTS_FILE, "".join(json.dumps(reject) + "\n" for reject in batch.rejects))


def _metrics_file(run: Path, done: int) -> FileIO:
    return FileIO(run / METRICS_FILE if rank() == 0 else os.devnull, "a" if done else "w")


def _check_processes(config: RunConfig, processes: int) -> None:
    if processes > config.batch_size:
        raise ConfigError(f"batch_size ({config.batch_size}) must be at least the number of processes ({processes})")


def _describe(config: RunConfig, embedder: Embedder, plan: BatchPlan) -> str:
    table = describe_run(
        config, embedder.backbone, processes=world_size(), dtype=resolve_dtype(config), files=plan.files
    )
    return "\n".join([table, *plan.notes])


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
