"""Pipelines with random weights, small enough for quick tests.

A micro pipeline of the Stable Diffusion kind, and reduced ones with the structure of each family.
"""

from __future__ import annotations

import contextlib
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sopt.models.kinds import build_on_meta
from sopt.models.random import draw_weights, open_random

PROMPT = "a sks dog"
RESOLUTION = 32  # pixels; VAE factor 4, two U-Net levels
FAMILY_RESOLUTION = 64  # pixels; VAE factor 8, three or four U-Net levels


def micro_pipeline(seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """The pipeline in float32; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(prediction_type)


def save_micro_pipeline(folder: Path, **options) -> Path:
    """The pipeline as a diffusers folder."""
    micro_pipeline(**options).save_pretrained(folder)
    return folder


def family_pipeline(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A reduced pipeline of a family of ``"random:"`` models: its blocks, fewer channels."""
    model = open_random(family)
    networks = model.kind.networks
    configs = {name: _reduced(family, name, model.configs) for name in networks}
    reduced = replace(model, configs={**model.configs, **configs})
    components = {}
    for name in networks:
        network = build_on_meta(model.kind, name, configs[name])
        components[name] = draw_weights(network, name, dtype, seed=0)
    for name in model.kind.tokenizers.values():
        components[name] = letter_tokenizer("!", model.tokenizer(name).pad_token)
    return reduced.pipeline(**components)


def save_family_pipeline(
    folder: Path, family: str, dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    """The reduced pipeline as a diffusers folder.

    ``max_shard_size="100KB"`` splits all weights; ``variant="fp16"``, with ``dtype``, names them.
    """
    family_pipeline(family, dtype).save_pretrained(folder, **options)
    return folder


def save_pictures(folder: Path, count: int = 3) -> Path:
    """Pictures that differ from each other, as PNG files."""
    folder.mkdir(parents=True)
    for index in range(count):
        picture = Image.linear_gradient("L").resize((40, 48)).rotate(30 * index)
        Image.merge("RGB", [picture, picture.rotate(90), picture]).save(folder / f"{index}.png")
    return folder


def draw_blank(*arguments, **settings) -> list[Image.Image]:
    """In place of ``sopt.generate``."""
    return [Image.new("RGB", (8, 8))]


class SkipMemory(contextlib.nullcontext):
    """In place of ``sopt.memory.LiveStorage``."""

    bytes = peak = 0

    def __init__(self, *arguments):
        super().__init__()


def act_at_loss(patch, number, action) -> list:
    """Call ``action`` when a run evaluates its loss for the ``number``-th time, from 1.

    Returns a list that grows by one with each evaluation.
    """
    from sopt.steps.loss import diffusion_loss

    calls: list[int] = []

    def loss(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            action()
        return diffusion_loss(*arguments, **options)

    patch.setattr("sopt.training.diffusion_loss", loss)
    return calls


def crash() -> None:
    """An action for :func:`act_at_loss`."""
    raise RuntimeError("crash")


def _build(prediction_type: str) -> StableDiffusionPipeline:
    tokenizer = letter_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=RESOLUTION,
    )
    unet = UNet2DConditionModel(
        sample_size=RESOLUTION // 4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def letter_tokenizer(marks: str = "", pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    symbols = [*marks, *string.ascii_lowercase]
    symbols += [letter + "</w>" for letter in string.ascii_lowercase]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16, pad_token=pad_token)


_REDUCED_UNETS = {
    "sd15": {"block_out_channels": [16, 32, 64, 64], "attention_head_dim": 2},
    "sd21": {"block_out_channels": [16, 32, 64, 64], "attention_head_dim": [1, 2, 4, 4]},
    "sdxl": {
        "block_out_channels": [16, 32, 64],
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, 1, 2],
    },
    "ssd1b": {
        "block_out_channels": [16, 32, 64],
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, [1, 1], [2, 2]],
        "reverse_transformer_layers_per_block": [[1, 2, 3], [2, 1, 1], 1],
    },
}
_REDUCED_UNETS["sd21-base"] = _REDUCED_UNETS["sd21"]
_TEXT_WIDTHS = {"text_encoder": 32, "text_encoder_2": 48}  # which tell them apart in a single file


def _reduced(family: str, component: str, configs: Any) -> dict[str, Any]:
    config = dict(configs[component])
    if component == "unet":
        widths = [width for name, width in _TEXT_WIDTHS.items() if name in configs]
        config |= _REDUCED_UNETS[family]
        config |= {
            "sample_size": FAMILY_RESOLUTION // 8,
            "norm_num_groups": 8,
            "cross_attention_dim": sum(widths),
        }
        if config["addition_embed_type"]:  # pooled text and six time ids
            config["addition_time_embed_dim"] = 8
            config["projection_class_embeddings_input_dim"] = widths[1] + 6 * 8
    elif component == "vae":
        config |= {
            "sample_size": FAMILY_RESOLUTION,
            "block_out_channels": [8, 8, 16, 16],
            "norm_num_groups": 4,
        }
    else:
        tokenizer = letter_tokenizer("!")
        config |= {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "hidden_size": _TEXT_WIDTHS[component],
            "intermediate_size": 64,
            "projection_dim": _TEXT_WIDTHS[component],
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        }
    return config
