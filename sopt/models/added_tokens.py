"""New words in a model's vocabulary: tokens in the tokenizer, rows beside the embedding table."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor, nn

from ..errors import InputError


class AddedRows(nn.Module):
    """An embedding table with further rows, which alone are trained; the table is not copied.

    The ids from ``first`` on mean the rows. They are float32, whatever the table's dtype is.

    Args:
        rows: (vectors, width) float32.
        dtype: Of what is looked up; the table's if not given.

    Attributes:
        candidates: None, or (batch, vectors, width): rows that each element of a batch has
            instead.

    Example:
        >>> table = nn.Embedding(3, 2)
        >>> embedding = AddedRows(table, torch.ones(1, 2), first=3)
        >>> embedding(torch.tensor([[3]]))
        tensor([[[1., 1.]]], grad_fn=<WhereBackward0>)
    """

    def __init__(
        self, table: nn.Embedding, rows: Tensor, first: int, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self._dtype = table.weight.dtype if dtype is None else dtype
        self.table = table
        self.rows = nn.Parameter(rows)
        self.first = first
        self.candidates: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings (batch, tokens, width) of ids (batch, tokens)."""
        position = ids - self.first
        added = (position >= 0) & (position < len(self.rows))
        position = position.clamp(0, len(self.rows) - 1)
        known = self.table(ids.masked_fill(added, 0)).to(self._dtype)
        if self.candidates is None:
            chosen = self.rows[position]
        else:
            chosen = self.candidates[torch.arange(len(ids), device=ids.device)[:, None], position]
        return torch.where(added[..., None], chosen.to(self._dtype), known)

    @property
    def weight(self) -> Tensor:
        """The table, which tells callers device and dtype."""
        return self.table.weight


def add_rows(encoder: Any, rows: Tensor, first: int, dtype: torch.dtype | None = None) -> AddedRows:
    """Put rows beside the embedding table of a text encoder, in place; see :class:`AddedRows`."""
    embedding = AddedRows(encoder.get_input_embeddings(), rows, first, dtype)
    encoder.set_input_embeddings(embedding)
    return embedding


def add_tokens(tokenizer: Any, token: str, num_vectors: int) -> tuple[Any, int]:
    """A copy of a tokenizer that knows ``token`` and the names of its further vectors,
    ``token_1``, ``token_2``, ..., as diffusers gives them; and the first of their ids.

    Raises:
        InputError: It knows one of them already, as a token or as a whole word.
    """
    names = token_names(token, num_vectors)
    for name in names:
        if name in tokenizer.get_vocab() or len(tokenizer.tokenize(name)) == 1:
            raise InputError(
                f"token={token!r}: the tokenizer knows {name!r} already; "
                f"choose another, such as '<{name.strip('<>')}-1>'"
            )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(names)
    return tokenizer, tokenizer.convert_tokens_to_ids(token)


def token_names(token: str, num_vectors: int) -> list[str]:
    """``token``, ``token_1``, ``token_2``, ..."""
    return [token, *(f"{token}_{i}" for i in range(1, num_vectors))]


def id_of_word(tokenizer: Any, word: str) -> int:
    """The id of a word of one token.

    Raises:
        InputError: It is none, or several.
    """
    pieces = tokenizer.tokenize(word)
    if len(pieces) != 1 or pieces[0] == tokenizer.unk_token:
        raise InputError(
            f"initializer={word!r} must be one token, but the tokenizer cuts it into "
            f"{' '.join(map(str, pieces)) or 'none'}"
        )
    return tokenizer.convert_tokens_to_ids(pieces[0])


def spell_out(tokenizer: Any, text: str) -> str:
    """The text with all of a word's tokens in its place, by the rule of diffusers' pipelines."""
    return TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer)
