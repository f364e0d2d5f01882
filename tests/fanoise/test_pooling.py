import pytest
import torch

from fanoise.errors import ConfigError
from fanoise.pooling import pool

HIDDEN = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
LEFT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
RIGHT = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])


def test_last_token_is_found_under_left_and_right_padding():
    assert torch.equal(pool(HIDDEN, LEFT, "last"), HIDDEN[[0, 1], [3, 3]])
    assert torch.equal(pool(HIDDEN, RIGHT, "last"), HIDDEN[[0, 1], [1, 3]])


def test_mean_ignores_padding():
    expected = torch.stack([HIDDEN[0, 2:].mean(0), HIDDEN[1].mean(0)])
    assert torch.allclose(pool(HIDDEN, LEFT, "mean"), expected)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_row_of_padding_gives_finite_values(pooling):
    assert torch.isfinite(pool(HIDDEN, torch.zeros(2, 4), pooling)).all()


def test_unknown_pooling_lists_the_known():
    with pytest.raises(ConfigError, match="last, mean"):
        pool(HIDDEN, LEFT, "first")
