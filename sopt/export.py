"""Adapter files that other programs load: diffusers' layout and kohya's, with repeatable bytes.

Neither file carries a date, a path or a duration: the same adapter gives the same bytes.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .files import save_tensors

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"  # the name load_lora_weights looks for
HOLLOW_KEY = "sopt_hollow"  # in the metadata of an adapter trained on a hollowed U-Net


def save_diffusers_lora(
    path: str | Path,
    adapter: Mapping[str, Tensor],
    rank: int,
    alpha: float,
    target_modules: Iterable[str],
    cut: str | None = None,
) -> None:
    """Write what ``StableDiffusionPipeline.save_lora_weights`` writes: keys
    ``unet.<module>.lora.down.weight`` (rank, in) and ``unet.<module>.lora.up.weight`` (out, rank).

    Rank, alpha and target modules go into the header as ``lora_adapter_metadata``, without which a
    loader takes alpha = rank. No other setting of peft's does, so old versions of it load the file.

    Args:
        path: File to write; name it ``DIFFUSERS_FILE`` to have its folder loadable.
        adapter: Canonical names ``unet.<module>.lora_A.weight`` (rank, in) and
            ``unet.<module>.lora_B.weight`` (out, rank) of attention projections.
        rank, alpha: The adapter adds ``alpha / rank * B @ A`` to a weight.
        target_modules: Endings of the adapted modules' names, such as ``to_q``.
        cut: Of the hollowed U-Net that it was trained on; the header says it, and how to sample.
    """
    tensors = {
        name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): tensor
        for name, tensor in adapter.items()
    }
    configuration = {
        "unet.r": rank,
        "unet.lora_alpha": alpha,
        "unet.target_modules": sorted(target_modules),
    }
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(configuration, indent=2, sort_keys=True),
        **_hollow_metadata(cut),
    }
    save_tensors(path, tensors, metadata)


def save_kohya_lora(
    path: str | Path,
    adapter: Mapping[str, Tensor],
    rank: int,
    alpha: float,
    *,
    prompt: str,
    resolution: int,
    prediction_type: str,
    family: str,
    cut: str | None = None,
) -> None:
    """Write the layout of kohya's sd-scripts, which ComfyUI, A1111 and their relatives read: keys
    ``lora_unet_<module with underscores>`` with the endings ``.lora_down.weight`` (rank, in),
    ``.lora_up.weight`` (out, rank) and ``.alpha`` (a scalar).

    The header names the base model: web UIs offer a file with models of its base alone.

    Args:
        path, adapter, rank, alpha: As in :func:`save_diffusers_lora`.
        prompt: The training prompt, kept as title and trigger phrase.
        resolution: Side of the training pictures in pixels.
        prediction_type: The scheduler's, ``epsilon`` or ``v_prediction``.
        family: Of the model: ``sd15``, ``sd21`` or ``sdxl``.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in adapter.items():
        module, factor = name.removesuffix(".weight").rsplit(".", 1)
        stem = f"lora_{module.replace('.', '_')}"
        tensors[f"{stem}.{_KOHYA_FACTOR[factor]}.weight"] = tensor
        tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
    v_prediction = prediction_type == "v_prediction"
    base, architecture = _base_model(family, v_prediction)
    metadata = {
        "format": "pt",
        "ss_v2": str(family == "sd21"),
        "ss_base_model_version": base,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(alpha)),
        "ss_network_args": "{}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": _SDXL_CODE if family == "sdxl" else "diffusers",
        "modelspec.title": prompt,
        "modelspec.trigger_phrase": prompt,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": "v" if v_prediction else "epsilon",
        **_hollow_metadata(cut),
    }
    save_tensors(path, tensors, metadata)


def _hollow_metadata(cut: str | None) -> dict[str, str]:
    if cut is None:
        return {}
    content = {
        "cut": cut,
        "inference": "two paths a step, by sopt.generate(adapter=...) or, for a diffusers pipeline,"
        " sopt.hollow.apply(pipe, adapter); loaded as a plain LoRA it is an approximation",
    }
    return {HOLLOW_KEY: json.dumps(content, sort_keys=True)}


_KOHYA_FACTOR = {"lora_A": "lora_down", "lora_B": "lora_up"}


_SDXL_CODE = "https://github.com/Stability-AI/generative-models"  # as ModelSpec wants it


def _base_model(family: str, v_prediction: bool) -> tuple[str, str]:
    """kohya's ``ss_base_model_version`` and ModelSpec's ``architecture``."""
    if family == "sdxl":
        return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    if family == "sd15":
        return "sd_v1", "stable-diffusion-v1"
    if v_prediction:
        return "sd_v2_v", "stable-diffusion-v2-768-v"
    return "sd_v2", "stable-diffusion-v2-512"
