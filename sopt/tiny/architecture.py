"""The shape of the bundled pipeline, and its tokenizer: everything but the weights."""

from __future__ import annotations

import json

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .scenes import vocabulary

PROMPT_TOKENS = 24  # start and end included; the longest full caption has 18
TEXT_WIDTH = 192
UNET_CHANNELS = (48, 96)
VAE_CHANNELS = (16, 32, 64)  # three levels: factor 4
LATENT_CHANNELS = 8
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer in which every word of ``vocabulary()`` is one token.

    All 256 byte symbols, with and without the end-of-word mark, are there too, so that any text
    has tokens.
    """
    alphabet = sorted(ByteLevel.alphabet())
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(vocab_size=5000, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(vocabulary(), trainer)
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    symbols = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges)]
    vocab = {symbol: i for i, symbol in enumerate([*dict.fromkeys(symbols), _START, _END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=PROMPT_TOKENS, pad_token=_END)


def build_pipeline() -> StableDiffusionPipeline:
    """The pipeline with freshly initialised float32 weights (from torch's global generator)."""
    tokenizer = build_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=PROMPT_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=UNET_CHANNELS,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=[2, 4],  # heads per level, as in the published models: size 24
        norm_num_groups=16,
        use_linear_projection=True,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
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
