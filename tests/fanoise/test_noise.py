import math

import pytest
import torch
import torch.nn.functional as F

from fanoise.errors import ConfigError
from fanoise.noise import (
    SCALINGS,
    FANoise,
    NoiseConfig,
    decompose,
    noise_energy,
    noise_in_logits,
    scales,
    spectral_noise,
    suggest_strength,
)

SHAPES = [(5, 12), (12, 5), (8, 8)]


def features(m: int, n: int, seed: int = 0) -> torch.Tensor:
    """Rows with a decaying spectrum, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, n, generator=generator, dtype=torch.float64) * torch.arange(1, n + 1).pow(-0.7)
    return F.normalize(x, dim=-1)


def svd_scales(sigma: torch.Tensor, scaling: str) -> torch.Tensor:
    """Oracle of Eq. 14, straight from the paper."""
    return {
        "uniform": torch.ones_like(sigma),
        "linear": sigma / sigma.mean(),
        "sublinear": sigma.sqrt() / sigma.sqrt().mean(),
    }[scaling]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_zero_strength_is_identity_bit_for_bit(scaling):
    x = features(5, 12).float()
    noise = FANoise(0.0, scaling)
    assert noise(x) is x


@pytest.mark.parametrize("scaling", SCALINGS)
def test_eval_mode_is_identity_bit_for_bit(scaling):
    x = features(5, 12).float()
    noise = FANoise(0.5, scaling).eval()
    assert noise(x) is x
    assert not torch.equal(noise.train()(x), x)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_spectrum_equals_float64_svd(m, n):
    x = features(m, n)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-7)):
        expected = torch.linalg.svdvals(x)
        found = decompose(x.to(dtype)).sigma
        assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected[0]))


def svd_noise(x: torch.Tensor, scaling: str, seed: int) -> torch.Tensor:
    """Oracle of Eq. 15 by a float64 SVD; the draws of the seed, turned by the singular vectors of the shorter side."""
    u, sigma, vt = torch.linalg.svd(x.double(), full_matrices=False)
    draws = torch.randn((x.shape[0], min(x.shape)), generator=torch.Generator().manual_seed(seed)).double()
    turned = draws @ (u if x.shape[0] <= x.shape[1] else vt.T)
    return (turned * svd_scales(sigma, scaling)) @ vt


@pytest.mark.parametrize("scaling", ["uniform", "linear", "sublinear"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_float32_gram_path_equals_a_float64_svd_with_the_same_draws(m, n, scaling):
    x = features(m, n)
    found = spectral_noise(x.float(), scaling, generator=torch.Generator().manual_seed(3)).double()
    assert torch.allclose(found, svd_noise(x, scaling, 3), atol=1e-4)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_noise_does_not_depend_on_the_signs_of_the_eigenvectors(m, n, monkeypatch):
    x = features(m, n).float()
    expected = spectral_noise(x, generator=torch.Generator().manual_seed(3))
    plain = torch.linalg.eigh

    def flipped(gram):
        values, vectors = plain(gram)
        return values, vectors * torch.tensor([1.0, -1.0]).repeat(len(gram))[: len(gram)]

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    assert torch.allclose(spectral_noise(x, generator=torch.Generator().manual_seed(3)), expected, atol=1e-6)


@pytest.mark.parametrize("scaling", ["linear", "sublinear"])
@pytest.mark.parametrize(("m", "n"), [(350, 450), (450, 350)])
@pytest.mark.parametrize("common", [0.0, 10.0])
def test_large_float32_batches_have_the_noise_of_a_float64_svd(m, n, scaling, common):
    """Also where one direction dominates, as in a fresh model: a float32 Gram matrix loses weak ones then."""
    x = F.normalize(features(m, n) + common * features(1, n, seed=1), dim=-1)
    found = spectral_noise(x.float(), scaling, generator=torch.Generator().manual_seed(3)).double()
    expected = svd_noise(x, scaling, 3)
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("scaling", ["uniform", "linear", "sublinear"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_sample_covariance_of_the_noise_is_v_s2_vt(m, n, scaling):
    x = features(m, n)
    _, sigma, vt = torch.linalg.svd(x, full_matrices=False)
    expected = vt.T @ torch.diag(svd_scales(sigma, scaling).square()) @ vt
    generator = torch.Generator().manual_seed(1)
    rows = torch.cat([spectral_noise(x, scaling, generator=generator) for _ in range(20_000 // m)])
    sample = rows.T @ rows / len(rows)
    # the standard error of a covariance entry is at most sqrt(2 / N) times the largest variance
    tolerance = 5 * math.sqrt(2 / len(rows)) * float(expected.diagonal().max())
    assert (sample - expected).abs().max() < tolerance
    assert rows.mean(0).abs().max() < 5 * math.sqrt(float(expected.diagonal().max()) / len(rows))


def test_isotropic_noise_has_identity_covariance_and_full_rank():
    rows = torch.cat(
        [spectral_noise(features(4, 6), "isotropic", generator=torch.Generator().manual_seed(i)) for i in range(5000)]
    )
    assert (rows.T @ rows / len(rows) - torch.eye(6, dtype=rows.dtype)).abs().max() < 5 * math.sqrt(2 / len(rows))


def test_shuffled_scaling_permutes_the_sublinear_energies():
    sigma = decompose(features(6, 9)).sigma
    plain = scales(sigma, 9, "sublinear")
    orders = set()
    for seed in range(20):
        shuffled = scales(sigma, 9, "shuffled", generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(shuffled.sort().values, plain.sort().values)
        orders.add(tuple(shuffled.argsort().tolist()))
    assert len(orders) > 10


@pytest.mark.parametrize("scaling", SCALINGS)
def test_energy_matching_injects_the_energy_of_isotropic_noise(scaling):
    x = features(8, 20)
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([spectral_noise(x, scaling, energy_matched=True, generator=generator) for _ in range(2500)])
    assert rows.square().sum(1).mean() == pytest.approx(20, rel=0.03)
    assert noise_energy(decompose(x).sigma, 20, scaling, energy_matched=True) == pytest.approx(1)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_predicted_energy_is_the_energy_injected(scaling):
    x = features(8, 20)
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([spectral_noise(x, scaling, generator=generator) for _ in range(2500)])
    predicted = noise_energy(decompose(x).sigma, 20, scaling)
    assert rows.square().sum(1).mean() / 20 == pytest.approx(predicted, rel=0.05)


DEGENERATE = {
    "one row": torch.ones(1, 6),
    "zero rows": torch.zeros(4, 6),
    "no rows": torch.zeros(0, 6),
    "equal rows": torch.ones(4, 6),
    "rank one": torch.outer(torch.arange(1.0, 5.0), torch.arange(1.0, 7.0)),
    "one zero row": torch.cat([torch.zeros(1, 6), torch.eye(6)[:3]]),
    "more rows than dimensions, equal": torch.ones(9, 6),
    "huge": torch.full((3, 6), 1e18),
    "tiny": torch.full((3, 6), 1e-18),
}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("features", ["normalized", "raw"])
def test_degenerate_batches_give_finite_noise(case, scaling, features):
    x = DEGENERATE[case].clone().requires_grad_()
    for matched in (False, True):
        noisy = FANoise(0.3, scaling, energy_matched=matched, features=features)(x)
        assert noisy.shape == x.shape
        assert torch.isfinite(noisy).all()
        (gradient,) = torch.autograd.grad(noisy.sum(), x)
        assert torch.isfinite(gradient).all()


def test_rank_one_batch_is_perturbed_along_its_only_direction():
    x = DEGENERATE["rank one"]
    direction = x[0] / x[0].norm()
    noise = spectral_noise(x, "sublinear", generator=torch.Generator().manual_seed(0))
    assert torch.allclose(noise, (noise @ direction)[:, None] * direction, atol=1e-4)
    assert noise.abs().max() > 0.1


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("how", ["normalized", "raw"])
def test_gradient_with_respect_to_clean_embeddings_is_that_of_a_constant_shift(how, renormalize):
    """No gradient through the spectrum: the oracle adds the very same noise as a constant."""
    x = (features(6, 10) * 3).requires_grad_()
    noise = FANoise(0.4, features=how, renormalize=renormalize)
    weights = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (found,) = torch.autograd.grad((noise(x, torch.Generator().manual_seed(2)) * weights).sum(), x)
    clean = F.normalize(x, dim=-1) if how == "normalized" else x
    constant = spectral_noise(clean.detach(), generator=torch.Generator().manual_seed(2)) * 0.4 / math.sqrt(10)
    noisy = clean + constant
    noisy = F.normalize(noisy, dim=-1) if renormalize else noisy
    (expected,) = torch.autograd.grad((noisy * weights).sum(), x)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_same_seed_gives_the_same_noise_and_another_seed_another():
    x = features(6, 10).float()
    noise = FANoise(0.1)
    first, again, other = (noise(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_strength_scales_the_perturbation_as_equation_16():
    x = features(6, 10)
    weak, strong = (
        FANoise(a, renormalize=False, features="raw")(x, torch.Generator().manual_seed(0)) - x for a in (0.1, 0.3)
    )
    assert torch.allclose(strong, 3 * weak, atol=1e-12)


def test_output_rows_are_unit_rows_after_renormalising():
    noisy = FANoise(0.5)(features(6, 10).float() * 4)
    assert torch.allclose(noisy.norm(dim=-1), torch.ones(6))


def test_noise_in_logits_gives_the_figures_of_the_paper():
    assert noise_in_logits(0.1, 1536, 0.02) == pytest.approx(0.1276, abs=1e-3)
    assert noise_in_logits(5, 1536, 0.02) == pytest.approx(6.38, abs=0.01)


def test_noise_in_logits_is_the_standard_deviation_of_a_noisy_logit():
    n, alpha, tau = 64, 0.3, 0.05
    generator = torch.Generator().manual_seed(0)
    q, k = F.normalize(torch.randn(2, n, generator=generator, dtype=torch.float64), dim=-1)
    rows = torch.cat([spectral_noise(q[None], "isotropic", generator=generator) for _ in range(20_000)]) * (
        alpha / math.sqrt(n)
    )
    assert float((rows @ k / tau).std()) == pytest.approx(noise_in_logits(alpha, n, tau), rel=0.03)


def test_strength_is_constant_unless_a_schedule_is_asked_for():
    assert {NoiseConfig(strength=0.4).strength_at(step, 10) for step in range(1, 11)} == {0.4}


def test_strength_rises_linearly_over_the_first_and_falls_over_the_last_steps():
    config = NoiseConfig(strength=0.4, warmup_steps=4, decay_steps=5)
    found = [config.strength_at(step, 20) for step in (1, 2, 4, 9, 15, 16, 18, 20)]
    assert found == pytest.approx([0.1, 0.2, 0.4, 0.4, 0.4, 0.32, 0.16, 0.0])


def test_a_call_may_take_another_strength_than_the_modules_own():
    x, noise = features(6, 10), FANoise(0.1, renormalize=False)
    shifts = [noise(x, torch.Generator().manual_seed(0), strength=strength) - x for strength in (None, 0.2)]
    assert torch.allclose(shifts[1], 2 * shifts[0], atol=1e-12)
    assert noise(x, strength=0) is x


def test_the_module_shows_the_spectrum_it_perturbed():
    x, noise = features(6, 10), FANoise(0.1)
    assert noise.sigma is None
    noise(x)
    assert torch.allclose(noise.sigma, torch.linalg.svdvals(x))


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf])
def test_impossible_strength_is_refused_by_name(strength):
    with pytest.raises(ConfigError, match=r"noise\.strength must be a number >= 0"):
        FANoise(strength)


def test_unknown_scaling_lists_the_known_ones():
    with pytest.raises(ConfigError, match="sublinear, linear"):
        FANoise(0.1, "cubic")


def test_suggested_strength_is_where_isotropic_noise_drowns_the_last_needed_direction():
    """Above its BBP threshold a direction correlates with its noisy estimate as theory says; below, hardly at all."""
    m = n = 400
    generator = torch.Generator().manual_seed(0)
    u, v = (F.normalize(torch.randn(size, generator=generator, dtype=torch.float64), dim=0) for size in (m, n))
    suggested = suggest_strength(torch.outer(u, v) * 2.0, batch_size=m, share=0.5)
    assert suggested == pytest.approx(2.0 / (m / n) ** 0.25, rel=1e-6)
    assert suggest_strength((torch.outer(u, v) * 2.0).numpy(), batch_size=m, share=0.5) == suggested
    for factor, low, high in ((0.5, 0.6, 0.85), (2.0, 0.0, 0.15)):
        alpha = suggested * factor
        noise = torch.randn(m, n, generator=generator, dtype=torch.float64) * alpha / math.sqrt(n)
        estimate = torch.linalg.svd(2.0 * torch.outer(u, v) + noise)[2][0]
        assert low <= float((estimate @ v).square()) <= high


def test_suggest_strength_refuses_too_few_rows():
    with pytest.raises(ConfigError, match="batch_size"):
        suggest_strength(torch.eye(4), batch_size=8)


@pytest.mark.parametrize("other", [{"scaling": "linear"}, {"energy_matched": True}, {"spectrum": "local"}])
def test_what_does_not_act_on_the_input_is_refused(other):
    NoiseConfig(position="input", strength=5, warmup_steps=3, decay_steps=2)
    with pytest.raises(ConfigError, match=f"noise.{next(iter(other))} .* does not act with noise.position input"):
        NoiseConfig(position="input", **other)
