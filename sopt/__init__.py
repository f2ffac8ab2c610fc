"""Personalize text-to-image diffusion models by backward passes where they fit in memory and by
forward passes where they do not.

>>> import sopt
>>> run = sopt.train(images="photos/dog", prompt="a sks dog", output="runs/dog")
>>> sopt.generate(adapter=run.output, prompt="a sks dog on the beach")[0].save("dog.png")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from . import hollow, optim, tiny
    from .evaluation.benchmarking import benchmark
    from .evaluation.evaluating import evaluate
    from .optim import replay
    from .planning import plan
    from .quantization import quantize
    from .sampling import generate
    from .trainer import Run, train

__all__ = [
    "InputError",
    "Run",
    "benchmark",
    "evaluate",
    "generate",
    "hollow",
    "optim",
    "plan",
    "quantize",
    "replay",
    "tiny",
    "train",
]

# Imported at first use: torch and diffusers take seconds, `import sopt` and `sopt --help` do not.
_MODULE_OF = {
    "Run": ".trainer",
    "train": ".trainer",
    "generate": ".sampling",
    "plan": ".planning",
    "evaluate": ".evaluation.evaluating",
    "benchmark": ".evaluation.benchmarking",
    "quantize": ".quantization",
    "replay": ".optim",
}


def __getattr__(name: str) -> Any:
    if name in ("hollow", "optim", "tiny"):
        return importlib.import_module(f".{name}", __name__)
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
