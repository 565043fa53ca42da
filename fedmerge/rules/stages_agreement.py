"""Stages that look across the clients: where they vary, who uses a coordinate, whose change is the largest.

Those that sparsify set values to 0 for all clients alike; those that elect edit weights, coordinate by
coordinate, and leave the values to the stage that combines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.rules.checks import require_between, require_choice, require_share, require_whole
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import SCOPES, Stage, largest, weighted_sum


@dataclass(frozen=True)
class KeepVarying(Stage):
    """Keep the coordinates in which the clients differ most, one mask for all of them.

    Exactly `max(1, int(density * coordinates))` of largest weighted variance across the clients; of equal
    ones those of lowest index. Where no coordinate varies (a single client, say) there is nothing to choose
    by, and all are kept. Needs the whole tensor.

    Args:
        density: share kept, in (0, 1].

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> values = torch.tensor([[1.0, 5.0, 2.0], [1.0, -5.0, 3.0]])
        >>> stack = Stack(values, torch.ones(2, 1, dtype=torch.float64))
        >>> KeepVarying(density=0.4)(stack, Draw(0, 0, ("a", "b"), "x", (3,))).values
        tensor([[ 0.,  5.,  0.],
                [ 0., -5.,  0.]])

    Reference:
        Wan, Zhong, Yang, Chen, Quan, "FuseChat", 2024, arXiv:2408.07990 (select).
    """

    density: float

    phase: ClassVar[str] = "sparsify"

    def __post_init__(self) -> None:
        """Check the argument."""
        require_share("keep_varying", "density", self.density)

    @property
    def separable(self) -> bool:
        """False where variances are compared."""
        return self.density == 1

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with the other coordinates set to 0."""
        if self.density == 1 or stack.coordinates == 0:
            return stack
        spread = _spread(stack)
        if not bool((spread > 0).any()):
            return stack
        mask = largest(spread, max(1, int(self.density * stack.coordinates)))
        return Stack(stack.values.where(mask, 0.0), stack.weights)

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """Unchanged where all are kept."""
        return coefficients if self.density == 1 else None


def _spread(stack: Stack) -> Tensor:
    """Weighted variance per coordinate times the squared sum of weights, float64 `(coordinates,)`.

    Of differences to the first client that counts, so that clients that are alike give exactly 0; without a
    division, so that whole weights and coarse values tie exactly.
    """
    counted = (stack.weights > 0).any(dim=1).nonzero()
    first = stack.values[int(counted[0]) if len(counted) else 0].to(torch.float64)
    squares, sums = torch.zeros_like(first), torch.zeros_like(first)
    total = torch.zeros_like(stack.weights[0])
    for value, weight in zip(stack.values, stack.weights, strict=True):
        difference = value.to(torch.float64) - first
        weighted = difference * weight
        sums.add_(weighted)
        squares.add_(weighted.mul_(difference))
        total.add_(weight)
    return (squares * total - sums.square()).clamp_(min=0)


@dataclass(frozen=True)
class KeepConsensus(Stage):
    """Keep the coordinates that at least so many clients use, for all clients alike.

    A client uses a coordinate where its share of the sum is more than `threshold` times what the others
    bring: `w_i |tau_i| > threshold |sum_j w_j tau_j - w_i tau_i|`. What only one uses is selfish, what nobody
    uses catastrophic, in the paper's words. Where fewer clients are there than asked for, all must use it.

    Args:
        clients: how many must use a coordinate, from 1.
        threshold: the paper's lambda of a mask, from 0; larger masks at smaller values. The authors search
            0.2 to 0.6.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> values = torch.tensor([[3.0, 2.0], [0.1, 2.0]])
        >>> stack = Stack(values, torch.ones(2, 1, dtype=torch.float64))
        >>> KeepConsensus()(stack, Draw(0, 0, ("a", "b"), "x", (2,))).values
        tensor([[0., 2.],
                [0., 2.]])

    Reference:
        Wang, Dimitriadis, Ortiz-Jimenez, Fleuret, Frossard, "Localizing Task Information for Improved Model
        Merging and Compression", 2024, arXiv:2405.07813.
    """

    clients: int = 2
    threshold: float = 0.4

    phase: ClassVar[str] = "sparsify"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_whole("keep_consensus", "clients", self.clients, 1)
        require_between("keep_consensus", "threshold", self.threshold, 0, float("inf"))

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with the other coordinates set to 0."""
        total, _ = weighted_sum(stack)
        users = torch.zeros(stack.coordinates, dtype=torch.int64, device=total.device)
        for value, weight in zip(stack.values, stack.weights, strict=True):
            own = value.to(torch.float64) * weight
            users.add_(own.abs() > (total - own).abs() * self.threshold)
        needed = (stack.weights > 0).sum(dim=0).clamp(max=self.clients)
        return Stack(stack.values.where(users >= needed, 0.0), stack.weights)


@dataclass(frozen=True)
class ElectLargest(Stage):
    """Per coordinate, let only those clients count whose change is the largest in magnitude.

    Of those that count there; several where they tie.

    Example:
        >>> values = torch.tensor([[1.0, 2.0], [-3.0, 2.0]])
        >>> stack = Stack(values, torch.ones(2, 1, dtype=torch.float64))
        >>> ElectLargest()(stack, Draw(0, 0, ("a", "b"), "x", (2,))).weights
        tensor([[0., 1.],
                [1., 1.]], dtype=torch.float64)

    Reference:
        Marczak, Twardowski, Trzcinski, Cygert, "MagMax", 2024, arXiv:2407.06322.
    """

    phase: ClassVar[str] = "elect"

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with weights `(clients, coordinates)`, 0 for all others."""
        most = torch.zeros(stack.coordinates, dtype=stack.values.dtype, device=stack.values.device)
        for value, weight in zip(stack.values, stack.weights, strict=True):
            torch.maximum(most, value.abs().where(weight > 0, 0.0), out=most)
        weights = torch.zeros_like(stack.values, dtype=torch.float64)
        for value, weight, target in zip(stack.values, stack.weights, weights, strict=True):
            torch.where(value.abs() == most, weight, target, out=target)
        return Stack(stack.values, weights)


@dataclass(frozen=True)
class WeighByEnergy(Stage):
    """Multiply each client's weight by the sum of its squared entries: who changed more counts more.

    Per tensor, over what earlier stages left of it. After an election the votes were cast without it. Needs
    the whole tensor.

    Example:
        >>> values = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
        >>> stack = Stack(values, torch.ones(2, 1, dtype=torch.float64))
        >>> WeighByEnergy()(stack, Draw(0, 0, ("a", "b"), "x", (2,))).weights.tolist()
        [[2.0], [4.0]]

    Reference:
        Wan, Zhong, Yang, Chen, Quan, "FuseChat", 2024, arXiv:2408.07990 (calculate).
    """

    phase: ClassVar[str] = "elect"
    separable: ClassVar[bool] = False

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with weights times energies."""
        energies = [value.to(torch.float64).square().sum() for value in stack.values]
        return Stack(stack.values, stack.weights * torch.stack(energies).unsqueeze(1))


@dataclass(frozen=True)
class ElectChanged(Stage):
    """Per coordinate, let only those clients count that changed it by more than a threshold.

    Args:
        threshold: magnitude up to which an entry counts as unchanged, from 0.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> values = torch.tensor([[1.0, 2e-6], [-3.0, 4.0]])
        >>> stack = Stack(values, torch.ones(2, 1, dtype=torch.float64))
        >>> ElectChanged(threshold=1e-5)(stack, Draw(0, 0, ("a", "b"), "x", (2,))).weights
        tensor([[1., 0.],
                [1., 1.]], dtype=torch.float64)

    Reference:
        Yuan et al., "Behavior Knowledge Merge in Reinforced Agentic Models", 2026, arXiv:2601.13572.
    """

    threshold: float = 1e-5

    phase: ClassVar[str] = "elect"

    def __post_init__(self) -> None:
        """Check the argument."""
        require_between("elect_changed", "threshold", self.threshold, 0, float("inf"))

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with weights `(clients, coordinates)`, 0 for who left a coordinate as it was."""
        weights = torch.zeros_like(stack.values, dtype=torch.float64)
        for value, weight, target in zip(stack.values, stack.weights, weights, strict=True):
            torch.where(value.to(torch.float64).abs() > self.threshold, weight, target, out=target)
        return Stack(stack.values, weights)


@dataclass(frozen=True)
class RescaleUnique(Stage):
    """Enlarge the entries of coordinates where one client alone counts, more so the more it shares elsewhere.

    Client i's are multiplied by `1 + rate * min(limit, shared_i / unique_i)`, with the numbers of coordinates
    where it counts together with others and alone: what the mean over several takes from it in the ones is
    given back in the others. Needs the whole tensor.

    Args:
        rate: r, from 0; 0 leaves all as it is.
        limit: alpha, the largest ratio that counts, from 0.
        scope: "tensor", or "adapter" for numbers over the whole adapter.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
        >>> stack = Stack(torch.ones(2, 3), weights)
        >>> RescaleUnique(rate=0.5)(stack, Draw(0, 0, ("a", "b"), "x", (3,))).values.tolist()
        [[1.0, 1.5, 1.0], [1.0, 1.0, 1.0]]

    Reference:
        Yuan et al., "Behavior Knowledge Merge in Reinforced Agentic Models", 2026, arXiv:2601.13572 (RAM+).
    """

    rate: float = 0.05
    limit: float = 1.0
    scope: str = "tensor"

    phase: ClassVar[str] = "elect"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_between("rescale_unique", "rate", self.rate, 0, float("inf"))
        require_between("rescale_unique", "limit", self.limit, 0, float("inf"))
        require_choice("rescale_unique", "scope", self.scope, SCOPES)

    @property
    def separable(self) -> bool:
        """False where coordinates are counted."""
        return self.rate == 0

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return float64 values, those of one client alone enlarged."""
        if self.rate == 0:
            return stack
        counts = (stack.weights > 0).expand_as(stack.values)
        alone = counts.sum(dim=0) == 1
        values = stack.values.to(torch.float64, copy=True)
        for value, count in zip(values, counts, strict=True):
            unique = int((count & alone).sum())
            if unique:
                ratio = (int(count.sum()) - unique) / unique
                value[count & alone] *= 1 + self.rate * min(self.limit, ratio)
        return Stack(values, stack.weights)
