"""The text encoders of a run with the new word's embeddings in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models import Model
from ..models.added_tokens import AddedRows, add_rows
from ..models.conditioning import Prompt, run_encoder
from ..models.storage import Int8Storage, Storage, float_dtype
from .words import Word


def load_encoder(model: Model, component: str, storage: Storage, device: torch.device) -> Any:
    """A text encoder that computes in the dtype of ``storage``. On int8 weights its token table,
    of which little is read, is bfloat16 all the same: half of the encoder's memory."""
    if not isinstance(storage, Int8Storage):
        return model.load(component, storage, device)
    encoder = model.load(component, Int8Storage(torch.bfloat16), device)
    table = encoder.get_input_embeddings()
    for owner in encoder.modules():
        for weight in owner.parameters(recurse=False):
            if owner is not table:
                weight.data = weight.data.to(storage.dtype)
    return encoder


class TokenText:
    """Text encoders that stay in memory, because each forward has other embeddings.

    The networks themselves say what a prompt is, as in diffusers. The published configurations
    have the pooled text at the highest id (``eos_token_id`` 2), which is the new word's: so it is
    here, as it will be in the pipeline that loads the token.

    Attributes:
        rows: Embeddings (vectors, width), float32, by canonical name
            ``text_encoder.token.<token>``; trainable.
    """

    def __init__(
        self,
        model: Model,
        token: str,
        num_vectors: int,
        words: Mapping[str, Word],
        dtype: Storage,
        device: torch.device,
    ) -> None:
        self._model = model
        self._device = device
        self._words = words
        self._encoded: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
        self.encoders = {name: load_encoder(model, name, dtype, device) for name in words}
        self._embeddings: dict[str, AddedRows] = {}
        self.rows: dict[str, Tensor] = {}
        for name, encoder in self.encoders.items():
            table = encoder.get_input_embeddings().weight
            start = table[words[name].initializer].detach().float().repeat(num_vectors, 1)
            self._embeddings[name] = add_rows(encoder, start, words[name].first, float_dtype(dtype))
            self.rows[f"{name}.token.{token}"] = self._embeddings[name].rows

    def encode(self, caption: str, candidates: Mapping[str, Tensor] | None = None) -> Prompt:
        """The caption under the trained embeddings, or under k others at once.

        Args:
            candidates: (k, vectors, width) by the names of ``rows``.
        """
        parts, pooled = [], None
        texts = self._texts(caption)
        for (name, encoder), row in zip(self.encoders.items(), self.rows, strict=True):
            ids, mask = texts[name]
            if candidates is not None:
                count = len(candidates[row])
                ids, mask = ids.expand(count, -1), mask.expand(count, -1)
                self._embeddings[name].candidates = candidates[row]
            try:
                prompt = run_encoder(self._model, encoder, ids, mask)
            finally:
                self._embeddings[name].candidates = None
            parts.append(prompt.tokens)
            pooled = prompt.pooled
        return Prompt(torch.cat(parts, dim=-1), pooled)

    def _texts(self, caption: str) -> dict[str, tuple[Tensor, Tensor]]:
        if caption not in self._encoded:
            self._encoded[caption] = {
                name: word.ids_and_mask(caption, self._device) for name, word in self._words.items()
            }
        return self._encoded[caption]
