import pytest
import torch

from fanoise.errors import ConfigError
from fanoise.pooling import one_word_prompt, pool

HIDDEN = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
LEFT = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
RIGHT = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])


def test_last_token_is_found_under_left_and_right_padding():
    assert torch.equal(pool(HIDDEN, LEFT, "last"), HIDDEN[[0, 1], [3, 3]])
    assert torch.equal(pool(HIDDEN, RIGHT, "last"), HIDDEN[[0, 1], [1, 3]])


def test_mean_ignores_padding():
    expected = torch.stack([HIDDEN[0, 2:].mean(0), HIDDEN[1].mean(0)])
    assert torch.allclose(pool(HIDDEN, LEFT, "mean"), expected)


def test_prompt_is_the_last_token():
    for mask in (LEFT, RIGHT):
        assert torch.equal(pool(HIDDEN, mask, "prompt"), pool(HIDDEN, mask, "last"))


def test_a_row_of_padding_gives_its_first_position_or_zeros():
    nothing = torch.zeros(2, 4)
    assert torch.equal(pool(HIDDEN, nothing, "last"), HIDDEN[:, 0])
    assert torch.equal(pool(HIDDEN, nothing, "mean"), torch.zeros(2, 3))


def test_a_gap_in_the_mask_is_no_end():
    assert torch.equal(pool(HIDDEN, torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]), "last"), HIDDEN[[0, 1], [2, 3]])


@pytest.mark.parametrize("pooling", ["last", "mean", "prompt"])
def test_only_attended_tokens_get_a_gradient(pooling):
    hidden = HIDDEN.clone().requires_grad_()
    pool(hidden, RIGHT, pooling).sum().backward()
    assert hidden.grad is not None
    share = hidden.grad.sum(dim=1)
    assert torch.allclose(share, torch.ones(2, 3))
    assert not hidden.grad[RIGHT == 0].any()


@pytest.mark.parametrize("pooling", ["first", "native"])
def test_unknown_pooling_lists_the_known(pooling):
    with pytest.raises(ConfigError, match=f"last, mean, prompt, got '{pooling}'"):
        pool(HIDDEN, LEFT, pooling)


def test_the_question_names_what_the_row_holds():
    assert one_word_prompt(text=True, image=False) == "\nSummary above sentence in one word: "
    assert one_word_prompt(text=False, image=True) == "\nSummary above image in one word: "
    both = one_word_prompt(text=True, image=True)
    assert "image" in both
    assert "sentence" in both
    assert one_word_prompt(text=False, image=False) == one_word_prompt(text=True, image=False)
