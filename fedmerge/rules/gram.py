"""Stages that need no more of the clients' values than their inner products.

What such a stage decides is one factor for each client, so that a rule of such stages is two passes over the
values: one for the Gram matrix `G_ij = <tau_i, tau_j>`, one for the sum `sum c_i tau_i`. Where the updates
are LoRA products both are cheap without any matrix of a layer's size, and nothing depends on how a client
factored its update.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import Stage

CHUNK_ENTRIES = 2**20
"""Clients times coordinates multiplied at once: bounds the float64 copies to 8 MB."""


class GramStage(Stage):
    """A stage that gives each client one factor, seen from the Gram matrix alone.

    A combining stage merges to `sum_i c_i tau_i`; one that prepares multiplies each `tau_i` by its factor. A
    subclass is a frozen dataclass with a field `scope` and the method `among`.
    """

    phase: ClassVar[str] = "combine"

    @property
    def separable(self) -> bool:
        """False: the inner products run over all coordinates."""
        return False

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """The factors, where every client counts.

        Args:
            gram: float64 `(clients, clients)`, on the CPU.
            weights: raw, float64 `(clients,)`, all above 0; at least one.

        Returns:
            float64 `(clients,)`.
        """
        raise NotImplementedError

    def coefficients(self, gram: Tensor, weights: Tensor) -> Tensor:
        """The factors; 0 for clients of weight 0, who change nothing for the others.

        Args:
            gram: inner products, `(clients, clients)`.
            weights: raw, `(clients,)`.

        Returns:
            float64 `(clients,)`, on the CPU.

        Raises:
            RuleError: inner products that overflowed, or clients that the stage can't treat.
        """
        gram, weights = gram.to("cpu", torch.float64), weights.to("cpu", torch.float64)
        present = (weights > 0).nonzero().squeeze(1)
        factors = torch.zeros_like(weights)
        if len(present):
            gram = gram[present][:, present]
            if not bool(gram.isfinite().all()):
                raise RuleError(
                    f"{self}: an inner product of two deltas is beyond float64; entries up to 1e150 are fine"
                )
            factors[present] = self.among(gram, weights[present])
        return factors

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return one row, or the scaled rows of a stage that only prepares; float64."""
        if stack.weights.shape[1] != 1:
            raise RuleError(
                f"{self} weighs whole deltas, so it can't follow a stage that weighs each coordinate (an "
                "election, a Fisher); put it behind keep_largest() or drop_random()"
            )
        factors = self.coefficients(gram_of(stack.values), stack.weights[:, 0]).to(stack.values.device)
        if self.phase != "combine":
            return Stack(stack.values.to(torch.float64) * factors.unsqueeze(1), stack.weights)
        ones = torch.ones(1, 1, dtype=torch.float64, device=stack.values.device)
        return Stack(combine(stack.values, factors)[None], ones)


def gram_of(values: Tensor) -> Tensor:
    """Inner products of all rows, in float64.

    Args:
        values: `(clients, coordinates)`.

    Returns:
        float64 `(clients, clients)`, symmetric, on the values' device.

    Example:
        >>> gram_of(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        tensor([[25.,  3.],
                [ 3.,  1.]], dtype=torch.float64)
    """
    clients, coordinates = values.shape
    gram = torch.zeros(clients, clients, dtype=torch.float64, device=values.device)
    size = max(1, CHUNK_ENTRIES // clients)
    for start in range(0, coordinates, size):
        part = values[:, start : start + size].to(torch.float64)
        gram += part @ part.T
    return gram


def combine(values: Tensor, coefficients: Tensor) -> Tensor:
    """`sum_i c_i tau_i` in float64, in the order of the clients; those of coefficient 0 are not read.

    Args:
        values: `(clients, coordinates)`.
        coefficients: float64 `(clients,)`, on the values' device.

    Returns:
        float64 `(coordinates,)`.
    """
    total = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    for row, coefficient in zip(values, coefficients.tolist(), strict=True):
        if coefficient:
            total.add_(row.to(torch.float64, copy=True).mul_(coefficient))
    return total


def norms_of(gram: Tensor) -> Tensor:
    """Each client's norm; rounding can leave the square of a zero norm a hair below 0.

    Example:
        >>> norms_of(torch.tensor([[4.0, 1.0], [1.0, -1e-20]]))
        tensor([2., 0.])
    """
    return gram.diagonal().clamp(min=0).sqrt()


def cosines_of(gram: Tensor) -> Tensor:
    """Cosines between all clients in [-1, 1]; 0 with a client that did not move.

    Args:
        gram: `(clients, clients)`.

    Returns:
        `(clients, clients)`; on the diagonal 1, or 0 for a client that did not move.

    Example:
        >>> cosines_of(torch.tensor([[4.0, -2.0], [-2.0, 4.0]]))
        tensor([[ 1.0000, -0.5000],
                [-0.5000,  1.0000]])
    """
    norms = norms_of(gram)
    scale = torch.where(norms > 0, norms, 1.0)
    cosines = (gram / scale / scale.unsqueeze(1)).clamp(-1, 1)
    cosines.diagonal().copy_((norms > 0).to(gram.dtype))
    return cosines
