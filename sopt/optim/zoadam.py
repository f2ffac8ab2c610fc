"""``ZOAdam``: Adam on the zeroth-order estimate of the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sopt_kernels import add_noise_

from ..errors import InputError
from .distributed import Exchange
from .optimizer import ZerothOrderOptimizer
from .restore import Weights
from .seed_log import GroupSettings, Update
from .setup import Setup

BUFFERS = ("exp_avg", "exp_avg_sq")


class ZOAdam(ZerothOrderOptimizer):
    r"""Adam with decoupled weight decay on the estimate :math:`\hat g = \frac1N \sum_n g_n z_n`.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) \hat g, \quad
              v \leftarrow \beta_2 v + (1 - \beta_2) \hat g^2, \quad
              \theta \leftarrow (1 - \alpha \lambda)\,\theta - \alpha
              \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \delta}

    :math:`g_n` and :math:`z_n` are those of :class:`~sopt.optim.ZOSGD`. m and v are float32, two
    copies of the trained weights; :math:`\hat g` is made for one tensor at a time.

    Args:
        betas: :math:`\beta_1, \beta_2` in [0, 1).
        adam_eps: :math:`\delta` > 0.
        others: As in :class:`~sopt.optim.ZOSGD`; no int8 codes.

    Raises:
        InputError: An argument or a parameter will not do.

    Source:
        Kingma & Ba, ICLR 2015; Loshchilov & Hutter, ICLR 2019; on zeroth-order estimates: Malladi
        et al., NeurIPS 2023 (MeZO-Adam).

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ZOAdam(model.named_parameters(), lr=1e-3, eps=1e-3)
        >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
        >>> loss = optimizer.step(lambda: torch.nn.functional.mse_loss(model(x), y))
    """

    def __init__(
        self,
        named_parameters: Iterable[Any],
        lr: float,
        eps: float,
        num_perturbations: int = 1,
        noise: str = "gaussian",
        seed: int = 0,
        restore: str = "copy",
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = None,
        estimator: str = "two-sided",
        module: nn.Module | None = None,
        log: str | Path | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "betas": betas,
            "adam_eps": adam_eps,
            "weight_decay": weight_decay,
            "clip": clip,
            "enabled": True,
        }
        setup = Setup(
            num_perturbations=num_perturbations,
            noise=noise,
            seed=seed,
            restore=restore,
            estimator=estimator,
            module=module,
            log=log,
            exchange=exchange,
        )
        super().__init__(named_parameters, defaults, setup)

    def _check_group(self, group: Mapping[str, Any], params: Sequence[Tensor]) -> None:
        super()._check_group(group, params)
        if any(p.dtype == torch.int8 for p in params):
            raise InputError("parameters must be float32, bfloat16 or float16 for ZOAdam, got int8")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise InputError(f"betas must be in [0, 1), got {group['betas']}")
        if not group["adam_eps"] > 0:
            raise InputError(f"adam_eps must be positive, got {group['adam_eps']}")

    def _settings(self, group: Mapping[str, Any]) -> GroupSettings:
        decay = 1 - group["lr"] * group["weight_decay"]
        return GroupSettings.rounded(group["enabled"], group["eps"], decay, group["lr"], 0.0)

    def _factor(self, group: Mapping[str, Any]) -> float:
        return 1.0

    def _constants(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"betas": list(group["betas"]), "adam_eps": group["adam_eps"]}

    def _buffers(self, settings: GroupSettings) -> Sequence[str]:
        return BUFFERS

    def _update_weights(self, weights: Weights, updates: Sequence[Update]) -> None:
        weights.home()
        group = self.param_groups[weights.group]
        beta1, beta2 = group["betas"]
        for update in updates:
            settings = update.settings[weights.group]
            terms = self._setup.terms([update], weights.group)
            for name, p in weights.tensors.items():
                estimate = torch.zeros_like(p, dtype=torch.float32, requires_grad=False)
                add_noise_(
                    estimate,
                    terms.seeds,
                    terms.coefficients,
                    streams=name,
                    kind=self._setup.noise,
                )
                m, v = (self.state[p][key] for key in BUFFERS)
                t = self.state[p]["step"] = self.state[p].get("step", 0) + 1
                m.lerp_(estimate, 1 - beta1)
                v.mul_(beta2).addcmul_(estimate, estimate, value=1 - beta2)
                root = (v / (1 - beta2**t)).sqrt_().add_(group["adam_eps"])
                decayed = p.float() * settings.decay
                p.copy_(decayed.addcdiv_(m, root, value=-settings.lr / (1 - beta1**t)))
