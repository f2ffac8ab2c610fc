"""Text-to-image models of the Stable Diffusion kind behind one small interface.

A :class:`Model` knows its configuration at once and loads a component only when asked, so that each
phase of a run holds what it needs and nothing else. This module is the only one that knows
diffusers, transformers and peft.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sopt_kernels import noise, stream_id

from .errors import InputError
from .steps.seeds import Tag, seed64

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

_CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
}


@dataclass(frozen=True)
class Model:
    """Configuration of a pipeline and the means to load each of its components.

    Weights come as float32 on the CPU, in eval mode, frozen; they are the caller's to keep or drop.
    Every ``load_*`` raises :class:`~sopt.InputError` if a file is missing or a weight is NaN or
    infinite.
    """

    name: str
    unet_config: Mapping[str, Any]
    vae_config: Mapping[str, Any]
    scheduler_config: Mapping[str, Any]
    _scheduler_class: str
    _load: Callable[[str], Any]

    @property
    def vae_factor(self) -> int:
        """Pixels per latent element along a side: 8 for the published models."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def side_multiple(self) -> int:
        """Sides of pictures that can be drawn are multiples of this, in pixels.

        Of the VAE's factor, and of 8 because the pipelines of diffusers draw no others.
        """
        return math.lcm(self.vae_factor, 8)

    @property
    def native_resolution(self) -> int:
        """Side of the pictures that the model was made for, in pixels."""
        return self.unet_config["sample_size"] * self.vae_factor

    @property
    def smallest_resolution(self) -> int:
        """Side that leaves one latent element at the lowest level of the U-Net, in pixels."""
        return 2 ** (len(self.unet_config["block_out_channels"]) - 1) * self.vae_factor

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: the noise (epsilon), v_prediction or the clean sample."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def num_train_timesteps(self) -> int:
        return self.scheduler_config["num_train_timesteps"]

    def load_unet(self) -> UNet2DConditionModel:
        return self._load_weights("unet")

    def load_vae(self) -> AutoencoderKL:
        return self._load_weights("vae")

    def load_text_encoder(self) -> CLIPTextModel:
        return self._load_weights("text_encoder")

    def tokenizer(self) -> CLIPTokenizer:
        return self._load("tokenizer")

    def noise_scheduler(self) -> DDPMScheduler:
        """Adds noise in training; the sampler of :meth:`pipeline` is the model's own."""
        return DDPMScheduler.from_config(self.scheduler_config)

    def pipeline(self) -> StableDiffusionPipeline:
        """A stock pipeline in float32 with the model's own sampler and no safety checker."""
        sampler = getattr(diffusers, self._scheduler_class)
        return StableDiffusionPipeline(
            unet=self.load_unet(),
            vae=self.load_vae(),
            text_encoder=self.load_text_encoder(),
            tokenizer=self.tokenizer(),
            scheduler=sampler.from_config(self.scheduler_config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def _load_weights(self, component: str) -> Any:
        module = self._load(component).eval().requires_grad_(False)
        for name, weight in module.named_parameters():
            if not torch.isfinite(weight).all():
                raise InputError(
                    f"model {self.name!r}: the weights must be finite, "
                    f"but {name} of its {component} has NaN or infinite values"
                )
        return module


def open_model(model: str | Path | Any) -> Model:
    """Read a model's configuration and check that it is of a kind that can be trained.

    Args:
        model: ``"tiny"``, a diffusers folder, a hub id, or a loaded pipeline. A pipeline is not
            touched: its components are used through copies that share its weights.

    Raises:
        InputError: There is no such model, it lacks a component, or it is of another kind.

    Example:
        >>> open_model("tiny").native_resolution
        64
    """
    if isinstance(model, (str, Path)):
        opened = _from_files(str(model))
    elif hasattr(model, "components"):
        opened = _from_pipeline(model)
    else:
        raise InputError(f"model must be a name, a folder, a hub id or a pipeline, got {model!r}")
    _check_kind(opened)
    return opened


def inject_lora(unet: nn.Module, rank: int, seed: int) -> dict[str, Tensor]:
    r"""Put a LoRA adapter on the attention projections of ``unet``, in place.

    Each ``W x`` of ``to_q, to_k, to_v, to_out.0`` becomes ``W x + B A x`` (alpha = rank, so the
    scale is 1), A of shape (rank, in) drawn from N(0, 1 / rank^2) by the run's seed, B of shape
    (out, rank) zero: the network's function is unchanged at first.

    Returns:
        The trainable parameters, float32, by canonical name ``unet.<module path>.lora_A.weight``,
        sorted.

    Source:
        Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022; the
        initialization is that of the training scripts of diffusers.
    """
    unet.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS))
    # On the meta device: peft's own initialization would advance torch's global generator.
    inject_adapter_in_model(config, unet, low_cpu_mem_usage=True)
    init_seed = seed64(seed, 0, 0, Tag.ADAPTER_INIT)
    adapter: dict[str, Tensor] = {}
    for path, module in unet.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        device = module.get_base_layer().weight.device
        for part, layers in (("lora_A", module.lora_A), ("lora_B", module.lora_B)):
            name = f"unet.{path}.{part}.weight"
            (layer,) = layers.values()
            if part == "lora_A":
                weight = noise(layer.weight.shape, init_seed, stream_id(name)).div_(rank)
            else:
                weight = torch.zeros(layer.weight.shape)
            layer.weight = nn.Parameter(weight.to(device))
            adapter[name] = layer.weight
    return dict(sorted(adapter.items()))


def _from_files(name: str) -> Model:
    source = name
    if name == "tiny":
        from . import tiny  # here, because its drawings are not needed for any other model

        source = str(tiny.path())
    folder = Path(source)
    if not folder.is_dir() and (folder.exists() or source.count("/") != 1 or source[0] in "./~"):
        raise InputError(f"model {name!r}: there is no such folder, and it is not a hub id")
    try:
        index = StableDiffusionPipeline.load_config(source)
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r} is not a diffusers pipeline: {_line(error)}") from error
    for component, expected in _CLASSES.items():
        found = index.get(component, [None, None])[1]
        missing = folder.is_dir() and not (folder / component).is_dir()
        if found is None or missing:
            raise InputError(f"model {name!r} has no {_NOUNS[component]}: expected {component}/")
        _check_class(name, component, found, expected.__name__)

    def load(component: str) -> Any:
        options: dict[str, Any] = {}
        if component in ("unet", "vae"):
            options = {"torch_dtype": torch.float32, "use_safetensors": True}
        elif component == "text_encoder":
            options = {"dtype": torch.float32, "use_safetensors": True}
        if list((folder / component).glob("*.fp16.safetensors")):
            options["variant"] = "fp16"
        try:
            return _CLASSES[component].from_pretrained(source, subfolder=component, **options)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model {name!r}: cannot load its {_NOUNS[component]}: {_line(error)}"
            ) from error

    def config(component: str, kind: Any) -> Mapping[str, Any]:
        try:
            return kind.load_config(source, subfolder=component)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model {name!r}: cannot read the configuration in {component}/: {_line(error)}"
            ) from error

    return Model(
        name=name,
        unet_config=config("unet", UNet2DConditionModel),
        vae_config=config("vae", AutoencoderKL),
        scheduler_config=config("scheduler", DDPMScheduler),
        _scheduler_class=index["scheduler"][1],
        _load=load,
    )


def _from_pipeline(pipeline: Any) -> Model:
    name = f"a loaded {type(pipeline).__name__}"
    components = pipeline.components
    for component, expected in _CLASSES.items():
        if (found := components.get(component)) is None:
            raise InputError(f"model: {name} has no {_NOUNS[component]}")
        _check_class(name, component, type(found).__name__, expected.__name__)
    if any(path.endswith("lora_A") for path, _ in components["unet"].named_modules()):
        raise InputError(f"model: {name} has a LoRA loaded; unload_lora_weights() or fuse it first")

    def load(component: str) -> Any:
        found = components[component]
        return _sharing_copy(name, found) if isinstance(found, nn.Module) else found

    return Model(
        name=name,
        unet_config=components["unet"].config,
        vae_config=components["vae"].config,
        scheduler_config=components["scheduler"].config,
        _scheduler_class=type(components["scheduler"]).__name__,
        _load=load,
    )


def _sharing_copy(name: str, module: nn.Module) -> nn.Module:
    """A float32 copy of the module tree whose tensors share storage with the original's.

    What happens to the copy (an adapter, frozen weights, gradient checkpointing, another dtype or
    device) leaves the original alone, and float32 weights are not in memory twice.
    """
    memo: dict[int, Any] = {}
    for weight in module.parameters():
        if weight.is_meta:
            raise InputError(f"model: {name} keeps weights offloaded; load it without offloading")
        memo[id(weight)] = nn.Parameter(weight.detach().float(), requires_grad=False)
    for buffer in module.buffers():
        shared = buffer.detach()
        memo[id(buffer)] = shared.float() if shared.is_floating_point() else shared
    return copy.deepcopy(module, memo)


_NOUNS = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "tokenizer": "tokenizer",
}


def _check_class(name: str, component: str, found: str, expected: str) -> None:
    # Tokenizers come with and without Fast in their names.
    if not found.startswith(expected):
        raise InputError(
            f"model {name!r}: its {_NOUNS[component]} must be a {expected}, got {found}"
        )


def _check_kind(model: Model) -> None:
    unet, vae = model.unet_config, model.vae_config
    if unet.get("addition_embed_type") is not None:
        raise InputError(
            f"model {model.name!r}: its UNet must take a prompt only, got one with "
            f"addition_embed_type={unet['addition_embed_type']!r} (SDXL is not supported yet)"
        )
    if unet["in_channels"] != vae["latent_channels"]:
        raise InputError(
            f"model {model.name!r}: its UNet must take the VAE's {vae['latent_channels']} latent "
            f"channels, got one with {unet['in_channels']} (an inpainting model?)"
        )
    if not isinstance(unet["sample_size"], int):
        raise InputError(
            f"model {model.name!r}: its UNet must be made for square pictures, "
            f"got sample_size={unet['sample_size']!r}"
        )
    if model.prediction_type not in PREDICTION_TYPES:
        raise InputError(
            f"model {model.name!r}: prediction_type must be one of {', '.join(PREDICTION_TYPES)}, "
            f"got {model.prediction_type!r}"
        )


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
