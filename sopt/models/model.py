"""A model: its configurations, and the means to load each of its components."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ..memory import mapped_blocks, return_freed_memory
from .kinds import Kind, build_on_meta
from .quantized import Spool, become_int8_on_meta
from .storage import Int8Storage, Storage

SD21_WIDTH = 1024  # of its text encoder


class Weights(Protocol):
    """Where the components of a model come from."""

    def load(
        self, component: str, dtype: torch.dtype, dropped: Sequence[str], int8: str | None
    ) -> nn.Module:
        """The network on the CPU, frozen and in eval mode, without its submodules ``dropped``;
        ``int8``: on int8 weights, with these activations."""
        ...

    def source(self, component: str, network: nn.Module) -> Source:
        """What reads single weights of the network, which may be on the meta device, and on int8
        layers."""
        ...

    def tokenizer(self, component: str) -> Any: ...

    def write(self, component: str, folder: Path) -> None:
        """Write the weights of a component, or a tokenizer, into its folder of a diffusers
        model."""
        ...


class Source(Protocol):
    """Reads single weights of a network."""

    def read(self, name: str, out: Tensor, row: int | None = None) -> None:
        """Fill a dense tensor on the CPU with a weight, or with as many of its rows as the tensor
        holds from one on, converted to the tensor's dtype."""
        ...


@dataclass(frozen=True)
class Model:
    """Configuration of a pipeline and the means to load each of its components."""

    name: str
    kind: Kind
    configs: Mapping[str, Mapping[str, Any]]  # of the networks and the scheduler, by component
    scheduler_class: str
    weights: Weights
    spool: Spool | None = None  # where int8 weights of the U-Net are, once they were read
    int8: bool = False  # whether the U-Net is stored on int8 weights

    @property
    def vae_factor(self) -> int:
        """Pixels per latent element along a side: 8 for the published models."""
        return 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)

    @property
    def side_multiple(self) -> int:
        """Sides of pictures that can be drawn are multiples of this, in pixels.

        Of the VAE's factor, and of 8 because the pipelines of diffusers draw no others.
        """
        return math.lcm(self.vae_factor, 8)

    @property
    def native_resolution(self) -> int:
        """Side of the pictures that the model was made for, in pixels."""
        return self.configs["unet"]["sample_size"] * self.vae_factor

    @property
    def smallest_resolution(self) -> int:
        """Side that leaves one latent element at the lowest level of the U-Net, in pixels."""
        return 2 ** (len(self.configs["unet"]["block_out_channels"]) - 1) * self.vae_factor

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: the noise (epsilon), v_prediction or the clean sample."""
        return self.configs["scheduler"].get("prediction_type", "epsilon")

    @property
    def num_train_timesteps(self) -> int:
        return self.configs["scheduler"]["num_train_timesteps"]

    @property
    def takes_sizes(self) -> bool:
        """Whether the U-Net is told the picture's size, the crop and a pooled prompt (SDXL)."""
        return self.configs["unet"].get("addition_embed_type") == "text_time"

    @property
    def family(self) -> str:
        """Which published models it is like: sdxl by its inputs, sd21 or sd15 by its text."""
        if self.takes_sizes:
            return "sdxl"
        return "sd21" if self.configs["unet"]["cross_attention_dim"] == SD21_WIDTH else "sd15"

    def load(
        self,
        component: str,
        dtype: Storage = torch.float32,
        device: torch.device | str = "cpu",
        dropped: Sequence[str] = (),
    ) -> Any:
        """A network: "unet", "vae", "text_encoder" or "text_encoder_2".

        Args:
            dtype: Of its weights; or on int8 ones.
            dropped: Names of submodules that are not needed and never loaded.

        Returns:
            The network, in eval mode, frozen; the caller's to keep or drop.

        Raises:
            InputError: A file is missing or damaged, or a weight is NaN or infinite.
        """
        return_freed_memory()  # of the component before
        int8, dtype = None, self.storage(component, dtype)
        if isinstance(dtype, Int8Storage):
            int8, dtype = dtype.activations(component), dtype.dtype
        with mapped_blocks():
            network = self.weights.load(component, dtype, dropped, int8)
        tensors = (*network.parameters(), *network.buffers())
        here = all(x.device == torch.device(device) for x in tensors)
        return network if here else network.to(device)  # simulated ones are where they are

    def storage(self, component: str, wanted: Storage) -> Storage:
        """How a component is in memory: what is stored on int8 weights stays so."""
        if component == "unet" and self.int8 and not isinstance(wanted, Int8Storage):
            return Int8Storage(wanted)
        return wanted

    def skeleton(
        self, component: str, dropped: Sequence[str] = (), dtype: Storage = torch.float32
    ) -> Any:
        """The network on the meta device, frozen and in eval mode: no weight is in memory; with
        int8 layers if ``dtype`` says so."""
        with _disable_current_modes():  # in a simulation too
            network = build_on_meta(self.kind, component, self.configs[component])
            remove_submodules(network, dropped)
            if isinstance(dtype, Int8Storage):
                become_int8_on_meta(network, dtype.activations(component))
        return network.eval().requires_grad_(False)

    def source(self, component: str, network: nn.Module) -> Source:
        """What reads the weights of a :meth:`skeleton`, one at a time.

        Raises:
            InputError: The model's files do not allow it, or one is damaged or lacks a weight.
        """
        source = self.weights.source(component, network)
        return source if self.spool is None or component != "unet" else self.spool.over(source)

    def tokenizer(self, component: str = "tokenizer") -> Any:
        return self.weights.tokenizer(component)

    def noise_scheduler(self) -> DDPMScheduler:
        """Adds noise in training; :meth:`sampler` is the model's own."""
        return DDPMScheduler.from_config(self.configs["scheduler"])

    def sampler(self) -> Any:
        """The model's own scheduler."""
        with _disable_current_modes():  # it computes with numpy, which knows no simulated tensors
            sampler = getattr(diffusers, self.scheduler_class)
            return sampler.from_config(self.configs["scheduler"])

    def pipeline(self, **components: Any) -> Any:
        """A stock pipeline of the model's kind with its own sampler and these components only."""
        options: dict[str, Any] = dict.fromkeys(self.kind.components)
        options |= {"feature_extractor": None, **components}
        if not self.takes_sizes:
            options |= {"safety_checker": None, "requires_safety_checker": False}
        else:
            options |= {"add_watermarker": False}
        pipeline = self.kind.pipeline(scheduler=self.sampler(), **options)
        pipeline.vae_scale_factor = self.vae_factor  # it asks the VAE, which may be away
        pipeline.image_processor.register_to_config(vae_scale_factor=self.vae_factor)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def remove_submodules(module: nn.Module, names: Sequence[str]) -> None:
    """Delete the submodules of these paths, which nothing that will be called needs."""
    for name in names:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)
