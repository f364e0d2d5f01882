"""FANoise: training-time noise on embeddings, shaped by the singular values of the batch (arXiv 2511.20997).

Letters: m rows of a batch, n embedding dimensions, k = min(m, n), r = numerical rank.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanoise.errors import ConfigError

Scaling = Literal["sublinear", "linear", "uniform", "isotropic", "shuffled"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
Features = Literal["normalized", "raw"]
Sides = Literal["both", "query", "target"]
SpectrumOf = Literal["global", "local"]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """How embeddings are perturbed while training. Evaluation and serving are always noise-free."""

    strength: float = 0.1
    """Noise scale alpha of Eq. 16; 0 turns the method off, bit for bit. Comparable between models only in logits."""
    scaling: Scaling = "sublinear"
    """S(sigma): sublinear (FANoise_ss), linear, uniform; controls: isotropic (all n dimensions), shuffled (sublinear
    energies on permuted directions)."""
    energy_matched: bool = False
    """Rescale S so that every scaling injects the energy of isotropic noise: the sum of S squared is n."""
    features: Features = "normalized"
    """Whether rows are L2-normalised before the noise is added."""
    renormalize: bool = True
    """Whether rows are L2-normalised again afterwards; false is the setting of Eq. 5-8."""
    sides: Sides = "both"
    """Which side of the pairs is perturbed; each side has its own spectrum."""
    spectrum: SpectrumOf = "global"
    """Whose singular values: of the batch gathered over all ranks, or of each rank's own rows."""
    warmup_steps: int = 0
    """Steps over which the strength rises linearly from 0; 0 keeps it constant."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ConfigError(
                f"noise.strength must be a number >= 0, got {self.strength}; use 0 to train without noise"
            )
        choices = {"scaling": SCALINGS, "features": get_args(Features), "sides": get_args(Sides)}
        for name, allowed in (choices | {"spectrum": get_args(SpectrumOf)}).items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"noise.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.warmup_steps < 0:
            raise ConfigError(f"noise.warmup_steps must be >= 0, got {self.warmup_steps}")

    def strength_at(self, step: int) -> float:
        """The strength of a step (the first is 1) under the schedule."""
        return self.strength if step >= self.warmup_steps else self.strength * step / self.warmup_steps


class FANoise(nn.Module):
    """Add spectral noise to a batch of embeddings while training.

    `X~ = X + strength / sqrt(n) * (N_rand * S(sigma)) V^T` (Eq. 14-16), where X = U diag(sigma) V^T. The noise is a
    constant: no gradient flows through the spectrum, so the gradient with respect to the clean embeddings is exact.
    In `eval()` mode, and at strength 0, `forward` returns its argument itself.
    """

    def __init__(
        self,
        strength: float = 0.1,
        scaling: Scaling = "sublinear",
        *,
        energy_matched: bool = False,
        features: Features = "normalized",
        renormalize: bool = True,
    ) -> None:
        super().__init__()
        # the dataclass holds the rules for these values; a second copy here would drift
        self.config = NoiseConfig(
            strength=strength,
            scaling=scaling,
            energy_matched=energy_matched,
            features=features,
            renormalize=renormalize,
        )
        self.strength = strength

    def forward(self, embeddings: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[m, n] -> [m, n]. Draws are made on the generator's device: the same seed gives the same noise anywhere."""
        if not self.training or self.strength == 0:
            return embeddings
        clean = F.normalize(embeddings, dim=-1) if self.config.features == "normalized" else embeddings
        noise = spectral_noise(
            clean, self.config.scaling, energy_matched=self.config.energy_matched, generator=generator
        )
        noisy = clean + (self.strength / math.sqrt(embeddings.shape[-1])) * noise
        return F.normalize(noisy, dim=-1) if self.config.renormalize else noisy

    def extra_repr(self) -> str:
        return f"strength={self.strength}, scaling={self.config.scaling!r}"


@dataclass(frozen=True)
class Spectrum:
    """Singular values of X [m, n], descending, and the factor that turns row noise into noise along V.

    `sigma` [k] is exactly 0 past the numerical rank. `rows` says which side's Gram matrix was decomposed: with m <= n
    `vectors` are U [m, k] of X X^T, else V [n, k] of X^T X.
    """

    sigma: Tensor
    vectors: Tensor
    rows: bool


@torch.no_grad()
def decompose(x: Tensor) -> Spectrum:
    """Singular values and vectors of X through the Gram matrix of its smaller side.

    A Gram matrix squares the condition number, hence float64 throughout; what lies below the rounding of the input's
    own dtype (or of the squaring, for float64 input) is cut to rank. Any finite input is safe: one row, equal rows,
    zeros. Anything else gives NaN, never an error.
    """
    precision = torch.finfo(torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype).eps
    x = x.detach().double()
    rows = x.shape[0] <= x.shape[1]
    gram = x @ x.T if rows else x.T @ x
    if not torch.isfinite(gram).all():  # eigh would stop with a message of its own; so the loss shows it
        return Spectrum(torch.full_like(gram[0], torch.nan), torch.full_like(gram, torch.nan), rows)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    sigma = eigenvalues.flip(0).clamp_min(0).sqrt()
    longest = max(x.shape)
    cut = max(longest * precision, math.sqrt(longest * torch.finfo(torch.float64).eps))
    sigma = torch.where(sigma > cut * sigma[0], sigma, 0)
    return Spectrum(sigma, vectors.flip(1), rows)


@torch.no_grad()
def scales(
    sigma: Tensor, n: int, scaling: Scaling, *, energy_matched: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """S(sigma) [k], one factor per principal direction (Eq. 14), 0 past the rank; the mean runs over the rank.

    Not for `isotropic`, which has no principal directions.
    """
    inside = sigma > 0
    rank = inside.sum().clamp_min(1)
    root = sigma.sqrt()
    # clamping keeps an all-zero batch (rank 0) at S = 0 instead of 0 / 0
    if scaling == "uniform":
        s = inside.to(sigma.dtype)
    elif scaling == "linear":
        s = sigma / (sigma.sum() / rank).clamp_min(torch.finfo(sigma.dtype).tiny)
    elif scaling in ("sublinear", "shuffled"):
        s = root / (root.sum() / rank).clamp_min(torch.finfo(sigma.dtype).tiny)
    else:
        raise ConfigError(f"no principal scales for scaling {scaling!r}")
    if scaling == "shuffled":
        keys = _draw_uniform(sigma.shape[0], sigma.device, generator)
        s = s[keys.masked_fill(~inside, torch.inf).argsort()]  # permutes the first r entries, leaves the zeros last
    if energy_matched:
        s = s * torch.sqrt(n / s.square().sum().clamp_min(torch.finfo(sigma.dtype).tiny))
    return s


@torch.no_grad()
def spectral_noise(
    x: Tensor,
    scaling: Scaling = "sublinear",
    *,
    energy_matched: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """N' [m, n] of Eq. 15 for features X [m, n]: row covariance V diag(S^2) V^T, dtype of X.

    The number of random draws depends on the shape only, never on the rank.
    """
    m, n = x.shape
    if scaling == "isotropic":  # Eq. 11; its energy is n, so energy matching changes nothing
        return _draw_normal((m, n), x.device, generator).to(x.dtype)
    if m == 0:
        return torch.zeros_like(x)
    spectrum = decompose(x)
    sigma = spectrum.sigma
    s = scales(sigma, n, scaling, energy_matched=energy_matched, generator=generator)
    draws = _draw_normal((m, sigma.shape[0]), x.device, generator).double()
    if spectrum.rows:  # V^T = diag(1 / sigma) U^T X, never formed
        factors = torch.where(sigma > 0, s / sigma.clamp_min(torch.finfo(sigma.dtype).tiny), 0)
        noise = ((draws * factors) @ spectrum.vectors.T) @ x.double()
    else:
        noise = (draws * s) @ spectrum.vectors.T
    return noise.to(x.dtype)


def noise_in_logits(strength: float, n: int, temperature: float) -> float:
    """Standard deviation that noise on one side gives a logit, for S = 1: strength / (sqrt(n) * temperature).

    The one number by which strengths compare between models: 0.13 at the paper's 0.1, n = 1536, temperature 0.02.
    """
    return strength / (math.sqrt(n) * temperature)


@torch.no_grad()
def noise_energy(sigma: Tensor, n: int, scaling: Scaling, *, energy_matched: bool = False) -> float:
    """Expected squared norm of a row of N', relative to n: the sum of S squared / n (isotropic: 1)."""
    if scaling == "isotropic" or (energy_matched and bool((sigma > 0).any())):
        return 1.0
    base: Scaling = "sublinear" if scaling == "shuffled" else scaling  # a permutation keeps the energy
    return float(scales(sigma, n, base).square().sum() / n)


@torch.no_grad()
def suggest_strength(embeddings: Tensor, *, batch_size: int, share: float = 0.9) -> float:
    """The largest strength that leaves a share of the batch's spectral energy above the noise (BBP threshold).

    A direction of isotropic noise strength alpha is recoverable when sigma > alpha * (m / n)^(1/4)
    (Benaych-Georges & Nadakuditi 2012); the paper's Eq. 13 has (m / n)^(1/2), which simulation contradicts.

    Args:
        embeddings: [N, n] L2-normalised; batches of `batch_size` rows are cut from them, the median is returned.
        share: of the sum of squared singular values, in (0, 1), that stays recoverable.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share must lie between 0 and 1, got {share}")
    if embeddings.ndim != 2 or embeddings.shape[0] < batch_size or batch_size < 2:
        raise ConfigError(
            f"suggest_strength needs at least batch_size rows, with batch_size >= 2; got embeddings of shape "
            f"{tuple(embeddings.shape)} and batch_size {batch_size}"
        )
    n = embeddings.shape[1]
    found = []
    for start in range(0, embeddings.shape[0] - batch_size + 1, batch_size):
        energy = decompose(embeddings[start : start + batch_size]).sigma.square()
        kept = int((energy.cumsum(0) < share * energy.sum()).sum())  # the index of the last direction needed
        found.append(float(energy[min(kept, energy.shape[0] - 1)].sqrt()) / (batch_size / n) ** 0.25)
    return float(torch.tensor(found).median())


def _draw_normal(shape: tuple[int, int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    source = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=source).to(device)


def _draw_uniform(size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    source = device if generator is None else generator.device
    return torch.rand(size, generator=generator, device=source).to(device)
