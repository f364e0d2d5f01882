"""One training step: labels, sides, exact gradient, update, and what is written about it."""

import math
import resource
import sys
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fanoise.diagnostics import alignment, effective_rank, lost_share, noise_to_signal, uniformity
from fanoise.distributed import gather_rows, rank
from fanoise.errors import TrainingError
from fanoise.noise import decompose, noise_energy, noise_in_logits
from trainer.batches import StepBatch
from trainer.gradcache import gradcache_backward
from trainer.objective import Labels, Objective

_MOST_ROWS = 2048
"""Uniformity looks at every pair of rows; beyond this many rows a part is enough to log."""


class Counts(NamedTuple):
    """Of a step, over all processes."""

    tokens: int
    """That go into the model once."""
    pairs: int
    """That could be read."""
    broken_pairs: int
    """Pairs with a broken image, which is that of a mined negative if the pair could be read."""


def count(batch: StepBatch, device: torch.device) -> Counts:
    chunks = [chunk for side in (batch.query, batch.positive, batch.negative) for chunk in side.chunks]
    tokens = sum(int(chunk["attention_mask"].sum()) for chunk in chunks if "attention_mask" in chunk)
    each = gather_rows(torch.tensor([[tokens, len(batch.rows), batch.broken_pairs]], device=device))
    return Counts(*each.sum(dim=0).tolist())


def train_step(
    engine: Any,
    objective: Objective,
    batch: StepBatch,
    device: torch.device,
    *,
    views: bool,
    spectrum: bool,
    keep_image_features: bool,
) -> dict[str, Any]:
    """Gradient and update, unless one of them is not finite; returns the step's row of `metrics.jsonl`.

    Args:
        views: encode the queries twice, for `loss.dropout_pairs`.
        spectrum: add what costs an eigendecomposition to the row.
        keep_image_features: see `RunConfig`.
        batch: with at least one row on some process.
    Raises: TrainingError where there is nothing to tell apart.
    """
    labels = make_labels(batch, device)
    if not labels.has_negatives():
        raise TrainingError(
            f"step {batch.step}: no query has a negative, all {len(labels.exclude)} positives answer every query; "
            "give the pairs different positives or groups, or mined negatives, or mix files by data.sub_batch_size"
        )
    stats: dict[str, float] = {}

    def loss_of(sides: dict[str, Tensor]) -> Tensor:
        item = torch.cat([sides["positive"], sides["negative"]]) if "negative" in sides else sides["positive"]
        loss = objective.loss(sides["query"], item, labels, step=batch.step, view=sides.get("view"))
        if rank() == 0:
            query, positive = (F.normalize(sides[side].detach().float(), dim=-1) for side in ("query", "positive"))
            stats.update(batch_metrics(query, positive, labels))
            clean = {"query": sides["query"].detach(), "target": item.detach()}
            stats.update(noise_metrics(objective, batch.step, clean, spectrum=spectrum))
        return loss

    sides = {"query": batch.query, "positive": batch.positive, "negative": batch.negative}
    if views:
        sides["view"] = batch.query
    module = engine.module
    frozen = module.with_features if keep_image_features and module.has_frozen_images else None
    loss = float(gradcache_backward(engine, sides, loss_of, frozen=frozen))
    lr = engine.get_lr()[0]
    norm = update(engine) if math.isfinite(loss) else math.nan
    return {"step": batch.step, "loss": loss, "lr": lr, "grad_norm": norm, "memory_gib": _memory_gib(device), **stats}


def update(engine: Any) -> float:
    """Update on a finite gradient only; returns its norm before clipping."""
    if engine.zero_optimization_stage():  # DeepSpeed knows the norm, and skips a broken step
        engine.step()
        return float(engine.get_global_grad_norm())
    # without ZeRO the gradients lie whole on every process
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
    if math.isfinite(norm):
        engine.step()
    else:
        engine.zero_grad()
    return norm


def make_labels(batch: StepBatch, device: torch.device) -> Labels:
    """Gather what every process knows of its own rows."""
    # with the type: an empty list, of a process that has no pair left, would be float32 beside the others' int64
    rows = gather_rows(torch.tensor(batch.rows, dtype=torch.long, device=device))
    counts = gather_rows(torch.tensor([len(batch.rows)], device=device))
    negatives = gather_rows(torch.tensor(batch.negative_counts, dtype=torch.long, device=device))
    owners = torch.arange(len(negatives), device=device).repeat_interleave(negatives)
    exclude = torch.from_numpy(batch.valid_answers).to(device)[rows][:, rows]
    return Labels(exclude=exclude, negative_owner=owners, rows_per_process=tuple(counts.tolist()))


def batch_metrics(query: Tensor, positive: Tensor, labels: Labels) -> dict[str, float]:
    """Of [G, D] clean unit rows."""
    similarity = query @ positive.T
    other = ~labels.exclude
    other.fill_diagonal_(False)
    return {
        "positive_similarity": round(float(similarity.diagonal().mean()), 5),
        "negative_similarity": round(float(similarity[other].mean()), 5) if bool(other.any()) else 0.0,
        "alignment": round(alignment(query, positive), 5),
        "uniformity": round(uniformity(positive[:_MOST_ROWS]), 5),
    }


def noise_metrics(objective: Objective, step: int, clean: dict[str, Tensor], *, spectrum: bool) -> dict[str, float]:
    """How strong the step's noise is: in logits, as a share of a row's energy, and by band of the spectrum.

    What noise of raw rows does is what noise of unit rows does, divided by their length (root mean square). In logits
    it is left out where those rows are not normalised afterwards, and for noise on the input.

    Args:
        clean: "query" [G, D] and "target" [G + mined negatives, D], whose spectrum is shown.
    """
    noise, strength = objective.noise, objective.strength_at(step)
    is_raw, item = noise.features == "raw", clean["target"]
    rows, dim = item.shape
    found = {"noise_strength": strength}
    sigma = None
    if spectrum:
        sigma = objective.spectra.get("target") if noise.spectrum == "global" else None
        if sigma is None:
            sigma = decompose(item if is_raw else F.normalize(item, dim=-1)).sigma
        found["effective_rank"] = effective_rank(sigma)
    if noise.position == "input":
        return found
    perturbed = [side for side in clean if noise.sides in ("both", side)]
    shares = {side: 1 / _mean_square(clean[side]) if is_raw else 1.0 for side in perturbed}
    if noise.renormalize or not is_raw:
        of_unit_rows = noise_in_logits(strength, dim, objective.temperature)
        found["noise_in_logits"] = of_unit_rows * math.sqrt(sum(shares.values()) / len(shares))
    # isotropic noise has energy 1 and needs no spectrum
    energies = dict.fromkeys(perturbed, 1.0) | {
        side: noise_energy(spectrum_of_side, dim, noise.scaling, energy_matched=noise.energy_matched)
        for side, spectrum_of_side in objective.spectra.items()
    }
    found["noise_energy"] = strength**2 * sum(shares[side] * energies[side] for side in perturbed) / len(perturbed)
    if sigma is None or noise.sides == "query":  # the items' bands tell nothing about noise on the queries
        return found
    found["lost_share"] = lost_share(sigma, strength, rows, dim)
    bands = noise_to_signal(sigma, noise, strength, rows, dim)
    return found | {f"noise_to_signal_{band}": value for band, value in bands.items()}


def _mean_square(rows: Tensor) -> float:
    """Of the lengths of [m, n] rows; not 0, to be divided by."""
    return max(float(rows.double().square().sum(dim=-1).mean()), sys.float_info.min)


def _memory_gib(device: torch.device) -> float:
    """Peak so far, of the device, or of this process where there is none."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 3)
