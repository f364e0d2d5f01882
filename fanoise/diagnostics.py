"""What a batch of embeddings looks like, and what noise does to it: figures to log and to plot.

Letters as in `fanoise.noise`: m rows, n dimensions, sigma the singular values, descending, 0 past the rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fanoise.noise import NoiseConfig, Scaling, scales

BANDS = ("strong", "middle", "weak")
"""Thirds of the principal directions, by singular value."""


@torch.no_grad()
def alignment(query: Tensor, positive: Tensor) -> float:
    """Mean squared distance of [m, n] unit rows to their positives, in [0, 4]; Wang & Isola 2020, arXiv 2005.10242."""
    return float((query - positive).square().sum(dim=-1).mean())


@torch.no_grad()
def uniformity(embeddings: Tensor) -> float:
    """Log of the mean Gaussian potential exp(-2 d²) of all pairs of [m, n] unit rows, in [-8, 0], lower is more even.

    Source: Wang & Isola 2020, arXiv 2005.10242. Many dimensions, evenly filled: about -4. A single row has no pairs: 0.
    """
    if len(embeddings) < 2:
        return 0.0
    distances = F.pdist(embeddings.float())
    return float(torch.logsumexp(-2 * distances.square(), dim=0) - torch.tensor(float(len(distances))).log())


@torch.no_grad()
def effective_rank(sigma: Tensor) -> float:
    """Exponential of the entropy of sigma / sum(sigma), from 1 to the rank; Roy & Vetterli 2007. All zeros: 0."""
    p = sigma[sigma > 0].double()
    if not len(p):
        return 0.0
    p = p / p.sum()
    return float(torch.exp(-(p * p.log()).sum()))


@torch.no_grad()
def lost_share(sigma: Tensor, strength: float, m: int, n: int) -> float:
    """Share of the directions that isotropic noise of this strength makes unrecoverable, in [0, 1].

    A direction is lost when sigma <= strength * (m / n)^(1/4) (Benaych-Georges & Nadakuditi 2012); the paper's Eq. 13
    has (m / n)^(1/2), which simulation contradicts.
    """
    inside = sigma[sigma > 0]
    return float((inside <= strength * (m / n) ** 0.25).double().mean()) if len(inside) else 0.0


@torch.no_grad()
def noise_to_signal(sigma: Tensor, noise: NoiseConfig, strength: float, m: int, n: int) -> dict[str, float]:
    """Expected energy of the noise over that of the features, in each band of principal directions.

    Along direction i the noise of m rows has energy strength² m S_i² / n, the features sigma_i².
    """
    inside = sigma[sigma > 0].double()
    if noise.scaling == "isotropic":
        energy = torch.ones_like(inside)
    else:
        # shuffled: every direction gets each of the sublinear energies equally often
        base: Scaling = "sublinear" if noise.scaling == "shuffled" else noise.scaling
        energy = scales(inside, n, base, energy_matched=noise.energy_matched).square()
        if noise.scaling == "shuffled" and len(energy):
            energy = energy.mean().expand_as(energy)
    thirds = zip(BANDS, energy.tensor_split(3), inside.square().tensor_split(3), strict=True)
    return {band: float(strength**2 * m / n * e.sum() / signal.sum()) for band, e, signal in thirds if len(signal)}
