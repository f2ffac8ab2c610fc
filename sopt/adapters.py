"""The adapter files of a run, by what it trains."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .codes.files import DIFFERENCE, MODEL_FOLDER, save_difference, save_int8_model
from .codes.settings import INT8_TRAINED
from .codes.tensors import room_of
from .config import TrainConfig
from .export import DIFFUSERS_FILE, save_diffusers_lora, save_kohya_lora
from .models import LORA_TARGETS, Model
from .token.files import save_token, token_file_names


def adapter_files(config: TrainConfig, model: Model) -> list[Path]:
    """What :func:`save_adapter` writes, the file that ``generate`` reads first."""
    folder = Path(config.output)
    if config.train == "token":
        assert config.token is not None
        names = token_file_names(config.token, len(model.kind.tokenizers))
    elif config.train in INT8_TRAINED:
        names = [DIFFERENCE, f"{MODEL_FOLDER}/model_index.json"]
    else:
        names = [DIFFUSERS_FILE, f"{folder.absolute().name}_kohya.safetensors"]
    return [folder / name for name in names]


def save_adapter(config: TrainConfig, model: Model, adapter: dict[str, Tensor]) -> None:
    """Write the files of a run's adapter, given by canonical name; a dictionary of int8 weights is
    empty afterwards."""
    if config.train in INT8_TRAINED:
        save_int8_model(Path(config.output) / MODEL_FOLDER, model, adapter)
        file = Path(config.output) / DIFFERENCE
        save_difference(file, model, adapter, room_of(config))
        return
    if config.train == "token":
        assert config.token is not None
        rows = dict(zip(model.kind.tokenizers, adapter.values(), strict=True))
        save_token(Path(config.output), config.token, rows)
        return
    assert config.resolution is not None
    diffusers, kohya = adapter_files(config, model)
    cut = None if config.hollow is None else str(config.hollow)
    save_diffusers_lora(diffusers, adapter, config.rank, config.rank, LORA_TARGETS, cut)
    save_kohya_lora(
        kohya,
        adapter,
        config.rank,
        config.rank,
        prompt=config.prompt,
        resolution=config.resolution,
        prediction_type=model.prediction_type,
        family=model.family,
        cut=cut,
    )
