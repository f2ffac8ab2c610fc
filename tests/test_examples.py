"""The examples run, at small size, and their loss falls."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(monkeypatch, name, **options):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name).main(**options)


def falls(losses, by):
    """Whether the mean of the last tenth is below ``by`` times that of the first."""
    tail = max(1, len(losses) // 10)
    return sum(losses[-tail:]) < by * sum(losses[:tail])


def test_plain_pytorch(monkeypatch, capsys):
    assert falls(run(monkeypatch, "plain_pytorch", steps=500), 0.5)
    assert "replay is equal: True" in capsys.readouterr().out


@pytest.mark.parametrize("train", [
    "full",
    pytest.param("lora", marks=pytest.mark.slow),
    pytest.param("int8", marks=pytest.mark.slow),
])  # fmt: skip
def test_causal_language_model(monkeypatch, train):
    assert falls(run(monkeypatch, "causal_lm", train=train, steps=150), 0.95)


@pytest.mark.parametrize("name", ["huggingface_trainer", "accelerate_loop", "lightning_module"])
def test_trainers_of_others(monkeypatch, name):
    if name == "lightning_module":
        pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")
    assert falls(run(monkeypatch, name, steps=150), 0.95)


@pytest.mark.slow
def test_diffusers_script(monkeypatch):
    assert falls(run(monkeypatch, "diffusers_script", steps=40), 0.98)
