"""The examples run, at small size, and their loss falls."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


MAIN = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
losses = importlib.import_module(sys.argv[2]).main(**json.loads(sys.argv[3]))
print(json.dumps([float(loss) for loss in losses]), file=sys.stderr)
"""


def run(name, **options):
    """An example's losses and what it prints, in a process of its own, as users run it: what it
    leaves in memory would disturb tests that measure memory."""
    command = [sys.executable, "-c", MAIN, EXAMPLES, name, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


def falls(losses, by):
    """Whether the mean of the last tenth is below ``by`` times that of the first."""
    tail = max(1, len(losses) // 10)
    return sum(losses[-tail:]) < by * sum(losses[:tail])


def test_plain_pytorch():
    losses, printed = run("plain_pytorch", steps=500)
    assert falls(losses, 0.5)
    assert "replay is equal: True" in printed


@pytest.mark.parametrize("train", [
    "full",
    pytest.param("lora", marks=pytest.mark.slow),
    pytest.param("int8", marks=pytest.mark.slow),
])  # fmt: skip
def test_causal_language_model(train):
    losses, _ = run("causal_lm", train=train, steps=150)
    assert falls(losses, 0.95)


@pytest.mark.parametrize("name", [
    pytest.param("huggingface_trainer", marks=pytest.mark.slow),
    "accelerate_loop",
    pytest.param("lightning_module", marks=pytest.mark.slow),
])  # fmt: skip
def test_trainers_of_others(name):
    if name == "lightning_module" and importlib.util.find_spec("lightning") is None:
        pytest.skip("Lightning is not installed: pip install lightning")
    losses, _ = run(name, steps=150)
    assert falls(losses, 0.95)


@pytest.mark.slow
def test_diffusers_script():
    losses, _ = run("diffusers_script", steps=40)
    assert falls(losses, 0.98)
