"""FANoise: training-time noise on embeddings, shaped by the singular values of the batch (arXiv 2511.20997).

Letters: m rows of a batch, n embedding dimensions, k = min(m, n), r = numerical rank.
"""

import math
import sys
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanoise.errors import ConfigError

Scaling = Literal["sublinear", "linear", "uniform", "isotropic", "shuffled"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
Features = Literal["normalized", "raw"]
Sides = Literal["both", "query", "target"]
SpectrumOf = Literal["global", "local"]
Position = Literal["output", "input"]
_OF_INPUT = {"position", "strength", "warmup_steps", "decay_steps"}
"""Settings that act on noise on the token embeddings."""


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
    """First steps over which the strength rises linearly from 0."""
    decay_steps: int = 0
    """Last steps over which the strength falls linearly to 0; with both at 0 it is constant."""
    position: Position = "output"
    """On the pooled embeddings (FANoise), or on the token embeddings (NEFTune; of the rest only the schedule acts)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ConfigError(
                f"noise.strength must be a number >= 0, got {self.strength}; use 0 to train without noise"
            )
        choices = {"scaling": SCALINGS, "features": get_args(Features), "sides": get_args(Sides)}
        choices |= {"spectrum": get_args(SpectrumOf), "position": get_args(Position)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"noise.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("warmup_steps", "decay_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"noise.{name} must be >= 0, got {getattr(self, name)}")
        if self.position == "input":
            for one in fields(self):
                value = getattr(self, one.name)
                if one.name not in _OF_INPUT and value != one.default:
                    raise ConfigError(f"noise.{one.name} {value} does not act with noise.position input; leave it out")

    def strength_at(self, step: int, last_step: int = sys.maxsize) -> float:
        """The strength of a step, 1 .. last_step, under the schedule; without a last step it never falls."""
        rise = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        fall = min(1.0, (last_step - step) / self.decay_steps) if self.decay_steps else 1.0
        return self.strength * min(rise, fall)

    def highest_strength(self, steps: int, last_step: int | None = None) -> float:
        """The highest that the schedule reaches within the first `steps`, of `last_step` in all."""
        return max((self.strength_at(step, last_step or steps) for step in range(1, steps + 1)), default=0.0)


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
        self.sigma: Tensor | None = None
        """Singular values of the last perturbed batch, for logging; none where the scaling needs no spectrum."""

    def forward(
        self, embeddings: Tensor, generator: torch.Generator | None = None, *, strength: float | None = None
    ) -> Tensor:
        """[m, n] -> [m, n]. Draws are made on the generator's device: the same seed gives the same noise anywhere.

        Args:
            strength: in place of the module's own, for a schedule.
        """
        strength = self.config.strength if strength is None else strength
        if not self.training or strength == 0:
            return embeddings
        clean = F.normalize(embeddings, dim=-1) if self.config.features == "normalized" else embeddings
        spectrum = None if self.config.scaling == "isotropic" or not len(clean) else decompose(clean)
        self.sigma = None if spectrum is None else spectrum.sigma
        noise = spectral_noise(
            clean,
            self.config.scaling,
            energy_matched=self.config.energy_matched,
            generator=generator,
            spectrum=spectrum,
        )
        noisy = clean + (strength / math.sqrt(embeddings.shape[-1])) * noise
        return F.normalize(noisy, dim=-1) if self.config.renormalize else noisy

    def extra_repr(self) -> str:
        return f"strength={self.config.strength}, scaling={self.config.scaling!r}"


@dataclass(frozen=True)
class Spectrum:
    """Singular values of X [m, n], descending, and the singular vectors of its shorter side.

    `sigma` [k] is exactly 0 past the numerical rank. `rows` says which side's Gram matrix was decomposed: with m <= n
    `vectors` are U [m, k] of X X^T, else V [n, k] of X^T X.
    """

    sigma: Tensor
    vectors: Tensor
    rows: bool


@torch.no_grad()
def decompose(x: Tensor) -> Spectrum:
    """Singular values and vectors of X through the Gram matrix of its smaller side.

    A Gram matrix squares the condition number, hence float64: in float32 directions below 0.1 % of the largest singular
    value drown in rounding, and where one direction dominates, as in the embeddings of a fresh model, those are many.
    What lies below the rounding of the input's own dtype (or of the squaring, for float64 input) is cut to rank. Any
    finite input with at least one row is safe: equal rows, zeros. Anything else gives NaN, never an error.
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
    spectrum: Spectrum | None = None,
) -> Tensor:
    """N' [m, n] of Eq. 15 for features X [m, n]: row covariance V diag(S^2) V^T, dtype of X.

    The draws are turned by the singular vectors, N_rand U^T (or V^T), which leaves their distribution as it is and
    makes the noise a function of X and the draws alone: eigenvectors are only known up to their sign, which differs
    from one library or device to the next. The number of draws depends on the shape only, never on the rank.

    Args:
        spectrum: `decompose(x)`, where it is known already.
    """
    m, n = x.shape
    if scaling == "isotropic":  # Eq. 11; its energy is n, so energy matching changes nothing
        return _draw_normal((m, n), x.device, generator).to(x.dtype)
    if m == 0:
        return torch.zeros_like(x)
    spectrum = spectrum or decompose(x)
    sigma, vectors = spectrum.sigma, spectrum.vectors
    s = scales(sigma, n, scaling, energy_matched=energy_matched, generator=generator)
    if spectrum.rows:  # V^T = diag(1 / sigma) U^T X, never formed
        s = torch.where(sigma > 0, s / sigma.clamp_min(torch.finfo(sigma.dtype).tiny), 0)
    working = torch.promote_types(x.dtype, torch.float32)
    factor = ((vectors * s) @ vectors.T).to(working)
    draws = _draw_normal((m, factor.shape[0]), x.device, generator).to(working)
    noise = draws @ factor
    return (noise @ x.to(working) if spectrum.rows else noise).to(x.dtype)


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
def suggest_strength(embeddings: Tensor | np.ndarray, *, batch_size: int, share: float = 0.9) -> float:
    """The largest strength that leaves a share of the batch's spectral energy above the noise (BBP threshold).

    A direction of isotropic noise strength alpha is recoverable when sigma > alpha * (m / n)^(1/4)
    (Benaych-Georges & Nadakuditi 2012); the paper's Eq. 13 has (m / n)^(1/2), which simulation contradicts.

    Args:
        embeddings: [N, n] L2-normalised, as `Embedder.encode` gives them; of the batches of `batch_size` rows that are
            cut from them, the median is returned.
        share: of the sum of squared singular values, in (0, 1), that stays recoverable.
    """
    embeddings = torch.as_tensor(embeddings)
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
