"""From the gathered clean embeddings of a step to its loss: noise on the chosen sides, then InfoNCE."""

import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fanoise.loss import info_nce
from fanoise.noise import FANoise, NoiseConfig
from trainer.config import LossConfig


@dataclass(frozen=True)
class Labels:
    """What the loss must know about the gathered rows."""

    exclude: Tensor
    """[G, G] bool, True where an item is another right answer to a query."""
    negative_owner: Tensor
    """[number of mined negatives], the query each belongs to."""
    rows_per_process: tuple[int, ...]
    """Queries, and positives, of each process; their sum is G."""

    def has_negatives(self) -> bool:
        """Whether at least one query has anything to be told apart from."""
        return len(self.negative_owner) > 0 or bool((~self.exclude).sum() > len(self.exclude))


class Objective:
    """Noisy InfoNCE. Every process draws the same noise, from generators seeded by (seed, step, side)."""

    def __init__(
        self,
        noise: NoiseConfig,
        *,
        temperature: float,
        seed: int,
        loss: LossConfig | None = None,
        last_step: int = sys.maxsize,
    ) -> None:
        self.noise = noise
        self.temperature = temperature
        self._seed = seed
        self._loss = loss or LossConfig()
        self._last_step = last_step
        self._module = FANoise(
            noise.strength,
            noise.scaling,
            energy_matched=noise.energy_matched,
            features=noise.features,
            renormalize=noise.renormalize,
        )
        self.spectra: dict[str, Tensor] = {}
        """Singular values of the sides perturbed in the last step, for logging; of the last process if local."""

    def strength_at(self, step: int) -> float:
        return self.noise.strength_at(step, self._last_step)

    def loss(self, query: Tensor, item: Tensor, labels: Labels, *, step: int, view: Tensor | None = None) -> Tensor:
        """[G, D] queries and [G + mined negatives, D] items to a scalar; the positive of query i is item i.

        Rows have unit length, unless `features` is raw.

        Args:
            view: [G, D], the queries encoded a second time, for `loss.dropout_pairs`; never perturbed.
        """
        self.spectra.clear()
        rows = query.shape[0]
        noisy_query = self._perturb(query, "query", labels, step)
        item = self._perturb(item, "target", labels, step)
        negatives = mask = None
        if len(labels.negative_owner):
            negatives, mask = _by_owner(item[rows:], labels.negative_owner, rows)
        loss = info_nce(
            noisy_query,
            item[:rows],
            temperature=self.temperature,
            negatives=negatives,
            negatives_mask=mask,
            exclude=labels.exclude,
            hardness=self._loss.hardness,
            false_negative_margin=self._loss.false_negative_margin,
        )
        if view is not None:
            clean, view = F.normalize(query, dim=-1), F.normalize(view, dim=-1)
            pairs = info_nce(clean, view, temperature=self.temperature, exclude=labels.exclude)
            loss = loss + self._loss.dropout_pairs * pairs
        return loss

    def _perturb(self, embeddings: Tensor, side: str, labels: Labels, step: int) -> Tensor:
        strength = self.strength_at(step)
        if self.noise.position == "input" or self.noise.sides not in ("both", side) or strength == 0:
            return F.normalize(embeddings, dim=-1) if self.noise.features == "raw" else embeddings
        generator = torch.Generator().manual_seed(_mix(self._seed, step, side))
        if self.noise.spectrum == "global":
            noisy = self._module(embeddings, generator, strength=strength)
        else:
            process = _process_of_rows(labels, embeddings.device)[: embeddings.shape[0]]
            noisy = torch.empty_like(embeddings)
            for number in range(len(labels.rows_per_process)):
                rows = (process == number).nonzero()[:, 0]
                if not len(rows):  # the spectrum of the last that has some is what is logged
                    continue
                noisy = noisy.index_copy(0, rows, self._module(embeddings[rows], generator, strength=strength))
        if self._module.sigma is not None:
            self.spectra[side] = self._module.sigma
        return noisy


def _process_of_rows(labels: Labels, device: torch.device) -> Tensor:
    """[G + mined negatives], which process each gathered row is from."""
    counts = torch.tensor(labels.rows_per_process, device=device)
    process = torch.arange(len(counts), device=device).repeat_interleave(counts)
    return torch.cat([process, process[labels.negative_owner]])


def _by_owner(rows: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[M, D] negatives and the query of each -> [count, K, D] and the mask [count, K] of those that exist."""
    per_query = torch.bincount(owner, minlength=count)
    slots = rows.new_zeros((count, int(per_query.max()), rows.shape[1]))
    mask = torch.zeros(slots.shape[:2], dtype=torch.bool, device=rows.device)
    order = torch.argsort(owner, stable=True)
    sorted_owner = owner[order]
    first = (per_query.cumsum(0) - per_query)[sorted_owner]
    place = torch.arange(len(owner), device=owner.device) - first
    mask[sorted_owner, place] = True
    return slots.index_put((sorted_owner, place), rows[order]), mask


def _mix(seed: int, step: int, side: str) -> int:
    # 20 bits of step and one of side below the seed: no two (step, side) of a run share a generator
    return (seed << 21) + (step << 1) + (side == "target")
