"""Random backbones for the evaluation: the architectures of DINO and CLIP, with little in them."""

from __future__ import annotations

from pathlib import Path

import torch
from pipelines import letter_tokenizer
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

DINO_SIDE, CLIP_SIDE = 224, 64  # pixels


def save_dino(folder: Path, seed: int = 0) -> Path:
    """A ViT of DINO's form, patches of 16, without the pooler that DINO's files lack."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=DINO_SIDE,
        patch_size=16,
        initializer_range=0.5,  # pictures lie apart
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_clip(folder: Path, seed: int = 1) -> Path:
    """A CLIP with a vocabulary of letters, and its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = letter_tokenizer()
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_factor": 10.0,
    }
    text = small | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = small | {"image_size": CLIP_SIDE, "patch_size": 16}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
