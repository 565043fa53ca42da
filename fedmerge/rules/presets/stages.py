"""The stages of the presets: what packages do, in their order of operations and in the values' precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.rules.checks import require_between, require_choice, require_share
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import SCOPES, VOTES, Stage

MERGEKIT_SMALL_NORM = 1e-7
"""mergekit rescales no tensor whose L1 norm, before or after the drop, is below this."""


@dataclass(frozen=True)
class KeepThreshold(Stage):
    """Keep what reaches the `int(density * n) + 1`-th largest magnitude, as the TIES authors' code does."""

    density: float
    scope: str = "adapter"

    phase: ClassVar[str] = "sparsify"
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_share("ties(like='paper')", "density", self.density)
        require_choice("ties(like='paper')", "scope", self.scope, SCOPES)

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with the smaller entries set to 0."""
        count = int(self.density * stack.coordinates) + 1
        if count > stack.coordinates:
            return stack
        magnitude = stack.values.abs()
        threshold = magnitude.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        return Stack(stack.values * (magnitude >= threshold), stack.weights)


@dataclass(frozen=True)
class DropInPlainPrecision(Stage):
    """Drop at random and rescale in the values' own precision.

    Args:
        density: share kept on average, in (0, 1].
        keep_norm: rescale each tensor to its former L1 norm instead of by 1 / density. The norms are added up
            as torch does it, whose last bit depends on the number of threads for more than 32768 entries.
    """

    density: float
    keep_norm: bool = False

    phase: ClassVar[str] = "sparsify"

    def __post_init__(self) -> None:
        """Check the argument."""
        require_share("dare(like=...)", "density", self.density)

    @property
    def separable(self) -> bool:
        """False where a norm is needed."""
        return not self.keep_norm

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return values of the same dtype, some dropped, the others rescaled."""
        if self.density == 1:
            return stack
        values = stack.values
        kept = values * (draw.uniform(stack.coordinates, values.device) < self.density)
        if not self.keep_norm:
            return Stack(kept / self.density, stack.weights)
        return Stack(with_former_norms(kept, values), stack.weights)


@dataclass(frozen=True)
class ElectInPlainPrecision(Stage):
    """Elect in the values' own precision.

    Args:
        weighted: whether the votes are weighted.
        votes: "mass", each client votes with its value; or "frequency", with the sign of it.
        zero: who wins a vote of 0: "positive", or "majority", the sign of the sum of all votes' signs.
    """

    weighted: bool
    zero: str = "positive"
    votes: str = "mass"

    phase: ClassVar[str] = "elect"
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the argument."""
        require_choice("elect", "zero", self.zero, ("positive", "majority"))
        require_choice("elect", "votes", self.votes, VOTES)

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with weight 0 for those who are outvoted."""
        votes = weighted_values(stack) if self.weighted else stack.values * (stack.weights > 0)
        votes = votes.sign() if self.votes == "frequency" else votes
        elected = votes.sum(dim=0).sign()
        tie_break = elected.sum().sign() if self.zero == "majority" else torch.ones_like(elected)
        elected = torch.where(elected == 0, tie_break, elected)
        agrees = (stack.values.sign() == elected) & (stack.values != 0)
        return Stack(stack.values, stack.weights * agrees)


@dataclass(frozen=True)
class SumInPlainPrecision(Stage):
    """Weighted sum in the values' own precision, divided or not.

    Args:
        divisor: "one", "count" (clients whose weight is not 0 there) or "weights" (their sum).
        floor: least sum of weights that is divided by, from 0.
    """

    divisor: str
    floor: float = 0.0

    phase: ClassVar[str] = "combine"
    separable: ClassVar[bool] = (
        False  # torch's sum over clients depends, in the last bit, on where a column lies
    )

    def __post_init__(self) -> None:
        """Check the argument."""
        require_choice("sum", "divisor", self.divisor, ("one", "count", "weights"))
        require_between("sum", "floor", self.floor, 0, float("inf"))

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return one row."""
        total = weighted_values(stack).sum(dim=0)
        if self.divisor == "count":
            total = total / (stack.weights > 0).sum(dim=0).clamp(min=1.0)
        if self.divisor == "weights":
            weight = stack.weights.to(total.dtype).sum(dim=0)
            total = total / torch.where(weight > 0, weight.clamp(min=self.floor), 1.0)
        return Stack(total[None], torch.ones(1, 1, dtype=torch.float64, device=total.device))

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """The raw weights, where they are not divided."""
        return coefficients if self.divisor == "one" else None


def weighted_values(stack: Stack) -> Tensor:
    """Values times weights `(clients, coordinates)`; weights have float32, as PEFT's have."""
    return stack.values * stack.weights.to(torch.float32)


def with_former_norms(kept: Tensor, values: Tensor) -> Tensor:
    """Each row scaled to the L1 norm that it had before entries were dropped; tiny rows stay as they are.

    Args:
        kept: `(clients, coordinates)`, with entries set to 0.
        values: as they were.

    Returns:
        `(clients, coordinates)` of the same dtype.
    """
    scaled = torch.empty_like(kept)
    for row, before, target in zip(kept, values, scaled, strict=True):
        norms = [x.to(torch.promote_types(x.dtype, torch.float32)).abs().sum() for x in (before, row)]
        small = min(norms[0], norms[1]) < MERGEKIT_SMALL_NORM
        target.copy_(row if small else row * (norms[0] / norms[1]).to(row.dtype))
    return scaled
