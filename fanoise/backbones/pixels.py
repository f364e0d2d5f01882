"""Images wait for the model as bytes: a quarter of the memory of the numbers that an image processor makes of them.

A processor rescales and normalises each byte of the resized image. That is done on the model's device instead, by the
same arithmetic, so the numbers are the same to the bit and less is kept, moved between processes, and sent to a GPU.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

_BYTES = np.arange(256)


@dataclass(frozen=True)
class PixelScale:
    """What an image processor makes of a byte of a channel: (byte / divisor - mean) / std."""

    divisor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, image_processor: Any) -> Self | None:
        """None where the processor leaves one of the steps out, or would come to other numbers."""
        if not (getattr(image_processor, "do_rescale", False) and getattr(image_processor, "do_normalize", False)):
            return None
        factor = image_processor.rescale_factor
        if not factor:
            return None
        divisor = round(1 / factor, 6)
        # as transformers does it, in double precision, and as it is done here
        theirs, ours = (_BYTES * factor).astype(np.float32), _BYTES.astype(np.float32) / np.float32(divisor)
        if not np.array_equal(theirs, ours):
            return None
        return cls(divisor, tuple(image_processor.image_mean), tuple(image_processor.image_std))

    def numbers_of(self, pixels: Tensor) -> Tensor:
        """float32 of uint8 [..., 3, H, W], or of flat patches [N, 3 * P] with one channel after the other."""
        channels = pixels.unflatten(1, (len(self.mean), -1, 1)) if pixels.ndim == 2 else pixels
        mean, std = (pixels.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        # a tensor: CUDA multiplies by the inverse of a plain number, which rounds otherwise
        divisor = pixels.new_tensor(self.divisor, dtype=torch.float32)
        return channels.float().div_(divisor).sub_(mean).div_(std).view(pixels.shape)
