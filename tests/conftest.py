"""What all tests share."""

import pytest


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
    }


@pytest.fixture
def quick(monkeypatch):
    """Runs without sample pictures and memory figures, which take most of a micro run's time."""
    from pipelines import SkipMemory, draw_blank

    monkeypatch.setattr("sopt.trainer.generate", draw_blank)
    monkeypatch.setattr("sopt.memory.LiveStorage", SkipMemory)
