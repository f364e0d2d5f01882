"""From the gathered clean embeddings of a step to its loss: noise on the chosen sides, then InfoNCE."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fanoise.loss import info_nce
from fanoise.noise import FANoise, NoiseConfig, decompose, noise_energy


@dataclass(frozen=True)
class Labels:
    """What the loss must know about the gathered rows."""

    exclude: Tensor
    """[G, G] bool, True where an item is another right answer to a query."""
    negative_owner: Tensor
    """[number of mined negatives], the query each belongs to."""
    rows_per_process: tuple[int, ...]
    """Queries, and positives, of each process; their sum is G."""


class Objective:
    """Noisy InfoNCE. Every process draws the same noise, from generators seeded by (seed, step, side)."""

    def __init__(self, noise: NoiseConfig, *, temperature: float, seed: int) -> None:
        self._config = noise
        self.temperature = temperature
        self._seed = seed
        self._noise = FANoise(
            noise.strength,
            noise.scaling,
            energy_matched=noise.energy_matched,
            features=noise.features,
            renormalize=noise.renormalize,
        )

    def loss(self, query: Tensor, item: Tensor, labels: Labels, *, step: int) -> Tensor:
        """[G, D] queries and [G + mined negatives, D] items to a scalar; the positive of query i is item i.

        Rows have unit length, unless `features` is raw.
        """
        rows = query.shape[0]
        query = self._perturb(query, "query", labels, step)
        item = self._perturb(item, "target", labels, step)
        negatives = mask = None
        if len(labels.negative_owner):
            negatives, mask = _by_owner(item[rows:], labels.negative_owner, rows)
        return info_nce(
            query,
            item[:rows],
            temperature=self.temperature,
            negatives=negatives,
            negatives_mask=mask,
            exclude=labels.exclude,
        )

    def strength_at(self, step: int) -> float:
        return self._config.strength_at(step)

    def energy(self, embeddings: Tensor) -> float:
        """Expected noise-to-signal energy of a unit row at this batch's spectrum, for strength 1 (isotropic: 1)."""
        spectrum = decompose(embeddings)
        return noise_energy(
            spectrum.sigma, embeddings.shape[1], self._config.scaling, energy_matched=self._config.energy_matched
        )

    def _perturb(self, embeddings: Tensor, side: str, labels: Labels, step: int) -> Tensor:
        self._noise.strength = self._config.strength_at(step)
        if self._config.sides not in ("both", side) or self._noise.strength == 0:
            return F.normalize(embeddings, dim=-1) if self._config.features == "raw" else embeddings
        generator = torch.Generator().manual_seed(_mix(self._seed, step, side))
        if self._config.spectrum == "global":
            return self._noise(embeddings, generator)
        process = _process_of_rows(labels, embeddings.device)[: embeddings.shape[0]]
        noisy = torch.empty_like(embeddings)
        for number in range(len(labels.rows_per_process)):
            rows = (process == number).nonzero()[:, 0]
            noisy = noisy.index_copy(0, rows, self._noise(embeddings[rows], generator))
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
