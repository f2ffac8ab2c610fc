"""Zeroth-order optimizers for any PyTorch model: ``loss = optimizer.step(closure)``.

>>> optimizer = ZOSGD(model.named_parameters(), lr=1e-6, eps=1e-3, log="run.zolog")
>>> loss = optimizer.step(lambda: loss_of(model(batch)))
"""

from .distributed import Exchange
from .guards import TensorPrecision, noise_floor, precision_report
from .optimizer import ZerothOrderOptimizer
from .replay import replay
from .seed_log import SeedLog
from .zoadam import ZOAdam
from .zosgd import ZOSGD

__all__ = [
    "ZOSGD",
    "Exchange",
    "SeedLog",
    "TensorPrecision",
    "ZOAdam",
    "ZerothOrderOptimizer",
    "noise_floor",
    "precision_report",
    "replay",
]
