"""Adapter files into the networks of a pipeline, as diffusers itself does."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from diffusers.utils.peft_utils import set_weights_and_activate_adapters
from torch import Tensor, nn

from ..errors import InputError
from ..files import load_tensors
from ..settings_file import settings_of_run
from .model import Model

NAME = "sopt"  # the adapter's name inside the networks


def load_adapter(model: Model, file: Path, networks: Mapping[str, nn.Module], scale: float) -> None:
    """Put what a LoRA file holds for these networks into them, times ``scale``, in place.

    Args:
        file: Of diffusers, peft or kohya.
        networks: "unet" and the text encoders, or some of them.
    """
    loader = model.kind.pipeline
    options = {"unet_config": networks["unet"].config} if _is_sdxl_unet(model, networks) else {}
    state, alphas, metadata = loader.lora_state_dict(
        file.parent, weight_name=file.name, return_lora_metadata=True, **options
    )
    common = {
        "network_alphas": alphas,
        "adapter_name": NAME,
        "metadata": metadata,
        "low_cpu_mem_usage": True,  # else peft draws weights from torch's global generator first
    }
    for component, network in networks.items():
        if not any(key.startswith(f"{component}.") for key in state):
            continue
        with factors_of_some_layers():
            if component == "unet":
                loader.load_lora_into_unet(state, unet=network, **common)
            else:
                loader.load_lora_into_text_encoder(
                    state, text_encoder=network, prefix=component, **common
                )
        set_weights_and_activate_adapters(network, [NAME], [scale])


@contextlib.contextmanager
def factors_of_some_layers() -> Iterator[None]:
    """A file may have factors of fewer layers than its target modules name, as one that was trained
    hollowed has: peft need not warn of those without."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="While injecting the PEFT adapters")
        yield


def _is_sdxl_unet(model: Model, networks: Mapping[str, nn.Module]) -> bool:
    return model.takes_sizes and "unet" in networks


def check_fit(file: Path, unet: nn.Module) -> None:
    """Raise InputError unless all that the file changes is there in the U-Net, in its shape."""
    tensors, _ = load_tensors(file)
    weights = {
        name.removesuffix(".weight").replace(".base_layer", "").replace(".", "_"): weight
        for name, weight in unet.named_parameters()
    }
    changes = dict(_unet_changes(tensors))
    if not changes:
        raise InputError(f"adapter: {file} has no LoRA of a U-Net in it")
    for module, (down, up) in changes.items():
        change = (up.shape[0], down.shape[1:].numel())  # of a convolution: all but the first axis
        weight = weights.get(module)
        found = None if weight is None else (weight.shape[0], weight.shape[1:].numel())
        if change != found:
            raise of_another_model(
                file,
                f"{module} is {change} there, and in this model's U-Net "
                f"{found or 'does not exist'}",
            )


def of_another_model(file: Path, difference: str) -> InputError:
    """The error that names the model of the run that the file is from, where the run is there."""
    known = settings_of_run(file.parent).get("model")
    trained = "" if known is None else f", of a run of model={known!r}"
    return InputError(f"adapter: {file} is of another model{trained}: {difference}")


def _unet_changes(tensors: dict[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """(module's path with underscores, (down, up)) for the keys of diffusers, peft and kohya."""
    for key, down in tensors.items():
        for down_part, up_part in _FACTORS:
            path, found, _ = key.partition(down_part)
            if found and path.startswith(("unet.", "lora_unet_")):
                module = path.removeprefix("unet.").removeprefix("lora_unet_").replace(".", "_")
                if (up := tensors.get(path + up_part)) is not None:
                    yield module, (down, up)


_FACTORS = [
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
]
