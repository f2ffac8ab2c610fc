"""Token files: those that other programs load, and reading them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..files import load_tensors, save_tensors

ENCODERS = ("text_encoder", "text_encoder_2")
_OF_TWO_ENCODERS = ("clip_l", "clip_g")  # kohya's keys, which ComfyUI reads
_OF_DIFFUSERS = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")
_KOHYA = ("emb_params", "emp_params")  # sd-scripts, and as OneTrainer spells it


def token_file_names(token: str, encoders: int) -> list[str]:
    """The files of a token, the one that :func:`load_token` reads first.

    Example:
        >>> token_file_names("<dog>", 2)
        ['<dog>.safetensors', 'learned_embeds.safetensors', 'learned_embeds_2.safetensors']
    """
    return [f"{token}.safetensors", *(_OF_DIFFUSERS if encoders == 2 else ())]


def save_token(folder: Path, token: str, rows: Mapping[str, Tensor]) -> None:
    """Write what :func:`token_file_names` names.

    One text encoder: the tensor under the token's name, which all programs load; A1111 takes the
    file's name for the token. Two: ``clip_l`` and ``clip_g``, and for diffusers, whose
    ``load_textual_inversion`` takes one encoder at a time, a file for each.

    Args:
        rows: (vectors, width) by text encoder.
    """
    metadata = {"format": "pt"}
    main, *others = [folder / name for name in token_file_names(token, len(rows))]
    if not others:
        (row,) = rows.values()
        save_tensors(main, {token: row}, metadata)
        return
    save_tensors(main, dict(zip(_OF_TWO_ENCODERS, rows.values(), strict=True)), metadata)
    for file, row in zip(others, rows.values(), strict=True):
        save_tensors(file, {token: row}, metadata)


@dataclass(frozen=True)
class LearnedToken:
    """A token from a file."""

    token: str
    rows: dict[str, Tensor]  # (vectors, width) by text encoder


def load_token(file: Path) -> LearnedToken | None:
    """The token in a file; None if it holds something else, such as a LoRA.

    A file that does not name its token, with ``clip_l`` and ``clip_g`` or ``emb_params``, is named
    by it.

    Raises:
        InputError: The file is damaged, or the vectors of two encoders are not as many.
    """
    tensors, _ = load_tensors(file)
    if tensors.keys() == set(_OF_TWO_ENCODERS):
        token, found = file.stem, [tensors[key] for key in _OF_TWO_ENCODERS]
    elif len(tensors) == 1:
        ((key, row),) = tensors.items()
        token, found = (file.stem if key in _KOHYA else key), [row]
    else:
        return None
    if any(row.dim() != 2 for row in found):
        return None
    if any(len(row) != len(found[0]) for row in found):
        raise InputError(f"adapter: {file} must have as many vectors for each text encoder")
    return LearnedToken(token, {e: row.float() for e, row in zip(ENCODERS, found, strict=False)})
