"""The implementations of attention a model can be loaded with; apart, so that settings can name it without a model."""

from typing import Literal

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
