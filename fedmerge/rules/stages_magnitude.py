"""Stages that sparsify each client by the ranks of its magnitudes: without outliers, or at random by rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.checks import require_between, require_choice, require_share
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import SCOPES, Stage, largest

ROUNDING = 1e-12
"""By so much two shares that are written as decimals may pass their limit of 1."""


@dataclass(frozen=True)
class KeepMiddle(Stage):
    """Keep each client's middle band of magnitudes: neither the outliers nor the small entries.

    Of n entries the `int(gamma * n)` largest are set to 0, the next `max(1, int(density * n))` kept, and the
    rest set to 0; of equal magnitudes the one of lower index counts as larger. A tensor of fewer than
    1 / gamma entries has no outliers, and of each tensor at least one entry is left. Needs the whole tensor.

    Args:
        density: share kept, in (0, 1].
        gamma: share of outliers, in [0, 1); together with `density` at most 1.
        scope: "tensor", or "adapter" for one band over the whole adapter.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> values = torch.tensor([[3.0, -50.0, 1.0, 5.0]])
        >>> stack = Stack(values, torch.ones(1, 1, dtype=torch.float64))
        >>> KeepMiddle(density=0.5, gamma=0.25)(stack, Draw(0, 0, ("a",), "x", (4,))).values
        tensor([[3., 0., 0., 5.]])

    Reference:
        Davari, Belilovsky, "Model Breadcrumbs", 2023, arXiv:2312.06795.
    """

    density: float
    gamma: float = 0.01
    scope: str = "tensor"

    phase: ClassVar[str] = "sparsify"
    per_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_share("keep_middle", "density", self.density)
        require_between("keep_middle", "gamma", self.gamma, 0, 1)
        require_choice("keep_middle", "scope", self.scope, SCOPES)
        if self.density + self.gamma > 1 + ROUNDING:
            raise RuleError(
                f"keep_middle: density={self.density!r} and gamma={self.gamma!r} are more than 1 together; "
                "what is kept and what is cut off at the top are shares of the same entries"
            )

    @property
    def separable(self) -> bool:
        """False where magnitudes are compared."""
        return self.density == 1

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with outliers and small entries set to 0."""
        if self.density == 1:
            return stack
        outliers = int(self.gamma * stack.coordinates)
        count = min(max(1, int(self.density * stack.coordinates)), stack.coordinates - outliers)
        kept = torch.zeros_like(stack.values)
        for source, target in zip(stack.values, kept, strict=True):
            band = largest(source, outliers + count) & ~largest(source, outliers)
            torch.where(band, source, target, out=target)
        return Stack(kept, stack.weights)

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """Unchanged where all are kept."""
        return coefficients if self.density == 1 else None


@dataclass(frozen=True)
class DropByRank(Stage):
    """Drop entries at random, small ones more often, and divide what is kept by its own probability.

    An entry is kept with probability `p = density - epsilon + 2 epsilon r`, where r in [0, 1] is the rank of
    its magnitude within its row (0 the smallest, 1 the largest; of equal ones the higher index ranks higher)
    and then divided by p: the expectation stays the same. A row is what feeds one output: an index of the
    tensor's first axis; a tensor of one axis is one row. In a row of one entry p is the density. Needs the
    whole tensor. Each client has its own mask, drawn for (seed, round, silo, tensor, element).

    Args:
        density: share kept on average, in (0, 1]; 1 - p in the paper.
        epsilon: by how much the largest is kept more often than the average, and the smallest less, from 0;
            `density - epsilon` is above 0 and `density + epsilon` at most 1.

    Raises:
        RuleError: an argument out of range; a tensor without its shape.

    Example:
        >>> stack = Stack(torch.ones(1, 4), torch.ones(1, 1, dtype=torch.float64))
        >>> DropByRank(density=0.5, epsilon=0.0)(stack, Draw(0, 0, ("a",), "x", (4,))).values
        tensor([[2., 2., 0., 0.]], dtype=torch.float64)

    Reference:
        Deep, Bhardwaj, Poria, "DELLA-Merging", 2024, arXiv:2406.11617 (MagPrune); the probabilities as in the
        authors' code.
    """

    density: float
    epsilon: float = 0.05

    phase: ClassVar[str] = "sparsify"
    per_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_share("drop_by_rank", "density", self.density)
        require_between("drop_by_rank", "epsilon", self.epsilon, 0, 1)
        low, high = self.density - self.epsilon, self.density + self.epsilon
        if low <= 0 or high > 1 + ROUNDING:
            raise RuleError(
                f"drop_by_rank: with density={self.density!r} and epsilon={self.epsilon!r} entries would be "
                f"kept with probabilities {low:g} to {high:g}, expected above 0 and at most 1"
            )

    @property
    def separable(self) -> bool:
        """False where ranks are needed."""
        return self.epsilon == 0

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return float64 values, some dropped, the others divided by their probability."""
        if self.density == 1:
            return stack
        kept = torch.zeros_like(stack.values, dtype=torch.float64)
        for client, (source, target) in enumerate(zip(stack.values, kept, strict=True)):
            probability = self._probabilities(source, draw)
            mask = draw.uniform_row(client, stack.coordinates, source.device) < probability
            torch.where(mask, source.to(torch.float64) / probability, target, out=target)
        return Stack(kept, stack.weights)

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """Unchanged where nothing is dropped."""
        return coefficients if self.density == 1 else None

    def _probabilities(self, values: Tensor, draw: Draw) -> Tensor:
        """Of one client's entries, float64 `(coordinates,)`."""
        if self.epsilon == 0 or len(values) == 0:
            return torch.full_like(values, self.density, dtype=torch.float64)
        rows = draw.shape[0] if len(draw.shape) > 1 else 1
        if draw.offset or len(values) % rows:
            raise RuleError(f"{self} needs the whole tensor {draw.tensor!r} of shape {draw.shape}")
        ascending = values.abs().reshape(rows, -1).argsort(dim=1, stable=True)
        length = ascending.shape[1]
        if length == 1:
            return torch.full_like(values, self.density, dtype=torch.float64)
        by_rank = torch.arange(length, dtype=torch.float64, device=values.device).div_(length - 1)
        by_rank.mul_(2 * self.epsilon).add_(self.density - self.epsilon)
        probabilities = torch.empty(ascending.shape, dtype=torch.float64, device=values.device)
        return probabilities.scatter_(1, ascending, by_rank.expand(rows, -1)).reshape(-1)
