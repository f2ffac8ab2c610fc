"""Zeroth-order steps in Hugging Face's ``Trainer``, which calls ``step()`` without a closure."""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import Tensor

from ..errors import InputError


class ZerothOrderMixin:
    """Makes a ``Trainer`` whose optimizer is one of :mod:`sopt.optim`; put it before ``Trainer``.

    Each micro-batch is evaluated along the step's directions, in eval mode and without gradients;
    ``Trainer`` steps when it has seen ``gradient_accumulation_steps`` of them, and schedules,
    logs, evaluates and saves as ever. Set ``max_grad_norm=0``: there is no gradient to clip;
    ``clip=`` of the optimizer bounds the slopes. ``bf16=True`` will do, ``fp16=True`` will not: it
    scales gradients. Under torchrun, where each process has batches of
    its own, the optimizer needs ``exchange=Exchange.from_environment(share="data")``.

    Example:
        >>> class ZerothOrderTrainer(ZerothOrderMixin, Trainer): ...
        >>> optimizer = ZOSGD(model.named_parameters(), lr=1e-6, eps=1e-3)
        >>> ZerothOrderTrainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))
    """

    def training_step(
        self: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of a micro-batch, as ``Trainer`` sums it over the micro-batches of a step.

        Raises:
            InputError: There are several processes, and the optimizer has no exchange; or
                ``fp16=True``, which scales gradients.
        """
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's wrapper
        processes = self.accelerator.num_processes
        if processes > 1 and optimizer.exchange is None:
            raise InputError(
                "the optimizer must have exchange=Exchange.from_environment(share='data') where "
                f"Trainer gives each of {processes} processes batches of its own, got none"
            )
        if self.accelerator.scaler is not None:
            raise InputError(
                "fp16 must be False where there are no gradients to scale, got True: bf16 will do"
            )
        model.eval()
        inputs = self._prepare_inputs(inputs)

        def closure() -> Tensor:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, copy(inputs))  # which may take the labels out
            return loss.mean() if self.args.n_gpu > 1 else loss  # one of each GPU

        return optimizer.accumulate(closure) / self.current_gradient_accumulation_steps
