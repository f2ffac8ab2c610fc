"""The new word of a run in the tokenizers of its model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data import Picture
from ..errors import InputError
from ..models import Model
from ..models.added_tokens import add_tokens, id_of_word, spell_out
from ..models.conditioning import tokenize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Word:
    """The new word in one tokenizer."""

    tokenizer: Any  # a copy that knows the word
    first: int  # of the ids that stand for it
    initializer: int  # the id of the word whose embedding it starts from

    def ids_and_mask(self, text: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of a text with all of the word's tokens in its place, cut and padded: (1, tokens)."""
        return tokenize(self.tokenizer, spell_out(self.tokenizer, text), device)


def learn_word(config: TrainConfig, model: Model) -> dict[str, Word]:
    """The word of a run's settings, by text encoder.

    Raises:
        InputError: A tokenizer knows the word already, or cuts the initializer into pieces.
    """
    assert config.token is not None
    assert config.initializer is not None
    words = {}
    for encoder, component in model.kind.tokenizers.items():
        plain = model.tokenizer(component)
        initializer = id_of_word(plain, config.initializer)
        tokenizer, first = add_tokens(plain, config.token, config.num_vectors)
        words[encoder] = Word(tokenizer, first, initializer)
    return words


def check_captions(
    config: TrainConfig, words: Mapping[str, Word], pictures: Iterable[Picture]
) -> None:
    """Raise InputError unless the word is in every caption and, for the samples, in the prompt,
    whole, before the text encoders' cut; and for pictures for prior preservation, on which a token
    has no effect."""
    texts = []  # not by name: two folders may have pictures of one
    for picture in pictures:
        if picture.regularization:
            raise InputError(
                f"{picture.name} is for prior preservation, which does not go with train='token'"
            )
        texts.append((f"the caption of {picture.name}", picture.caption))
    texts.append(("prompt", config.prompt))
    for (name, text), word in product(texts, words.values()):
        ids, _ = word.ids_and_mask(text, torch.device("cpu"))
        needed = range(word.first, word.first + config.num_vectors)
        if not set(needed) <= set(ids.flatten().tolist()):
            raise InputError(
                f"{name} must have the token {config.token!r} within the "
                f"{word.tokenizer.model_max_length} tokens that the model takes, got {text!r}"
            )


def warn_of_rounding(config: TrainConfig) -> None:
    """Say so where zeroth-order steps would follow the rounding of 16-bit activations."""
    sixteen = config.weights in ("bfloat16", "float16")
    if sixteen and config.schedule != 0.0 and config.eps != "auto":
        logger.warning(
            "what perturbations of a token do to the loss does not stand out of the rounding of "
            "%s activations: float32 and int8 weights have float32 ones, eps='auto' measures",
            config.weights,
        )
