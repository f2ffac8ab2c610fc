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
