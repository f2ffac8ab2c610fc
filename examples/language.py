"""A small causal language model and its text, both made here, for the examples.

The text's words are numbers. The next number is one more, or at times two more; fine-tuning is
on text in which it is nearly always one more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, LENGTH = 24, 16


def text(count: int, by_one: float, seed: int) -> Tensor:
    """``count`` sentences in which a step is by one with probability ``by_one``, else by two."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(VOCABULARY, (count, 1), generator=generator)
    steps = 1 + (torch.rand(count, LENGTH - 1, generator=generator) > by_one).long()
    return torch.cat([first, first + steps.cumsum(dim=1)], dim=1) % VOCABULARY


def pretrained_model(steps: int = 150) -> LlamaForCausalLM:
    """The model after ``steps`` of backpropagation on text with both kinds of step as often."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        tokens = text(32, 0.5, seed=step)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
