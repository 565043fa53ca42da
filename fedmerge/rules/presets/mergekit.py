"""Further stages of mergekit's rules: drops by rank, and the three steps of SCE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.rules.checks import require_share
from fedmerge.rules.presets.stages import with_former_norms
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import Stage, largest
from fedmerge.rules.stages_magnitude import DropByRank

SMALL_ENERGY = 1e-6
"""Below this sum of mean squares mergekit's SCE weighs all clients alike: entries of 1e-3 suffice."""


@dataclass(frozen=True)
class DropByRankKeepNorm(Stage):
    """Drop at random, small entries more often, and rescale each tensor to its former L1 norm.

    Probabilities are those of `drop_by_rank`, in float32.

    Args:
        density: share kept on average, in (0, 1].
        epsilon: half the span of the probabilities, as of `drop_by_rank`.
    """

    density: float
    epsilon: float = 0.15

    phase: ClassVar[str] = "sparsify"
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the arguments, which are those of `drop_by_rank`."""
        DropByRank(self.density, self.epsilon)

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return values of the same dtype, some dropped, the others rescaled."""
        if self.density == 1 or stack.coordinates == 0:
            return stack
        rows = draw.shape[0] if len(draw.shape) > 1 else 1
        numbers = draw.uniform(stack.coordinates, stack.values.device)
        kept = torch.empty_like(stack.values)
        for source, number, target in zip(stack.values, numbers, kept, strict=True):
            target.copy_(source * (number < self._probabilities(source.reshape(rows, -1))))
        return Stack(with_former_norms(kept, stack.values), stack.weights)

    def _probabilities(self, rows: Tensor) -> Tensor:
        """Of the entries of one client's rows, float32 `(coordinates,)`."""
        ranks = rows.abs().argsort(dim=1, stable=True).argsort(dim=1).to(torch.float32)
        share = ranks / max(rows.shape[1] - 1, 1) if rows.shape[1] > 1 else torch.full_like(ranks, 0.5)
        return ((self.density - self.epsilon) + share * 2 * self.epsilon).reshape(-1)


@dataclass(frozen=True)
class KeepVaryingOfNonzero(Stage):
    """Keep the coordinates in which clients differ most: a share of those in which they differ at all.

    Args:
        density: share kept of the coordinates whose variance is not 0, in (0, 1]; none may be left.
    """

    density: float

    phase: ClassVar[str] = "sparsify"
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the argument."""
        require_share("sce(like='mergekit')", "density", self.density)

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with the other coordinates set to 0."""
        if self.density == 1 or stack.coordinates == 0:
            return stack
        present = stack.values[(stack.weights > 0).any(dim=1)]
        variance = present.var(dim=0, unbiased=False) if len(present) else torch.zeros_like(stack.values[0])
        # In float32, as a count times a share is in torch: 100 * 0.29 are 29, where float64 gives 28.
        count = int(variance.count_nonzero() * self.density)
        return Stack(stack.values * largest(variance, count), stack.weights)


@dataclass(frozen=True)
class WeighByMeanSquare(Stage):
    """Multiply each client's weight by its share of the clients' mean squares; small ones all count alike."""

    phase: ClassVar[str] = "elect"
    separable: ClassVar[bool] = False

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with weights times shares."""
        present = (stack.weights > 0).any(dim=1)
        energies = stack.values.square().mean(dim=1) * present
        total = energies.sum()
        even = present.to(energies.dtype) / present.sum().clamp(min=1)
        shares = even if total.abs() < SMALL_ENERGY else energies / total
        return Stack(stack.values, stack.weights * shares.to(torch.float64).unsqueeze(1))
