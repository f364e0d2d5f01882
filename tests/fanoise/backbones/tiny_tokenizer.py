"""A byte-level BPE tokenizer of a few hundred tokens."""

from collections.abc import Sequence

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [f"a {colour} square, large and rather far to the left" for colour in ("red", "blue", "green", "yellow")]


def train_tokenizer(
    special_tokens: Sequence[str], *, end: str, vocabulary: int = 300, **settings: object
) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with `special_tokens` as its first ids; `end` also pads. `settings` go to transformers' class."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=end,
        additional_special_tokens=[token for token in special_tokens if token != end],
        **settings,
    )
