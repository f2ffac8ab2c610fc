"""What all tests share: seeds, and memory that shows when it was never written."""

from __future__ import annotations

import signal

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _interruptible():
    """Shells let what they start in the background ignore Ctrl-C, which some tests send."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_empty(monkeypatch):
    """torch.empty and empty_like give NaN (or the largest integer), so unwritten output shows."""

    def poisoned(make):
        def made(*args, **kwargs):
            x = make(*args, **kwargs)
            if x.dtype == torch.uint32:  # fill_ knows no uint32
                x.view(torch.int32).fill_(-1)
            else:
                x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)
            return x

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


@pytest.fixture
def cpu_level():
    """A function that puts libsopt_cpu on one instruction-set level until the test ends."""
    from sopt_kernels import _native

    if "cpu" not in _native.LIBRARIES:
        pytest.skip(_native.UNAVAILABLE["cpu"])
    set_level, before = _native.LIBRARIES["cpu"].sopt_set_cpu_level, _native.cpu_level()

    def force(level: str) -> None:
        if set_level(level.encode()):
            pytest.skip(f"this processor has no {level}")

    yield force
    assert set_level(before.encode()) == 0


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """libsopt_cuda, its kernels run by the CPU."""
    from cuda_bodies import Emulated, compile_emulated

    return Emulated(compile_emulated(tmp_path_factory.mktemp("emulated")))


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory):
    """A diffusers folder with a pipeline of random weights, small enough for quick tests."""
    from pipelines import save_micro_pipeline  # here: diffusers takes seconds to import

    return save_micro_pipeline(tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture(scope="session")
def micro_model(micro_folder):
    """The same, opened."""
    from sopt.models import open_model

    return open_model(micro_folder)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of three pictures."""
    from pipelines import save_pictures

    return save_pictures(tmp_path_factory.mktemp("pictures") / "subject")


@pytest.fixture
def settings(micro_folder, pictures, tmp_path):
    """Settings of a run of both kinds of step on the micro pipeline, in a folder of its own."""
    return {
        "model": str(micro_folder),
        "images": str(pictures),
        "prompt": "a sks dog",
        "output": str(tmp_path / "run"),
        "steps": 6,
        "schedule": 0.5,
        "checkpoint_every": 2,
        "weights": "float32",  # the default depends on the processor
    }


@pytest.fixture
def quick(monkeypatch):
    """Runs without sample pictures and memory figures, which take most of a micro run's time."""
    from pipelines import SkipMemory, draw_blank

    monkeypatch.setattr("sopt.trainer.generate", draw_blank)
    monkeypatch.setattr("sopt.memory.LiveStorage", SkipMemory)


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Folders of random backbones for the evaluation, by the names of the settings."""
    from backbones import save_clip, save_dino

    folder = tmp_path_factory.mktemp("backbones")
    return {"dino": str(save_dino(folder / "dino")), "clip": str(save_clip(folder / "clip"))}
