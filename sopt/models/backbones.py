"""The networks behind the evaluation's metrics: DINO, and CLIP with its text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, CLIPModel, CLIPTokenizer, Dinov2Model, ViTModel

from ..errors import InputError

# By model type; the first token is the CLS embedding. A pooler would come after what is used here.
DINO_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vit": (ViTModel, {"add_pooling_layer": False}),
    "dinov2": (Dinov2Model, {}),
}
WEIGHTS, PICKLE = "safetensors weights", "pytorch_model.bin"
DINOV2_SIDE = 224  # pixels: it says 518, and is evaluated at 224


class DinoBackbone:
    """Embeddings of pictures by a vision transformer: that of the CLS token, after the last norm.

    Args:
        name: A folder that ``save_pretrained`` wrote, or a hub id.
        device: Where it computes, in float32.

    Raises:
        InputError: It is not there, incomplete, or of another kind.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        config = _config("dino", name, list(DINO_KINDS))
        self.side = config.image_size
        if config.model_type == "dinov2":  # which alone takes other sides than its own
            self.side = min(self.side, DINOV2_SIDE)
        kind, options = DINO_KINDS[config.model_type]
        self.network = _load(kind, "dino", name, device, **options)

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """(n, 3, side, side) float32, normalised -> (n, width) float32."""
        return self.network(pixel_values=pixels).last_hidden_state[:, 0]


class ClipBackbone:
    """Embeddings of pictures and texts in one space, by CLIP; arguments as above, and a folder that
    the tokenizer's ``save_pretrained`` wrote too."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.side = _config("clip", name, ("clip",)).vision_config.image_size
        self.network = _load(CLIPModel, "clip", name, device)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(name)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(_not_there("clip", name, "tokenizer", error)) from error
        self._check_tokenizer(name)

    def _check_tokenizer(self, name: str) -> None:
        """Without files transformers makes one up, of the marks of begin and end alone, to which
        all texts are the same."""
        known = self.network.config.text_config.vocab_size
        one, other = self.tokenizer(["a", "b"]).input_ids
        if one == other or max(one + other) >= known:
            raise InputError(
                f"clip {name!r} must have the tokenizer of its model, of {known} tokens, and has "
                f"one of {len(self.tokenizer)}: where it is a folder, save_pretrained of the "
                f"tokenizer writes its files into it, and `hf download {name}` gets a hub's"
            )

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """(n, 3, side, side) float32, normalised -> (n, width) float32."""
        pooled = self.network.vision_model(pixel_values=pixels).pooler_output
        return self.network.visual_projection(pooled)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(n, width) float32; texts are cut at the encoder's length."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.network.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).to(self.network.device)
        pooled = self.network.text_model(**tokens).pooler_output
        return self.network.text_projection(pooled)


def _config(argument: str, name: str, kinds: Sequence[str]) -> Any:
    _check_there(argument, name)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(_not_there(argument, name, "configuration", error)) from error
    if config.model_type not in kinds:
        raise InputError(
            f"{argument} {name!r} must be a model of type {' or '.join(kinds)}, "
            f"got {config.model_type}"
        )
    return config


def _check_there(argument: str, name: str) -> None:
    """At once: transformers asks a hub that does not answer for half a minute."""
    if Path(name).expanduser().exists():
        return
    try:
        snapshot_download(name, allow_patterns=["config.json"])
    except HFValidationError as error:
        raise InputError(
            f"{argument} {name!r}: there is no such folder, and it is not a hub id"
        ) from error
    except (OSError, ValueError, HTTPError) as error:  # a proxy's refusal is the last alone
        raise InputError(_not_there(argument, name, "configuration", error)) from error


def _load(kind: Any, argument: str, name: str, device: torch.device, **options: Any) -> Any:
    try:
        network, loading = kind.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        raise InputError(_not_there(argument, name, WEIGHTS, error)) from error
    except SafetensorError as error:
        raise InputError(
            f"{argument} {name!r}: its weights are damaged, or not a safetensors file: {error}"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"{argument} {name!r} lacks weights: {missing[0]}, of {len(missing)}")
    return network.to(device).eval().requires_grad_(False)


def _not_there(argument: str, name: str, what: str, error: Exception) -> str:
    if what == WEIGHTS and _has_pickle(name):
        return (
            f"{argument} {name!r} has its weights in {PICKLE} alone, a format that may run code: "
            "convert it once where you trust it, AutoModel.from_pretrained(...).save_pretrained("
            "FOLDER) of transformers, for clip AutoTokenizer likewise, and name FOLDER"
        )
    if Path(name).expanduser().exists():
        return f"{argument}: the folder {name} has no {what} that can be read"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"{argument} {name!r}: there is no such folder, and it cannot be had from the hub; name a "
        f"folder that save_pretrained wrote, or a hub id that `hf download {name}` fetches where "
        f"there is a network ({reason})"
    )


def _has_pickle(name: str) -> bool:
    """Whether the weights are there, in the folder or the hub's cache, in a format not read."""
    folder = Path(name).expanduser()
    return (folder / PICKLE).is_file() if folder.exists() else _is_cached(name)


def _is_cached(name: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(name, PICKLE), str)
    except HFValidationError:  # no name of the hub's
        return False
