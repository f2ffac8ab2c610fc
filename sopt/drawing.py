"""What :func:`sopt.generate` runs: the stages of a stock pipeline, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .codes.files import Difference
from .devices import resolve_device, resolve_weights, weight_storage
from .errors import InputError, NotFiniteError
from .hollow.cuts import Cut, cut_of
from .hollow.inference import cut_name, run_by_units
from .models import Model, open_model
from .models.adapter import check_fit, load_adapter, of_another_model
from .models.added_tokens import add_rows, add_tokens
from .models.batches import take_one_at_a_time
from .models.forwards import speed_up_forwards
from .models.storage import Int8Storage, Storage, float_dtype
from .models.tiles import enable_tiles
from .streaming import open_network, open_text_encoder
from .token.files import LearnedToken, load_token

TILE = 32  # side, in latent elements, of the tiles that large pictures are decoded in
VAE_ENCODER = ("encoder", "quant_conv")  # not needed for decoding
BAR_AFTER = 2  # seconds: what is done sooner needs no progress bar


def draw(
    model: Any,
    adapter: Path | None,
    *,
    prompts: Sequence[str],
    seeds: Sequence[Sequence[int]],
    steps: int,
    guidance: float,
    negative_prompt: str | None,
    adapter_scale: float,
    batch_size: int,
    resolution: int | None,
    device: str | None,
    weights: str | None,
    low_memory: bool,
    offload: str,
    two_paths: bool,
) -> list[Image.Image]:
    """As :func:`sopt.generate`, with the settings checked and the adapter's file found; ``seeds``
    of each prompt's pictures."""
    device = resolve_device(device)
    opened = open_model(model)
    side = _side(opened, resolution)
    cut = None
    difference = None if adapter is None else Difference.open(adapter)
    if difference is not None:
        _check_difference(difference, adapter_scale, offload)
        adapter = None
    token = None if adapter is None else load_token(adapter)
    if adapter is not None and token is not None:
        _check_token(adapter, token, opened, adapter_scale)
        adapter = None
    if adapter is not None:
        check_fit(adapter, opened.skeleton("unet"))  # by the shapes alone, before any is loaded
        name = cut_name(adapter) if two_paths else None
        cut = None if name is None else cut_of(name, opened)
    stages = Stages(
        opened,
        weight_storage(resolve_weights(weights, device), device),
        torch.device(device),
        low_memory=low_memory,
        adapter=adapter,
        adapter_scale=adapter_scale,
        token=token,
        difference=difference,
        stream=offload == "stream",
        cut=cut,
        progress=True,
    )
    texts = stages.encode(prompts, negative_prompt, guided=guidance > 1)
    wanted = [Wanted(row, seed) for row, own in enumerate(seeds) for seed in own]
    batches = [wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size)]
    latents = stages.denoise(texts, batches, side, steps, guidance)
    processor = opened.pipeline().image_processor
    pictures: list[Image.Image] = []
    for batch, pixels in zip(batches, stages.decode(latents), strict=True):
        for one, drawn in zip(batch, pixels, strict=True):
            if not drawn.isfinite().all():
                raise NotFiniteError(
                    f"the pictures of {prompts[one.prompt]!r} have values that are not finite: the "
                    f"adapter is damaged, or weights={weights!r} overflows in this model"
                )
        pictures += processor.postprocess(pixels, output_type="pil")
    return pictures


@dataclass(frozen=True)
class Wanted:
    """A picture that is to be drawn."""

    prompt: int  # which of the prompts
    seed: int


@dataclass(frozen=True)
class Stages:
    """The stages of a stock pipeline; each loads its networks and leaves none in memory."""

    model: Model
    dtype: Storage  # of text encoders and U-Net
    device: torch.device
    low_memory: bool
    adapter: Path | None = None
    adapter_scale: float = 1.0
    token: LearnedToken | None = None
    difference: Difference | None = None
    stream: bool = False  # weights of text encoders and U-Net stay in their files
    cut: Cut | None = None  # of an adapter that was trained hollowed, for two paths
    progress: bool = False  # whether batches that take a while have a bar of their steps

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], negative_prompt: str | None = None, *, guided: bool
    ) -> dict[str, Tensor]:
        """The texts, (prompts, ...), by the names under which the pipeline takes them."""
        components: dict[str, Any] = {}
        for encoder, tokenizer in self.model.kind.tokenizers.items():
            components[encoder] = self._load(encoder)
            components[tokenizer] = self.model.tokenizer(tokenizer)
            if self.token is not None:
                row = self.token.rows[encoder].to(self.device)
                components[tokenizer], first = add_tokens(
                    components[tokenizer], self.token.token, len(row)
                )
                add_rows(components[encoder], row, first)
        pipeline = self.model.pipeline(**components)
        outputs = [
            pipeline.encode_prompt(  # one after the other: none's bits depend on the others
                prompt=prompt,
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=guided,
                negative_prompt=negative_prompt,
            )
            for prompt in prompts
        ]
        names = ["prompt_embeds", "negative_prompt_embeds"]
        if self.model.takes_sizes:
            names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        by_name = zip(names, zip(*outputs, strict=True), strict=True)
        return {name: torch.cat(rows) for name, rows in by_name if rows[0] is not None}

    @torch.no_grad()
    def denoise(
        self,
        texts: dict[str, Tensor],
        batches: Sequence[Sequence[Wanted]],
        side: int,
        steps: int,
        guidance: float,
    ) -> list[Tensor]:
        """The latents of each batch of pictures, (batch, channels, height, width)."""
        unet = self._load("unet")
        if self.low_memory:
            speed_up_forwards(unet)
        if self.low_memory and not self._by_units:
            take_one_at_a_time(unet)
        pipeline = self.model.pipeline(unet=unet)
        latents = []
        for number, batch in enumerate(batches, start=1):
            if self.progress:
                of_all = f" {number} of {len(batches)}" if len(batches) > 1 else ""
                pipeline.set_progress_bar_config(
                    desc=f"drawing{of_all}", delay=BAR_AFTER, leave=False
                )
            latents.append(
                pipeline(
                    **{name: text[[one.prompt for one in batch]] for name, text in texts.items()},
                    height=side,
                    width=side,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=[torch.Generator("cpu").manual_seed(one.seed) for one in batch],
                    output_type="latent",
                ).images
            )
        return latents

    @torch.no_grad()
    def decode(self, latents: Sequence[Tensor]) -> Iterator[Tensor]:
        """The pixels of each batch, (batch, 3, side, side) float32 around [-1, 1]."""
        dtype = (
            torch.bfloat16
            if self.stream and float_dtype(self.dtype).itemsize == 2
            else torch.float32
        )
        vae = self.model.load("vae", dtype, self.device, dropped=VAE_ENCODER)
        if self.low_memory:
            enable_tiles(vae, TILE * self.model.vae_factor, self.model.vae_factor)
        for batch in latents:
            scaled = (batch.float() / vae.config.scaling_factor).to(dtype)
            yield vae.decode(scaled, return_dict=False)[0].float()

    @property
    def _by_units(self) -> bool:
        return self.stream or self.cut is not None

    def _load(self, component: str) -> Any:
        if component == "unet" and self.difference is not None:
            int8 = Int8Storage(float_dtype(self.dtype))
            network = self.model.load(component, int8, self.device)
            self.difference.apply(network, self.model)
            return network
        if component == "unet" and self._by_units:
            by_units = open_network(self.model, self.dtype, self.device, stream=self.stream)
            network = by_units.unet
            run_by_units(network, by_units.units, by_units.weights, self.cut, self.low_memory)
        elif self.stream:
            network = open_text_encoder(self.model, component, self.dtype, self.device)
        else:
            network = self.model.load(component, self.dtype, self.device)
        if self.adapter is not None:
            load_adapter(self.model, self.adapter, {component: network}, self.adapter_scale)
            network.to(self.device)  # the adapter
        return network


def _side(model: Model, resolution: int | None) -> int:
    multiple = model.side_multiple
    side = model.native_resolution if resolution is None else resolution
    if not isinstance(side, int) or side < multiple or side % multiple:
        raise InputError(
            f"resolution must be a positive multiple of {multiple} (of the VAE's factor, and of 8 "
            f"in diffusers), got {resolution}"
        )
    return side


def _check_difference(difference: Difference, adapter_scale: float, offload: str) -> None:
    """Raise InputError for settings that do not go with trained int8 weights."""
    for name, value, only in (("adapter_scale", adapter_scale, 1), ("offload", offload, "none")):
        if value != only:
            raise InputError(
                f"{name}={value!r} does not go with the adapter {difference.file}, which is the "
                "difference of int8 weights that stay in memory"
            )


def _check_token(file: Path, token: LearnedToken, model: Model, adapter_scale: float) -> None:
    """Raise InputError unless the token is for the model's text encoders."""
    if adapter_scale != 1:
        raise InputError(
            f"adapter_scale={adapter_scale:g} does not go with a token: {file} is textual inversion"
        )
    widths = {encoder: row.shape[1] for encoder, row in token.rows.items()}
    expected = {each: model.configs[each]["hidden_size"] for each in model.kind.tokenizers}
    if widths != expected:
        raise of_another_model(
            file,
            f"its embeddings have the sizes {widths}, this model's text encoders {expected}",
        )
