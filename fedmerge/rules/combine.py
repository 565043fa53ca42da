"""Stages that make one row of many clients, and the scale after them. All work and answer in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.rules.checks import require_between, require_finite
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import Stage, weighted_sum

# Shares of the total weight below this are rounding, not clients: sums of weights are exact only for whole
# numbers.
NEGLIGIBLE = 1e-9


def one_row(values: Tensor) -> Stack:
    """The stack of one client of weight 1 with these values `(coordinates,)`."""
    return Stack(values[None], torch.ones(1, 1, dtype=torch.float64, device=values.device))


def divide(numerator: Tensor, divisor: Tensor) -> Tensor:
    """Quotient where 0 / 0 is 0; both float64."""
    return numerator / torch.where(divisor > 0, divisor, torch.ones_like(divisor))


@dataclass(frozen=True)
class Mean(Stage):
    """`sum w tau / sum w` per coordinate, over the weights that are left; 0 / 0 = 0.

    The only stage that divides by the weights.

    Example:
        >>> values = torch.tensor([[1.0], [4.0]])
        >>> stack = Stack(values, torch.tensor([[2.0], [1.0]], dtype=torch.float64))
        >>> Mean()(stack, Draw(0, 0, ("a", "b"), "x", (1,))).values
        tensor([[2.]], dtype=torch.float64)
    """

    phase: ClassVar[str] = "combine"

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return one row, float64."""
        return one_row(self.of_sums(*weighted_sum(stack), (stack.weights > 0).sum(dim=0)))

    def of_sums(self, total: Tensor, divisor: Tensor, counted: Tensor) -> Tensor:
        """The row from sums over the clients: of weight times value, of weights, and their number."""
        return divide(total, divisor)

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """The shares."""
        return divide(coefficients, coefficients.sum())


@dataclass(frozen=True)
class Total(Stage):
    """The number of clients that count at a coordinate, times their mean: with equal weights the plain sum.

    Example:
        >>> values = torch.tensor([[1.0], [4.0]])
        >>> stack = Stack(values, torch.tensor([[7.0], [7.0]], dtype=torch.float64))
        >>> Total()(stack, Draw(0, 0, ("a", "b"), "x", (1,))).values
        tensor([[5.]], dtype=torch.float64)
    """

    phase: ClassVar[str] = "combine"

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return one row, float64."""
        return one_row(self.of_sums(*weighted_sum(stack), (stack.weights > 0).sum(dim=0)))

    def of_sums(self, total: Tensor, divisor: Tensor, counted: Tensor) -> Tensor:
        """The row from sums over the clients: of weight times value, of weights, and their number."""
        return divide(total * counted, divisor)

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """The shares, times the number of clients that count."""
        return divide(coefficients * (coefficients > 0).sum(), coefficients.sum())


@dataclass(frozen=True)
class Scale(Stage):
    """Multiply by a factor, lambda in the merging papers.

    Args:
        factor: any finite number.

    Raises:
        RuleError: a factor that is not finite.

    Example:
        >>> print(Scale(factor=0.3))
        scale(factor=0.3)
    """

    factor: float

    phase: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        """Check the argument."""
        require_finite("scale", "factor", self.factor)

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the values times the factor, float64."""
        return Stack(stack.values.to(torch.float64) * self.factor, stack.weights)

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """The coefficients times the factor."""
        return coefficients * self.factor


@dataclass(frozen=True)
class Median(Stage):
    """The weighted median per coordinate: a client of weight 2 equals two of weight 1.

    The middle between the smallest value that at least half of the weight does not exceed and the largest
    that at least half does not fall below; with equal weights the ordinary median.

    Example:
        >>> values = torch.tensor([[1.0], [2.0], [100.0]])
        >>> stack = Stack(values, torch.ones(3, 1, dtype=torch.float64))
        >>> Median()(stack, Draw(0, 0, ("a", "b", "c"), "x", (1,))).values
        tensor([[2.]], dtype=torch.float64)

    Reference:
        Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning", 2018, arXiv:1803.01498.
    """

    phase: ClassVar[str] = "combine"

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return one row, float64."""
        values, _, until = in_order(stack)
        lower = _first_reaching(values, until, 0.5 - NEGLIGIBLE)
        upper = _first_reaching(values, until, 0.5 + NEGLIGIBLE)
        return one_row(torch.where(until[-1] > 0, lower / 2 + upper / 2, 0.0))


@dataclass(frozen=True)
class TrimmedMean(Stage):
    """Per coordinate, the mean of what is left when a share of the weight is cut off at either end.

    Cut by weight, a client in part where the cut falls into it: a client of weight 2 equals two of weight 1.
    With equal weights and `trim * clients` whole, the ordinary trimmed mean.

    Args:
        trim: share of the weight cut off at each end, in [0, 0.5).

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> values = torch.tensor([[1.0], [2.0], [3.0], [100.0]])
        >>> stack = Stack(values, torch.ones(4, 1, dtype=torch.float64))
        >>> TrimmedMean(trim=0.25)(stack, Draw(0, 0, ("a", "b", "c", "d"), "x", (1,))).values
        tensor([[2.5000]], dtype=torch.float64)

    Reference:
        Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning", 2018, arXiv:1803.01498.
    """

    trim: float

    phase: ClassVar[str] = "combine"

    def __post_init__(self) -> None:
        """Check the argument."""
        require_between("trimmed_mean", "trim", self.trim, 0, 0.5)

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return one row, float64."""
        if self.trim == 0:
            return Mean()(stack, draw)
        values, begin, until = in_order(stack)
        left = until.clamp(max=1 - self.trim) - begin.clamp(min=self.trim)
        # A remainder of 1e-17 of a client would still let in 1e-17 of an attacker's 1e30.
        left = torch.where(left > NEGLIGIBLE, left, 0.0)
        return one_row(divide(*weighted_sum(Stack(values, left))))

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """The shares where nothing is trimmed."""
        return Mean().linear(coefficients) if self.trim == 0 else None


def in_order(stack: Stack) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the clients' values per coordinate and lay their shares of the weight end to end.

    Args:
        stack: values and weights.

    Returns:
        Sorted values (float64), and where each one's share begins and ends in [0, 1], all `(clients,
        coordinates)`. All shares are 0 where nobody counts.
    """
    values, order = stack.values.to(torch.float64).sort(dim=0, stable=True)
    weights = stack.weights.expand_as(stack.values).gather(0, order)
    until = weights.clone()
    for client in range(1, stack.clients):  # not cumsum, which a GPU does in an order of its own
        until[client] += until[client - 1]
    until = divide(until, until[-1])
    begin = torch.cat([torch.zeros_like(until[:1]), until[:-1]])
    return values, begin, until


def _first_reaching(values: Tensor, until: Tensor, share: float) -> Tensor:
    """The value of the first client whose share ends at or after `share`; `(coordinates,)`."""
    position = (until < share).sum(dim=0).clamp(max=len(values) - 1)
    return values.gather(0, position[None]).squeeze(0)
