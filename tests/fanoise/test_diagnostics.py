import math

import pytest
import torch
import torch.nn.functional as F

from fanoise.diagnostics import BANDS, alignment, effective_rank, lost_share, noise_to_signal, uniformity
from fanoise.noise import NoiseConfig, decompose, spectral_noise


def rows(m: int, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(m, n, generator=generator, dtype=torch.float64), dim=-1)


def test_alignment_of_unit_rows_is_two_minus_twice_their_similarity():
    x, y = rows(7, 5), rows(7, 5, seed=1)
    assert alignment(x, y) == pytest.approx(float((2 - 2 * (x * y).sum(1)).mean()))
    assert alignment(x, x) == 0
    assert alignment(x, -x) == pytest.approx(4)


def test_uniformity_equals_a_plain_loop_over_pairs():
    x = rows(6, 4)
    potentials = [math.exp(-2 * float((x[i] - x[j]).square().sum())) for i in range(6) for j in range(i)]
    assert uniformity(x) == pytest.approx(math.log(sum(potentials) / len(potentials)), rel=1e-5)
    assert uniformity(x[:1]) == 0.0
    assert uniformity(torch.ones(3, 1)) == pytest.approx(0.0, abs=1e-6)


def test_effective_rank_counts_equal_directions_and_ignores_absent_ones():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0.0
    p = torch.tensor([0.7, 0.2, 0.1])
    assert effective_rank(5 * p) == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-6)


def test_a_direction_is_lost_up_to_the_quarter_power_threshold():
    threshold = 0.5 * (4 / 64) ** 0.25
    sigma = torch.tensor([2.0, threshold + 1e-4, threshold - 1e-4, 0.01, 0.0], dtype=torch.float64)
    assert lost_share(sigma, 0.5, 4, 64) == 0.5
    assert lost_share(sigma, 0.0, 4, 64) == 0.0
    assert lost_share(torch.zeros(3), 0.5, 4, 64) == 0.0


def test_the_threshold_is_where_a_planted_direction_gets_lost():
    """Simulation: overlap of a rank-one matrix with its noisy estimate, around the threshold."""
    m, n, strength = 300, 600, 1.0
    generator = torch.Generator().manual_seed(0)
    u, v = (F.normalize(torch.randn(size, generator=generator, dtype=torch.float64), dim=0) for size in (m, n))
    noise = torch.randn(m, n, generator=generator, dtype=torch.float64) * strength / math.sqrt(n)
    threshold = strength * (m / n) ** 0.25
    overlap = {}
    for factor in (0.6, 1.6):
        sigma = factor * threshold
        overlap[factor] = float((torch.linalg.svd(sigma * torch.outer(u, v) + noise)[2][0] @ v) ** 2)
        assert lost_share(torch.tensor([sigma]), strength, m, n) == (factor < 1)
    assert overlap[0.6] < 0.1 < 0.4 < overlap[1.6]


@pytest.mark.parametrize("scaling", ["sublinear", "linear", "uniform", "isotropic"])
@pytest.mark.parametrize(("m", "n"), [(9, 15), (15, 9)])
def test_noise_to_signal_is_what_the_noise_does_to_each_band(scaling, m, n):
    x = F.normalize(rows(m, n) * torch.arange(1, n + 1).pow(-0.8), dim=-1)
    _, sigma, vt = torch.linalg.svd(x, full_matrices=False)
    noise = NoiseConfig(strength=0.3, scaling=scaling)
    generator = torch.Generator().manual_seed(0)
    energy = torch.zeros(len(sigma), dtype=torch.float64)
    for _ in range(3000):
        injected = 0.3 / math.sqrt(n) * spectral_noise(x, scaling, generator=generator)
        energy += (injected @ vt.T).square().sum(0) / 3000
    found = noise_to_signal(decompose(x).sigma, noise, 0.3, m, n)
    for band, direction in zip(BANDS, torch.arange(len(sigma)).tensor_split(3), strict=True):
        expected = float(energy[direction].sum() / sigma[direction].square().sum())
        assert found[band] == pytest.approx(expected, rel=0.05)


def test_shuffled_noise_has_the_same_expected_energy_in_every_direction():
    sigma = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    found = noise_to_signal(sigma, NoiseConfig(scaling="shuffled"), 1.0, 3, 3)
    energies = [found[band] * float(s) ** 2 for band, s in zip(BANDS, sigma, strict=True)]
    assert energies == pytest.approx([energies[0]] * 3)
    plain = noise_to_signal(sigma, NoiseConfig(scaling="sublinear"), 1.0, 3, 3)
    assert sum(energies) == pytest.approx(
        sum(plain[band] * float(s) ** 2 for band, s in zip(BANDS, sigma, strict=True))
    )
