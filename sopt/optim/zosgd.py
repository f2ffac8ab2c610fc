"""``ZOSGD``: stochastic gradient descent by forward passes alone."""

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
from .restore import Codes, Weights
from .seed_log import GroupSettings, Update
from .setup import Setup


class ZOSGD(ZerothOrderOptimizer):
    r"""SGD along N random directions, by two forward passes each; no gradient, no noise stored.

    .. math:: g_n = \mathrm{clip}\Bigl(\frac{L(\theta + \epsilon z_n) - L(\theta - \epsilon z_n)}
              {2 \epsilon}\Bigr), \qquad
              \theta \leftarrow (1 - \alpha \lambda)\,\theta
              - \frac{\alpha}{N} \sum_{n=1}^{N} g_n z_n

    With momentum :math:`\mu` the sum goes into a float32 buffer,
    :math:`b \leftarrow \mu b + \frac{1}{N} \sum g_n z_n`, and
    :math:`\theta \leftarrow (1 - \alpha \lambda)\,\theta - \alpha b`.
    :math:`z_n` is a function of (seed, step, n), the parameter's name and the element's index, and
    is computed again wherever it is needed. Losses, their differences and :math:`g` are float32.
    int8 codes are moved by whole numbers and updated along the moves that they made.

    If a loss or a coefficient is not finite, the step is skipped and counted in ``skipped``, the
    weights as before.

    Args:
        named_parameters: ``(name, parameter)`` pairs as of ``model.named_parameters()``, or groups:
            dictionaries with such pairs as ``"params"`` and settings of their own for ``lr``,
            ``eps``, ``momentum``, ``weight_decay``, ``clip`` and ``enabled`` (False: neither
            perturbed nor updated). float32, bfloat16 or float16, or int8 with ``scales``;
            contiguous. What shares memory is trained once.
        lr: :math:`\alpha`, finite.
        eps: :math:`\epsilon`, size of a perturbation in units of the weights; > 0.
        num_perturbations: N; of all processes together where they share the perturbations.
        noise: ``"gaussian"`` or ``"rademacher"``.
        seed: Of the run, in [0, 2**64).
        restore: How weights come back from a perturbation. ``"copy"``: from a copy of the trained
            weights; exact. ``"inplace"``: the noise is taken off again; no memory, but float
            weights drift (:func:`~sopt.optim.precision_report` says by how much).
            ``"blocks"``: each module of ``module`` computes with perturbed weights of its own;
            exact, memory of the largest with those around it; what reads weights outside of their
            module's forward does not see the perturbation. int8 codes are exact in place, whatever
            is chosen.
        momentum: :math:`\mu` in [0, 1); not for int8 codes.
        weight_decay: :math:`\lambda`, decoupled; not for int8 codes.
        clip: Bound of :math:`|g_n|`; None for none.
        estimator: ``"two-sided"``, or ``"one-sided"``: :math:`g_n = (L(\theta + \epsilon z_n) -
            L(\theta)) / \epsilon`, N + 1 forward passes.
        rounding: Of updates to bfloat16 and float16 weights: ``"nearest"``, or ``"stochastic"``,
            which keeps the mean of updates below half an ulp.
        module: The model, for ``restore="blocks"``.
        scales: float32 scales of int8 codes, by the codes' names; shapes as in
            :func:`sopt_kernels.perturb_int8_`.
        headroom: Largest move of a code, in [1, 64].
        log: A seed log to write: see :func:`sopt.replay` and :meth:`resume`.
        exchange: Scalars shared with other processes: :class:`~sopt.optim.Exchange`.

    Raises:
        InputError: An argument or a parameter will not do.

    Source:
        Spall, IEEE TAC 37(3), 1992; Malladi et al., "Fine-tuning language models with just
        forward passes", NeurIPS 2023, algorithms 1 and 2.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = ZOSGD(model.named_parameters(), lr=1e-2, eps=1e-3)
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
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip: float | None = None,
        estimator: str = "two-sided",
        rounding: str = "nearest",
        module: nn.Module | None = None,
        scales: Mapping[str, Tensor] | None = None,
        headroom: int = 8,
        log: str | Path | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "momentum": momentum,
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
            rounding=rounding,
            module=module,
            scales=scales or {},
            headroom=headroom,
            log=log,
            exchange=exchange,
        )
        super().__init__(named_parameters, defaults, setup)

    def _check_group(self, group: Mapping[str, Any], params: Sequence[Tensor]) -> None:
        super()._check_group(group, params)
        if not 0 <= group["momentum"] < 1:
            raise InputError(f"momentum must be in [0, 1), got {group['momentum']}")
        if group["momentum"] and any(p.dtype == torch.int8 for p in params):
            raise InputError(f"momentum must be 0 for int8 codes, got {group['momentum']}")
        if group["momentum"] and self._setup.rounding == "stochastic":
            raise InputError(f"momentum must be 0 for stochastic rounding, got {group['momentum']}")

    def _settings(self, group: Mapping[str, Any]) -> GroupSettings:
        decay = 1 - group["lr"] * group["weight_decay"]
        lr = group["lr"] if group["momentum"] else 0.0
        return GroupSettings.rounded(group["enabled"], group["eps"], decay, lr, group["momentum"])

    def _factor(self, group: Mapping[str, Any]) -> float:
        return 1.0 if group["momentum"] else -group["lr"]

    def _buffers(self, settings: GroupSettings) -> Sequence[str]:
        return ["momentum_buffer"] if settings.momentum else []

    def _update_weights(self, weights: Weights, updates: Sequence[Update]) -> None:
        group = weights.group
        if isinstance(weights, Codes):
            for update in updates:
                weights.update(self._setup.terms([update], group))
            return
        settings = updates[0].settings[group]
        if settings.momentum:
            for update in updates:
                self._update_with_momentum(weights, settings, update)
        else:
            weights.update(self._setup.terms(updates, group))

    def _update_with_momentum(
        self, weights: Weights, settings: GroupSettings, update: Update
    ) -> None:
        weights.home()
        params = list(weights.tensors.values())
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        terms = self._setup.terms([update], weights.group)
        add_noise_(
            buffers,
            terms.seeds,
            terms.coefficients,
            streams=list(weights.tensors),
            kind=self._setup.noise,
            decay=settings.momentum,
        )
        for p, buffer in zip(params, buffers, strict=True):
            p.copy_((p.float() * settings.decay).add_(buffer, alpha=-settings.lr))
