"""Write a pipeline as one file with the names of the original releases, as diffusers reads them.

The libraries convert from this layout and not to it. Names follow the readers in
``diffusers.loaders.single_file_utils``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

Names = dict[str, Tensor]
Replacement = str | Callable[[re.Match], str]

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def save_single_file(pipeline: DiffusionPipeline, path: Path) -> Path:
    """All weights of ``pipeline`` in one safetensors file; neither configuration nor tokenizer."""
    names = {f"model.diffusion_model.{k}": v for k, v in unet_names(pipeline.unet).items()}
    names |= {f"first_stage_model.{k}": v for k, v in vae_names(pipeline.vae).items()}
    first = pipeline.text_encoder
    if hasattr(pipeline, "text_encoder_2"):
        second = open_clip_names(pipeline.text_encoder_2)
        names |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in clip_names(first)}
        names |= {f"conditioner.embedders.1.model.{k}": v for k, v in second.items()}
    elif first.config.hidden_act == "gelu":  # version 2
        names |= {f"cond_stage_model.model.{k}": v for k, v in open_clip_names(first).items()}
    else:
        names |= {f"cond_stage_model.transformer.{k}": v for k, v in clip_names(first)}
    save_file({name: weight.contiguous() for name, weight in names.items()}, path)
    return path


def unet_names(unet: nn.Module) -> Names:
    per_level = unet.config.layers_per_block + 1  # a resampler counts as a layer on the way down

    def entry(match: re.Match) -> str:
        level, kind, layer = int(match[1]), match[2], int(match[3])
        if kind == "downsamplers":
            return f"input_blocks.{per_level * (level + 1)}.0.op"
        return f"input_blocks.{1 + per_level * level + layer}.{int(kind == 'attentions')}"

    def exit_(match: re.Match) -> str:
        level, kind, layer = int(match[1]), match[2], int(match[3])
        if kind == "upsamplers":
            attentions = getattr(unet.up_blocks[level], "attentions", None)
            return f"output_blocks.{per_level * (level + 1) - 1}.{2 if attentions else 1}.conv"
        return f"output_blocks.{per_level * level + layer}.{int(kind == 'attentions')}"

    rules: list[tuple[str, Replacement]] = [
        (r"^conv_in", "input_blocks.0.0"),
        (r"^conv_norm_out", "out.0"),
        (r"^conv_out", "out.2"),
        (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
        (r"^add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
        (r"(?<=resnets\.\d\.)(\w+)", lambda m: _UNET_RESNET[m[1]]),
        (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^down_blocks\.(\d)\.(\w+)\.(\d)(?:\.conv(?=\.))?", entry),
        (r"^up_blocks\.(\d)\.(\w+)\.(\d)(?:\.conv(?=\.))?", exit_),
    ]
    return _renamed(unet, rules)


def vae_names(vae: nn.Module) -> Names:
    last = len(vae.config.up_block_types) - 1  # levels of the decoder count from the picture
    rules: list[tuple[str, Replacement]] = [
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (
            r"mid_block\.attentions\.0\.(group_norm|to_out\.0|\w+)",
            lambda m: f"mid.attn_1.{_VAE_ATTENTION[m[1]]}",
        ),
        (r"down_blocks\.(\d)", r"down.\1"),
        (r"up_blocks\.(\d)", lambda m: f"up.{last - int(m[1])}"),
        (r"resnets", "block"),
        (r"(down|up)samplers\.0", r"\1sample"),
    ]
    names = _renamed(vae, rules)
    for name, weight in names.items():
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            names[name] = weight[:, :, None, None]  # was a 1 x 1 convolution
    return names


def clip_names(encoder: nn.Module) -> list[tuple[str, Tensor]]:
    """As transformers named them before version 5.6 took a level out."""
    state = encoder.state_dict().items()
    return [(f"text_model.{name.removeprefix('text_model.')}", weight) for name, weight in state]


def open_clip_names(encoder: nn.Module) -> Names:
    rules: list[tuple[str, Replacement]] = [
        (r"^text_model\.", ""),
        (r"^embeddings\.token_embedding", "token_embedding"),
        (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^final_layer_norm", "ln_final"),
        (r"^encoder\.layers", "transformer.resblocks"),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"self_attn", "attn"),
        (r"^text_projection\.weight", "text_projection"),
    ]
    names = _renamed(encoder, rules)
    if "text_projection" in names:
        names["text_projection"] = names["text_projection"].T
    for q in [name for name in names if ".q_proj." in name]:  # the three projections are one
        parts = [names.pop(q.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        names[q.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return names


def _renamed(module: nn.Module, rules: list[tuple[str, Replacement]]) -> Names:
    """The weights of ``module`` after all rules, in order, on each name."""
    names = {}
    for name, weight in module.state_dict().items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        names[name] = weight
    return names
