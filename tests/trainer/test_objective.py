import math

import pytest
import torch
import torch.nn.functional as F

from fanoise.loss import info_nce
from fanoise.noise import NoiseConfig, spectral_noise
from trainer.objective import Labels, Objective


def rows(count: int, seed: int) -> torch.Tensor:
    return F.normalize(
        torch.randn(count, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    )


def labels(count: int, owners: tuple[int, ...] = (), parts: tuple[int, ...] | None = None) -> Labels:
    return Labels(
        exclude=torch.zeros(count, count, dtype=torch.bool),
        negative_owner=torch.tensor(owners, dtype=torch.long),
        rows_per_process=parts or (count,),
    )


def noisy(x: torch.Tensor, seed: int, step: int, target: bool, strength: float = 0.3) -> torch.Tensor:
    """The very noise of a (seed, step, side), added by hand."""
    generator = torch.Generator().manual_seed((seed << 21) + (step << 1) + target)
    return F.normalize(x + strength / math.sqrt(12) * spectral_noise(x, generator=generator), dim=-1)


def test_loss_is_info_nce_of_both_sides_with_their_own_noise():
    query, item = rows(6, 0), rows(6, 1)
    found = Objective(NoiseConfig(strength=0.3), temperature=0.1, seed=5).loss(query, item, labels(6), step=7)
    expected = info_nce(noisy(query, 5, 7, False), noisy(item, 5, 7, True), temperature=0.1)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("side", ["query", "target"])
def test_only_the_chosen_side_is_perturbed(side):
    query, item = rows(6, 0), rows(6, 1)
    config = NoiseConfig(strength=0.3, sides=side)
    found = Objective(config, temperature=0.1, seed=5).loss(query, item, labels(6), step=7)
    if side == "query":
        query = noisy(query, 5, 7, False)
    else:
        item = noisy(item, 5, 7, True)
    assert float(found) == pytest.approx(float(info_nce(query, item, temperature=0.1)), rel=1e-12)


def test_strength_zero_is_plain_info_nce_bit_for_bit():
    query, item = rows(6, 0), rows(6, 1)
    found = Objective(NoiseConfig(strength=0), temperature=0.1, seed=5).loss(query, item, labels(6), step=1)
    assert torch.equal(found, info_nce(query, item, temperature=0.1))


def test_every_step_has_its_own_noise():
    objective = Objective(NoiseConfig(strength=0.3), temperature=0.1, seed=5)
    losses = {float(objective.loss(rows(6, 0), rows(6, 1), labels(6), step=step)) for step in range(1, 6)}
    assert len(losses) == 5


def test_local_spectrum_perturbs_each_process_with_its_own_rows():
    query, item = rows(6, 0), rows(6, 1)
    config = NoiseConfig(strength=0.3, sides="query", spectrum="local")
    found = Objective(config, temperature=0.1, seed=5).loss(query, item, labels(6, parts=(4, 2)), step=1)
    generator = torch.Generator().manual_seed((5 << 21) + 2)
    parts = [x + 0.3 / math.sqrt(12) * spectral_noise(x, generator=generator) for x in (query[:4], query[4:])]
    expected = info_nce(F.normalize(torch.cat(parts), dim=-1), item, temperature=0.1)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_mined_negatives_reach_their_owner_and_share_the_targets_spectrum():
    query, item = rows(4, 0), rows(7, 1)  # rows 4, 5, 6 are the negatives of queries 2, 0, 2
    found = Objective(NoiseConfig(strength=0.3), temperature=0.1, seed=5).loss(
        query, item, labels(4, owners=(2, 0, 2)), step=1
    )
    query, item = noisy(query, 5, 1, False), noisy(item, 5, 1, True)
    expected = 0.0
    for row, extra in enumerate(([5], [], [4, 6], [])):
        logits = query[row] @ item[[0, 1, 2, 3, *extra]].T / 0.1
        expected += float(F.cross_entropy(logits[None], torch.tensor([row]))) / 4
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_local_spectrum_takes_a_process_positives_and_negatives_together():
    query, item = rows(4, 0), rows(6, 1)  # rows 4 and 5 are negatives of queries 3 (second process) and 0 (first)
    config = NoiseConfig(strength=0.3, sides="target", spectrum="local")
    found = Objective(config, temperature=0.1, seed=5).loss(query, item, labels(4, owners=(3, 0), parts=(2, 2)), step=1)
    generator = torch.Generator().manual_seed((5 << 21) + 2 + 1)
    expected = item.clone()
    for own in ([0, 1, 5], [2, 3, 4]):
        noise = spectral_noise(item[own], generator=generator)
        expected[own] = F.normalize(item[own] + 0.3 / math.sqrt(12) * noise, dim=-1)
    negatives = torch.zeros(4, 1, 12, dtype=torch.float64)
    negatives[3, 0], negatives[0, 0] = expected[4], expected[5]
    mask = torch.tensor([[True], [False], [False], [True]])
    reference = info_nce(query, expected[:4], temperature=0.1, negatives=negatives, negatives_mask=mask)
    assert float(found) == pytest.approx(float(reference), rel=1e-12)


def test_raw_features_are_perturbed_before_they_are_normalised():
    query, item = 3 * rows(6, 0), 2 * rows(6, 1)
    config = NoiseConfig(strength=0.3, features="raw", sides="query")
    found = Objective(config, temperature=0.1, seed=5).loss(query, item, labels(6), step=7)
    expected = info_nce(noisy(query, 5, 7, False), F.normalize(item, dim=-1), temperature=0.1)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
