"""The directions in which a token moved lately, and a gradient without the others."""

from __future__ import annotations

import torch
from torch import Tensor


class SubspaceGradient:
    r"""Takes low-variance directions out of noisy gradients of token embeddings.

    The last :math:`\tau` tokens lie in a buffer. Each time it is full, it is standardized per
    feature to :math:`\bar B`, with the eigenvalues :math:`\lambda_1 \ge \lambda_2 \ge \dots` of
    :math:`\bar B^T \bar B` and their unit eigenvectors :math:`v_j`. With

    .. math:: i^* = \min\Bigl\{i : \sum_{j \le i} \lambda_j > (1 - \nu) \sum_j \lambda_j\Bigr\},
              \quad P = (v_{i^* + 1}, \dots, v_\tau)^T

    the gradients of the next :math:`\tau` steps become :math:`g (I - P^T P)`. Before the first
    buffer is full they stay as they are.

    A feature that did not move counts as having the deviation 1. The centred buffer has at most
    rank :math:`\tau - 1`: eigenvectors of eigenvalue zero are any vectors outside of its span, and
    stay in the gradient like all that is outside of it. (By the letter of the source one of them,
    :math:`v_\tau`, which the linear algebra library happens to choose, would be taken out.)

    Args:
        like: (vectors, width): what the tokens look like. Each vector has a buffer of its own.
        tau: Tokens in the buffer, at least 2 and below width.
        nu: Share of the variance that is taken out, in (0, 1).

    Source:
        ZOODiP, arXiv 2503.14868, equations 6 to 8. Its algorithm 2 begins P at :math:`i^*`.

    Example:
        >>> token = torch.tensor([[0.0, 0.0, 0.0]])
        >>> subspace = SubspaceGradient(token, tau=2, nu=0.5)
        >>> for x in (1.0, 2.0):
        ...     subspace.record(token + torch.tensor([[x, x, 0.0]]))
        >>> subspace.project(torch.ones(1, 3))  # one direction had all the variance
        tensor([[1., 1., 1.]])
    """

    def __init__(self, like: Tensor, tau: int, nu: float) -> None:
        vectors, width = like.shape
        self.nu = nu
        self.tokens = torch.zeros(vectors, tau, width, device=like.device)
        # P of each vector; rows beyond its last are zero, and take nothing out.
        self.removed = torch.zeros_like(self.tokens)
        self.recorded = torch.zeros((), dtype=torch.int64)

    def project(self, gradient: Tensor) -> Tensor:
        """The gradient, (vectors, width) float32, without the directions that are taken out."""
        shares = torch.einsum("vtw,vw->vt", self.removed, gradient)
        return gradient - torch.einsum("vtw,vt->vw", self.removed, shares)

    @property
    def num_removed(self) -> int:
        """Directions that are taken out, of all vectors together."""
        return int(self.removed.any(dim=-1).sum())

    @torch.no_grad()
    def record(self, token: Tensor) -> None:
        """Take the token of a step into the buffer; a full one decides what is taken out next."""
        tau = self.tokens.shape[1]
        self.tokens[:, int(self.recorded) % tau] = token
        self.recorded += 1
        if int(self.recorded) % tau == 0:
            directions = [low_variance_directions(buffer, self.nu) for buffer in self.tokens]
            self.removed.zero_()
            for kept, found in zip(self.removed, directions, strict=True):
                kept[: len(found)] = found

    def state(self) -> dict[str, Tensor]:
        """Everything that :meth:`load` needs to go on."""
        return {"tokens": self.tokens, "removed": self.removed, "recorded": self.recorded}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def low_variance_directions(tokens: Tensor, nu: float) -> Tensor:
    """P of :class:`SubspaceGradient` for the buffer ``tokens``, (tau, width): (rows, width)."""
    buffer = tokens.cpu().double()  # float32 would leave P orthonormal to 1e-6 only
    centred = buffer - buffer.mean(dim=0)
    deviation = buffer.std(dim=0, correction=0)
    still = len(buffer) * torch.finfo(buffer.dtype).eps * buffer.abs().amax(dim=0)  # of the mean
    centred /= torch.where(deviation > still, deviation, 1)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    variances = sizes.square()
    shares = variances.cumsum(0) / variances.sum()
    first = int((shares <= 1 - nu).sum()) + 1
    rank = int((sizes > sizes[0] * max(centred.shape) * torch.finfo(sizes.dtype).eps).sum())
    return directions[first:rank].to(tokens)
