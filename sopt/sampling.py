"""Pictures from a model and an adapter: the very ones stock diffusers draws, and grids of them.

Libraries that take seconds to import are imported on use: the command line reads the signature
and the defaults of :func:`generate` and reports wrong settings at once.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from . import checks
from .codes.settings import INT8_TRAINED
from .errors import InputError
from .lean_settings import OFFLOADS
from .settings_file import is_described, settings_of_run

STEPS = 25  # of the model's own scheduler
GUIDANCE = 7.5  # diffusers' default for Stable Diffusion
TINY_GUIDANCE = 2.0  # at 7.5 the bundled model overdoes colours and outlines
SEEDS_A_PROMPT = 1000  # so a picture's seed does not depend on how many there are of a prompt
GRID_GAP = 4  # pixels between the pictures of a grid
LABEL_HEIGHT = 14  # pixels


def generate(
    model: Any = None,
    adapter: Any = None,
    *,
    prompt: str | Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    adapter_scale: float = 1.0,
    num_images: int = 1,
    batch_size: int = 1,
    resolution: int | None = None,
    device: str | None = None,
    weights: str | None = "float32",
    low_memory: bool = False,
    offload: str = "none",
    two_paths: bool = True,
) -> list[Image.Image]:
    """Draw ``num_images`` pictures of ``prompt``, or of each of several prompts, in their order.

    A stock pipeline with the model's own scheduler draws them, so these are the pictures that
    diffusers gives for ``load_lora_weights(adapter)`` and the generator
    ``torch.Generator("cpu").manual_seed(seed + i)`` for picture ``i``, of several prompts
    ``seed + 1000 p + i`` for picture ``i`` of prompt ``p``. Its components come one after the
    other: text encoders, U-Net, VAE, each loaded once for all prompts. PyTorch's global generators
    are neither read nor advanced.

    Args:
        model: "tiny" (bundled), a diffusers folder, a .safetensors file, a hub id or a loaded
            pipeline, which is left as it is. If not given that of the run which the adapter is
            from, and "tiny" for an adapter that is in no run's folder.
        adapter: A run's folder, a LoRA file of diffusers or kohya, a token file (textual
            inversion), the difference that trained codes or scales are, or what ``train`` returned.
        prompt, negative_prompt: Texts, cut at the text encoder's length.
        seed: Of the first picture, in [0, 2**64).
        steps: Denoising steps, at least 1.
        guidance: Classifier-free guidance scale; up to 1 there is none and a step costs half. 7.5
            if not given, and 2 for "tiny", which overdoes colours and outlines at more.
        adapter_scale: Factor on a LoRA's weights; 0 is the model alone.
        num_images: How many, of seeds ``seed``, ``seed + 1``, ...
        batch_size: Drawn at once, of all prompts, in that many times the memory of one. A picture
            drawn together with others may differ from the one drawn alone in its last bits.
        resolution: Side in pixels, a multiple of the VAE's factor and of 8; the model's own if
            not given.
        device: Where to draw; the GPU if there is one, if not given.
        weights: dtype of text encoders and U-Net: float32, bfloat16, float16, or int8; None for the
            smallest that the device computes in natively. The VAE is float32. A U-Net whose codes
            or scales were trained is int8 always, with this dtype for the rest of it.
        low_memory: The halves of guidance one after the other, and large pictures decoded in
            overlapping tiles: less memory, and pictures that differ in their last bits.
        offload: "stream" reads the weights of text encoders and U-Net from their files piece by
            piece, and decodes in the dtype of the weights if that has 16 bits (in bfloat16). With
            int8 weights they are quantized at each reading.
        two_paths: How to use an adapter that was trained hollowed: as it was trained, or, if false,
            by one ordinary path, an approximation that takes less time.

    Raises:
        InputError: A value out of range, or an adapter that is missing, damaged or of another
            model.

    Example:
        >>> pictures = generate(adapter="runs/dog", prompt="a sks dog on the beach", seed=1)
        >>> pictures[0].save("beach.png")
    """
    checks.choice("offload", offload, OFFLOADS)
    file = None if adapter is None else adapter_file(adapter)
    if model is None:
        model = "tiny" if file is None else _model_of_run(adapter, file)
    if guidance is None:
        guidance = TINY_GUIDANCE if model == "tiny" else GUIDANCE
    prompts: list[Any] = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    _check_settings(prompts, seed, steps, guidance, adapter_scale, num_images, batch_size)
    firsts = [seed + SEEDS_A_PROMPT * number for number in range(len(prompts))]

    from . import drawing
    from .memory import mapped_blocks

    with mapped_blocks() if offload == "stream" else contextlib.nullcontext():
        return drawing.draw(
            model,
            file,
            prompts=prompts,
            seeds=[range(first, first + num_images) for first in firsts],
            steps=steps,
            guidance=guidance,
            negative_prompt=negative_prompt,
            adapter_scale=float(adapter_scale),
            batch_size=batch_size,
            resolution=resolution,
            device=device,
            weights=weights,
            low_memory=low_memory,
            offload=offload,
            two_paths=two_paths,
        )


def picture_grid(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[str] | None = None
) -> Image.Image:
    """Pictures side by side on white, each row under its label.

    Cells have the size of the largest picture; smaller ones stand at the top left of theirs.

    Example:
        >>> before, after = [Image.new("RGB", (64, 64))] * 4, [Image.new("RGB", (64, 64))] * 4
        >>> picture_grid([before, after], ["before", "after"]).size
        (276, 168)
    """
    pictures = [picture for row in rows for picture in row]
    if not pictures or (labels is not None and len(labels) != len(rows)):
        raise InputError(
            f"picture_grid needs pictures and one label per row, got {len(pictures)} pictures in "
            f"{len(rows)} rows and labels {labels!r}"
        )
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    header = LABEL_HEIGHT if labels else 0
    columns = max(len(row) for row in rows)
    grid = Image.new(
        "RGB",
        (
            GRID_GAP + columns * (width + GRID_GAP),
            GRID_GAP + len(rows) * (header + height + GRID_GAP),
        ),
        "white",
    )
    draw = ImageDraw.Draw(grid)
    for number, row in enumerate(rows):
        top = GRID_GAP + number * (header + height + GRID_GAP)
        if labels:
            font = ImageFont.load_default(LABEL_HEIGHT - 3)
            draw.text((GRID_GAP, top - 2), labels[number], fill="black", font=font)
        for column, picture in enumerate(row):
            grid.paste(picture, (GRID_GAP + column * (width + GRID_GAP), top + header))
    return grid


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG file's content."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _check_settings(
    prompts: Sequence[str],
    seed: int,
    steps: int,
    guidance: float,
    adapter_scale: float,
    num_images: int,
    batch_size: int,
) -> None:
    if not prompts:
        raise InputError("prompt must be a text, or several, got none")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"prompt must be a text, got {prompt!r}")
    for name, count in [("steps", steps), ("num_images", num_images), ("batch_size", batch_size)]:
        if not isinstance(count, int) or count < 1:
            raise InputError(f"{name} must be a whole number, at least 1, got {count!r}")
    if len(prompts) > 1 and num_images > SEEDS_A_PROMPT:
        raise InputError(
            f"num_images must be at most {SEEDS_A_PROMPT} with several prompts, got {num_images}"
        )
    count = SEEDS_A_PROMPT * (len(prompts) - 1) + num_images
    if not isinstance(seed, int) or not 0 <= seed <= 2**64 - count:
        raise InputError(
            f"seed must be a whole number, and so must the {count} counted from it for the "
            f"pictures, in [0, 2**64), got {seed!r}"
        )
    for name, number in [("guidance", guidance), ("adapter_scale", adapter_scale)]:
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            raise InputError(f"{name} must be a finite number, got {number!r}")


def _model_of_run(adapter: Any, file: Path) -> Any:
    """What the run that an adapter is from was given for a model; "tiny" if there was no run."""
    if (config := getattr(adapter, "config", None)) is not None:  # what train returned
        return config.model
    model = settings_of_run(file.parent).get("model", "tiny")
    if not isinstance(model, str) or is_described(model):
        raise InputError(f"model is missing: the run in {file.parent} had {model}")
    return model


def adapter_file(adapter: Any) -> Path:
    """The file of a LoRA, a token or a difference of int8 weights that a folder, a file or a
    finished run means; InputError if there is none."""
    path = Path(getattr(adapter, "adapter", adapter)).expanduser()  # train's result has .adapter
    if not path.exists():
        raise InputError(f"adapter: there is no file or folder {path}")
    if not path.is_dir():
        return path
    from .codes.files import DIFFERENCE
    from .export import DIFFUSERS_FILE

    settings = settings_of_run(path)
    token, trained = settings.get("token"), settings.get("train")
    name = DIFFUSERS_FILE if token is None else f"{token}.safetensors"
    file = path / (DIFFERENCE if trained in INT8_TRAINED else name)
    if not file.is_file():
        why = f"the folder {path} has no {file.name}"
        if settings:
            why += ": if its run was stopped, the same command, or sopt.train, goes on with it"
        raise InputError(f"adapter: {why}")
    return file
