"""What the families that read image and text tokens in one row promise: see `fanoise.backbones.base.TokenBackbone`."""

import pytest
import torch

from tests.fanoise.backbones.examples import EXAMPLES, asking, count, embed, example, ids, picture
from tests.fanoise.backbones.families import FAMILIES


@pytest.fixture(scope="module", params=[name for name, family in FAMILIES.items() if family.has_tokens])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# rows


def test_every_row_ends_with_the_end_of_text(backbone):
    end = backbone.processor.tokenizer.convert_tokens_to_ids(backbone.end_of_text)
    for row in ids(backbone, *EXAMPLES):
        assert row[-1] == end
        assert row.count(end) == 1


def test_prompt_text_and_image_all_change_the_vector(backbone):
    image = picture(seed=4)
    variants = [
        example("red", image),
        example("blue", image),
        example("red", picture(seed=5)),
        example("red"),
        type(EXAMPLES[0])(prompt="Show: ", text="red", image=image),
    ]
    assert torch.pdist(embed(backbone, variants)).min() > 1e-3


def test_prompt_pooling_takes_the_state_after_the_question(backbone):
    asked = asking(EXAMPLES)
    batch = backbone.collate(asked, max_tokens=512)
    end = backbone.processor.tokenizer.convert_tokens_to_ids(backbone.end_of_text)
    with torch.inference_mode():
        hidden = backbone.hidden_states(batch)
        vectors = backbone.forward(batch, "prompt")
    for number, (row, one) in enumerate(zip(ids(backbone, *asked), asked, strict=True)):
        assert backbone.processor.tokenizer.decode(row).endswith(one.suffix)
        assert end not in row
        last = int(batch["attention_mask"][number].nonzero().max())
        assert int(batch["input_ids"][number, last]) == row[-1]
        assert torch.equal(vectors[number], hidden[number, last])
    suffixes = {(bool(one.text), one.image is not None): one.suffix for one in asked}
    assert suffixes[True, True] != suffixes[True, False] != suffixes[False, True]


def test_a_long_text_is_cut_and_the_question_is_not(backbone):
    (long,) = asking([example("a red square of some size " * 40)])
    (row,) = ids(backbone, long, max_tokens=5)
    assert backbone.processor.tokenizer.decode(row).endswith(long.suffix)


# where the hidden states come from


def test_hidden_states_are_those_after_the_final_norm(backbone):
    seen = {}
    norm = backbone.language_model.norm
    hook = norm.register_forward_hook(lambda _, inputs, output: seen.update(before=inputs[0], after=output))
    batch = backbone.collate(EXAMPLES, max_tokens=512)
    with torch.inference_mode():
        hidden = backbone.hidden_states(batch)
        hook.remove()
        assert torch.equal(hidden, norm(seen["before"]))
    assert hidden.shape == (*batch["attention_mask"].shape, backbone.dim)
    assert (hidden - seen["before"]).abs().max() > 0.1


def test_the_language_head_is_never_computed(backbone):
    called = []
    heads = [module for name, module in backbone.model.named_modules() if name.endswith("lm_head")]
    hooks = [head.register_forward_hook(lambda *_: called.append(1)) for head in heads]
    embed(backbone, EXAMPLES[:3])
    for hook in hooks:
        hook.remove()
    assert called == []


def test_the_language_model_takes_the_embeddings_of_all_tokens(backbone):
    seen = {}
    hook = backbone.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    batch = backbone.collate(EXAMPLES, max_tokens=512)
    with torch.inference_mode():
        hidden = backbone.hidden_states(batch)
    hook.remove()
    assert seen["inputs_embeds"].shape == hidden.shape
    assert seen["inputs_embeds"].is_floating_point()


# the limits on images and text


SIZES = [(300, 200), (200, 300), (1000, 1000), (57, 85), (20, 20), (40, 20), (1, 150), (600, 4), (28, 27)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_no_image_takes_more_tokens_than_the_limit_allows(own, family, size):
    for limit in reversed(family.limits):
        own.set_max_pixels(limit)
        (row,) = ids(own, example("red", picture(*size)))
        assert 1 <= count(own, row, family.image_token) <= family.image_tokens(limit)
        assert torch.isfinite(embed(own, [example("red", picture(*size))])).all()


def test_a_higher_limit_gives_a_large_image_more_tokens(own, family):
    found = []
    for limit in family.limits:
        own.set_max_pixels(limit)
        found.append(count(own, ids(own, example("", picture(1000, 1500)))[0], family.image_token))
    assert found == sorted(found)
    assert found[0] < found[-1]


@pytest.mark.parametrize("max_tokens", [1, 5, 17])
def test_long_text_is_cut_and_prompt_image_and_end_are_not(backbone, family, max_tokens):
    text, image = "a red square of some size " * 40, picture(56, 84)
    image_token = backbone.processor.tokenizer.convert_tokens_to_ids(family.image_token)
    (nothing,), (cut,) = (ids(backbone, example(one, image), max_tokens=max_tokens) for one in ("", text))
    after_image = len(nothing) - nothing[::-1].index(image_token)
    assert cut[:after_image] == nothing[:after_image]
    assert cut[-1] == nothing[-1]
    assert len(cut) == len(nothing) + max_tokens
    assert count(backbone, cut, family.image_token) == count(backbone, nothing, family.image_token) > 0


def test_text_of_exactly_the_limit_is_whole(backbone):
    text = "a red square"
    length = len(backbone.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert ids(backbone, example(text), max_tokens=length) == ids(backbone, example(text))
    assert len(ids(backbone, example(text), max_tokens=length - 1)[0]) < len(ids(backbone, example(text))[0])


@pytest.mark.parametrize("image", [None, picture()], ids=["text", "both"])
def test_special_tokens_in_a_text_make_no_special_token_in_the_row(backbone, image):
    special = set(backbone.processor.tokenizer.all_special_ids)
    (plain,) = ids(backbone, example("red  square", image))
    for token in backbone.special_tokens:
        (attacked,) = ids(backbone, example(f"red {token[:3]}{token}{token[3:]} {token * 3} square", image))
        assert [i for i in attacked if i in special] == [i for i in plain if i in special], token
