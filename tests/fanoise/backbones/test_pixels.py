from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fanoise.backbones.pixels import PixelScale

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def processor(**settings):
    defaults = {"do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    return SimpleNamespace(**{**defaults, "image_mean": MEAN, "image_std": STD, **settings})


def every_byte():
    """uint8 [2, 3, 16, 16]: each byte in each channel, and the same backwards."""
    channel = torch.arange(256, dtype=torch.uint8).view(16, 16)
    return torch.stack([channel.expand(3, 16, 16), channel.flip(0, 1).expand(3, 16, 16)])


def in_double_precision(pixels, factor, mean, std):
    """As transformers does it for images of NumPy: rescaled in float64, the rest in float32."""
    scaled = (pixels.numpy().astype(np.float64) * factor).astype(np.float32)
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
    return torch.from_numpy((scaled - mean) / std)


@pytest.mark.parametrize("factor", [1 / 255, 1 / 127.5, 1 / 256])
def test_every_byte_becomes_the_number_of_its_channel_bit_for_bit(factor):
    found = PixelScale.of(processor(rescale_factor=factor)).numbers_of(every_byte())
    assert found.dtype == torch.float32
    assert torch.equal(found, in_double_precision(every_byte(), factor, MEAN, STD))


def test_tiles_and_flat_patches_are_scaled_like_images():
    scale, pixels = PixelScale.of(processor()), every_byte()
    numbers = scale.numbers_of(pixels)
    assert torch.equal(scale.numbers_of(pixels[None].repeat(4, 1, 1, 1, 1)), numbers[None].repeat(4, 1, 1, 1, 1))
    assert torch.equal(scale.numbers_of(pixels.flatten(1)), numbers.flatten(1))


@pytest.mark.parametrize(
    "settings",
    [{"do_rescale": False}, {"do_normalize": False}, {"rescale_factor": 0.0039}],
    ids=["not rescaled", "not normalised", "rounds otherwise"],
)
def test_there_is_no_scale_where_the_numbers_would_be_others(settings):
    assert PixelScale.of(processor(**settings)) is None


def test_a_processor_of_its_own_kind_has_no_scale():
    assert PixelScale.of(SimpleNamespace(image_mean=MEAN, image_std=STD)) is None
