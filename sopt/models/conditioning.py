"""What the U-Net is told beside the latents: the prompt and, for SDXL, the picture's size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..memory import MemoryRecorder
from .model import Model
from .storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A prompt as the U-Net takes it."""

    tokens: Tensor  # (batch, tokens, width), the batch mostly 1
    pooled: Tensor | None = None  # (batch, pooled width), for the models that take sizes


@torch.no_grad()
def encode_prompts(
    model: Model,
    prompts: Sequence[str],
    dtype: Storage,
    memory: MemoryRecorder,
    load: Callable[..., Any] = Model.load,
) -> dict[str, Prompt]:
    """Encode texts, one text encoder after the other in memory.

    SD1.5 and SD2.1 take the last hidden state; SDXL the last but one of both encoders, side by
    side, and the pooled, projected output of the second. A prompt that is too long is cut with a
    warning, as diffusers does.

    Args:
        dtype: Of the encoders' weights, and of the result.
        load: Gives a text encoder, called as :meth:`Model.load` is.
    """
    parts: dict[str, list[Tensor]] = {prompt: [] for prompt in prompts}
    pooled: dict[str, Tensor] = {}
    for component, tokenizer_name in model.kind.tokenizers.items():
        tokenizer = model.tokenizer(tokenizer_name)
        with memory.phase("load"):
            encoder = load(model, component, dtype, memory.device)
        with memory.phase("cache"):
            for prompt in parts:
                ids, mask = tokenize(tokenizer, prompt, memory.device)
                encoded = run_encoder(model, encoder, ids, mask)
                parts[prompt].append(encoded.tokens)
                if encoded.pooled is not None:
                    pooled[prompt] = encoded.pooled
        del encoder, encoded
    return {
        prompt: Prompt(torch.cat(hidden, dim=-1), pooled.get(prompt))
        for prompt, hidden in parts.items()
    }


def run_encoder(model: Model, encoder: Any, ids: Tensor, mask: Tensor) -> Prompt:
    """One text encoder's share of prompts: its hidden states (batch, tokens, width), and of a
    second encoder the pooled output (batch, pooled width).

    Args:
        ids, mask: (batch, tokens), from the tokenizer.
    """
    masked = getattr(encoder.config, "use_attention_mask", False)
    out = encoder(
        ids,
        attention_mask=mask if masked else None,
        output_hidden_states=model.takes_sizes,
    )
    if not model.takes_sizes:
        return Prompt(out[0])
    return Prompt(out.hidden_states[-2], getattr(out, "text_embeds", None))


def time_ids(original: tuple[int, int], crop: tuple[int, int], side: int) -> Tensor:
    """SDXL's description of a picture: (1, 6) float32.

    Args:
        original: Height and width before any resizing, in pixels.
        crop: Top and left of the square crop, in pixels after resizing.
        side: Of the square picture that the U-Net is trained on.
    """
    return torch.tensor([[*original, *crop, side, side]], dtype=torch.float32)


def tokenize(tokenizer: Any, prompt: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of a prompt, cut and padded to what the model takes: (1, tokens)."""
    length = tokenizer.model_max_length
    tokens = tokenizer(
        prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    if len(tokenizer(prompt).input_ids) > length:
        logger.warning("prompt %r is cut after the %d tokens that the model takes", prompt, length)
    return tokens.input_ids.to(device), tokens.attention_mask.to(device)
