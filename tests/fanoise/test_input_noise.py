import pytest
import torch

from fanoise.backbones import Example, load_backbone
from fanoise.input_noise import InputNoise


def test_noise_is_uniform_and_scaled_by_the_attended_length_of_each_row():
    embedded = torch.zeros(2, 50, 400)
    mask = torch.ones(2, 50)
    mask[1, 10:] = 0
    torch.manual_seed(0)
    noisy = InputNoise(5.0).perturb(embedded, mask)
    for row, length in ((0, 50), (1, 10)):
        limit = 5.0 / (length * 400) ** 0.5
        assert float(noisy[row].abs().max()) == pytest.approx(limit, rel=1e-3)
        assert float(noisy[row].std()) == pytest.approx(limit / 3**0.5, rel=0.02)
    # the whole row's noise has length strength / sqrt(3), whatever the row
    assert float(noisy[0].norm()) == pytest.approx(5.0 / 3**0.5, rel=0.02)


def test_only_training_is_perturbed_and_removing_undoes_it(tiny_base):
    backbone = load_backbone(tiny_base)
    batch = backbone.collate([Example(prompt="a ", text="red square", image=None)] * 2, max_tokens=16)
    noise = InputNoise(5.0)
    plain = backbone.forward(batch, "last")
    handle = noise.attach(backbone.language_model)
    assert torch.equal(backbone.forward(batch, "last"), plain)
    backbone.model.train()
    first, second = backbone.forward(batch, "last")
    assert not torch.allclose(first, second), "each row has its own noise"
    torch.manual_seed(3)
    one = backbone.forward(batch, "last")
    torch.manual_seed(3)
    assert torch.equal(backbone.forward(batch, "last"), one), "GradCache's second pass repeats it"
    noise.strength = 0.0
    assert torch.equal(backbone.forward(batch, "last"), plain)
    noise.strength = 5.0
    handle.remove()
    assert torch.equal(backbone.forward(batch, "last"), plain)
