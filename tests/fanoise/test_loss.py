import math

import pytest
import torch
import torch.nn.functional as F

from fanoise.errors import ConfigError
from fanoise.loss import info_nce


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_zero_embeddings_give_log_of_the_number_of_items():
    assert info_nce(torch.zeros(3, 4), torch.zeros(7, 4)) == pytest.approx(math.log(7), rel=1e-6)


def test_loss_equals_a_plain_loop():
    query, item, tau = unit(4, 6), unit(9, 6, seed=1), 0.1
    target = torch.tensor([3, 0, 8, 5])
    expected = 0.0
    for i in range(4):
        scores = [math.exp(float(query[i] @ item[j]) / tau) for j in range(9)]
        expected -= math.log(scores[target[i]] / sum(scores)) / 4
    assert float(info_nce(query, item, temperature=tau, target=target)) == pytest.approx(expected, rel=1e-12)


def test_mined_negatives_belong_to_their_query_only():
    query, item, negatives, tau = unit(3, 6), unit(3, 6, seed=1), unit(3, 2, 6, seed=2), 0.1
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    expected = 0.0
    for i in range(3):
        rows = torch.cat([item, negatives[i][mask[i]]])
        expected += float(F.cross_entropy((rows @ query[i] / tau)[None], torch.tensor([i]))) / 3
    found = info_nce(query, item, temperature=tau, negatives=negatives, negatives_mask=mask)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_excluded_items_do_not_count_but_the_positive_always_does():
    query, item = unit(3, 6), unit(3, 6, seed=1)
    exclude = torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
    expected = 0.0
    for i, kept in enumerate(([0, 2], [0, 1, 2], [0, 2])):
        scores = query[i] @ item[kept].T / 0.1
        expected += float(F.cross_entropy(scores[None], torch.tensor([kept.index(i)]))) / 3
    assert float(info_nce(query, item, temperature=0.1, exclude=exclude)) == pytest.approx(expected, rel=1e-12)


def weighted_loop(query, item, tau, hardness, margin=None) -> float:
    """LLaVE's weights and UniME's filter, one query and one candidate at a time."""
    total = 0.0
    for i in range(len(query)):
        similarity = [float(query[i] @ row) for row in item]
        denominator = math.exp(similarity[i] / tau)
        for j, s in enumerate(similarity):
            if j != i and (margin is None or s <= similarity[i] + margin):
                denominator += math.exp(hardness * s) * math.exp(s / tau)
        total -= math.log(math.exp(similarity[i] / tau) / denominator) / len(query)
    return total


def test_hardness_weights_every_negative_and_not_the_positive():
    query, item = unit(5, 6), unit(5, 6, seed=1)
    for hardness in (0.0, 1.0, 9.0):
        found = info_nce(query, item, temperature=0.1, hardness=hardness)
        assert float(found) == pytest.approx(weighted_loop(query, item, 0.1, hardness), rel=1e-12)


def test_no_gradient_flows_through_the_hardness_weights():
    query, item = unit(5, 6).requires_grad_(), unit(5, 6, seed=1)
    (found,) = torch.autograd.grad(info_nce(query, item, temperature=0.1, hardness=3.0), query)
    weights = 3.0 * (query.detach() @ item.T)
    weights.fill_diagonal_(0)
    oracle = F.cross_entropy(query @ item.T / 0.1 + weights, torch.arange(5))
    assert torch.allclose(found, torch.autograd.grad(oracle, query)[0], atol=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
def test_negatives_far_above_the_positive_are_left_out(margin):
    query, item = unit(6, 4), unit(6, 4, seed=1)
    found = info_nce(query, item, temperature=0.1, false_negative_margin=margin, hardness=2.0)
    assert float(found) == pytest.approx(weighted_loop(query, item, 0.1, 2.0, margin), rel=1e-12)
    similarity = query @ item.T
    assert bool((similarity > similarity.diagonal()[:, None] + margin).any()), "there was something to leave out"


def test_mined_negatives_are_weighted_and_filtered_like_the_others():
    query, item, negatives = unit(3, 6), unit(3, 6, seed=1), unit(3, 2, 6, seed=2)
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    kwargs = {"temperature": 0.1, "hardness": 4.0, "false_negative_margin": 0.2}
    found = info_nce(query, item, negatives=negatives, negatives_mask=mask, **kwargs)
    expected = 0.0
    for i in range(3):
        rows = torch.cat([item[i : i + 1], item[:i], item[i + 1 :], negatives[i][mask[i]]])
        s = rows @ query[i]
        kept = s <= s[0] + 0.2
        logits = (s / 0.1 + 4.0 * s * (torch.arange(len(s)) > 0))[kept]
        expected += float(F.cross_entropy(logits[None], torch.tensor([0]))) / 3
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_logits_are_float32_for_half_precision_inputs():
    query, item = unit(8, 16).bfloat16(), unit(8, 16, seed=1).bfloat16()
    found = info_nce(query, item)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(info_nce(query.float(), item.float())), rel=1e-6)


def test_gradient_is_that_of_finite_differences():
    query, item = unit(3, 5).requires_grad_(), unit(4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: info_nce(q, k, temperature=0.2), (query, item))


@pytest.mark.parametrize("temperature", [0, -1, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ConfigError, match="temperature"):
        info_nce(unit(2, 3), unit(2, 3), temperature=temperature)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match=r"\(2, 3\) and \(2, 4\)"):
        info_nce(unit(2, 3), unit(2, 4))
