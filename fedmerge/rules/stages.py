"""Stages that prepare a stack: who counts, which entries are kept, whose sign wins.

A stage is a frozen dataclass `(Stack, Draw) -> Stack`: pure, printed, compared, hashed and pickled like a
value. It checks its arguments when it is made. `chain` (compose.py) puts stages together to a rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from fedmerge.rules.checks import require_choice, require_share
from fedmerge.rules.stack import Draw, Stack
from fedmerge.text import render

PHASES = ("weigh", "sparsify", "elect", "combine", "scale")
"""The order of the stages in a rule. Exactly one combines."""

SCOPES = ("tensor", "adapter")
"""What a threshold is chosen over: each tensor by itself, or the whole adapter."""

VOTES = ("mass", "frequency")
"""What a client votes with for the sign of a coordinate: with its value, or with the value's sign alone."""


@runtime_checkable
class Stage(Protocol):
    """One step of a rule.

    Attributes:
        phase: its place in a chain, one of `PHASES`.
        separable: whether chunks of coordinates may be treated apart, with the same bits.
        scope: "adapter" where it wants all tensors of an adapter as one row.

    A stage that treats each client by itself says so by a further attribute, `per_client = True`: rules of
    such stages can merge clients that come one after the other (streaming.py).
    """

    @property
    def phase(self) -> str:
        """Its place in a chain."""
        ...

    @property
    def separable(self) -> bool:
        """Whether chunks of coordinates may be treated apart."""
        return True

    @property
    def scope(self) -> str:
        """What it must see at once."""
        return "tensor"

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the next stack; the given one stays as it is."""
        ...

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """Carry the weights so far, float64 `(clients,)`, on; None where values decide too."""
        return None

    def __str__(self) -> str:
        """The stage as rule text, `keep_largest(density=0.2)`."""
        return spell(self)


def spell(stage: object) -> str:
    """Write a stage dataclass as rule text; fields at their default are left out.

    Example:
        >>> spell(KeepLargest(density=0.2))
        'keep_largest(density=0.2)'
    """
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(stage).__name__).lower()
    knobs = fields(stage)  # type: ignore[arg-type]
    values = {knob.name: getattr(stage, knob.name) for knob in knobs}
    return render(name, values, {knob.name: knob.default for knob in knobs})


@dataclass(frozen=True)
class EqualWeights(Stage):
    """Let every client count the same, whatever its number of examples; weight 0 stays 0.

    Example:
        >>> print(EqualWeights())
        equal_weights()
    """

    phase: ClassVar[str] = "weigh"
    per_client: ClassVar[bool] = True

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with weights 1 (0 where they were 0)."""
        return Stack(stack.values, (stack.weights > 0).to(torch.float64))

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """Weights 1, or 0."""
        return (coefficients > 0).to(torch.float64)


@dataclass(frozen=True)
class KeepLargest(Stage):
    """Keep each client's entries of largest magnitude, set the others to 0.

    Exactly `max(minimum, int(density * coordinates))` are kept; of equal magnitudes those of lowest index.
    Needs the whole tensor. Values must be finite.

    Args:
        density: share kept, in (0, 1].
        scope: "tensor", or "adapter" for one threshold over the whole adapter.
        minimum: 1, so that a small tensor is never wiped out; or 0.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> values = torch.tensor([[3.0, -5.0, 1.0, 5.0]])
        >>> stack = Stack(values, torch.ones(1, 1, dtype=torch.float64))
        >>> KeepLargest(density=0.25)(stack, Draw(0, 0, ("a",), "x", (4,))).values
        tensor([[ 0., -5.,  0.,  0.]])

    Reference:
        Yadav, Tam, Choshen, Raffel, Bansal, "TIES-Merging", 2023, arXiv:2306.01708, section 3 (trim).
    """

    density: float
    scope: str = "tensor"
    minimum: int = 1

    phase: ClassVar[str] = "sparsify"
    per_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_share("keep_largest", "density", self.density)
        require_choice("keep_largest", "scope", self.scope, SCOPES)
        require_choice("keep_largest", "minimum", self.minimum, (0, 1))

    @property
    def separable(self) -> bool:
        """False: the threshold depends on all coordinates (unless all are kept)."""
        return self.density == 1

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with the smaller entries set to 0."""
        if self.density == 1 or stack.coordinates == 0:
            return stack
        count = max(self.minimum, int(self.density * stack.coordinates))
        kept = torch.zeros_like(stack.values)
        for source, target in zip(stack.values, kept, strict=True):
            torch.where(largest(source, count), source, target, out=target)
        return Stack(kept, stack.weights)

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """Unchanged where all are kept."""
        return coefficients if self.density == 1 else None


def largest(values: Tensor, count: int) -> Tensor:
    """Mark exactly `count` entries of largest magnitude, of equal ones those of lowest index.

    Args:
        values: `(coordinates,)`, finite.
        count: how many, in [0, coordinates].

    Returns:
        bool `(coordinates,)`.

    Example:
        >>> largest(torch.tensor([1.0, -2.0, 2.0]), 1)
        tensor([False,  True, False])
    """
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    magnitude = values.abs()
    # Not kthvalue: on a GPU it refuses to run under torch's deterministic algorithms.
    threshold = magnitude.topk(count, sorted=False).values.min()
    mask = magnitude >= threshold
    surplus = int(mask.sum()) - count
    if surplus:
        tied = (magnitude == threshold).nonzero().squeeze(1)
        mask[tied[-surplus:]] = False
    return mask


@dataclass(frozen=True)
class DropRandom(Stage):
    """Keep each entry with probability `density` and divide it by that: the expectation stays the same.

    Each client has its own mask, drawn for (seed, round, silo, tensor, element).

    Args:
        density: share kept on average, in (0, 1]; 1 - p in the paper.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> stack = Stack(torch.ones(1, 4), torch.ones(1, 1, dtype=torch.float64))
        >>> DropRandom(density=0.5)(stack, Draw(0, 0, ("a",), "x", (4,))).values
        tensor([[2., 2., 0., 0.]], dtype=torch.float64)

    Reference:
        Yu, Yu, Yu, Huang, Li, "Language Models are Super Mario", 2023, arXiv:2311.03099.
    """

    density: float

    phase: ClassVar[str] = "sparsify"
    per_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the argument."""
        require_share("drop_random", "density", self.density)

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return float64 values, some dropped, the others divided by the density."""
        if self.density == 1:
            return stack
        kept = torch.zeros_like(stack.values, dtype=torch.float64)
        for client, (source, target) in enumerate(zip(stack.values, kept, strict=True)):
            mask = draw.uniform_row(client, stack.coordinates, source.device) < self.density
            torch.where(mask, source.to(torch.float64) / self.density, target, out=target)
        return Stack(kept, stack.weights)

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """Unchanged where nothing is dropped."""
        return coefficients if self.density == 1 else None


@dataclass(frozen=True)
class ElectSign(Stage):
    """Per coordinate, let only those clients count whose sign is that of the weighted sum.

    Edits weights, not values: who disagrees, or has a 0 there, gets weight 0. Where the vote is exactly 0
    nobody counts, so that `Mean` gives 0.

    Args:
        votes: "mass", the sign of `sum_i w_i tau_i`; or "frequency", the sign of `sum_i w_i sgn(tau_i)`.

    Raises:
        RuleError: another word.

    Example:
        >>> values = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
        >>> stack = Stack(values, torch.ones(2, 1, dtype=torch.float64))
        >>> ElectSign()(stack, Draw(0, 0, ("a", "b"), "x", (2,))).weights
        tensor([[0., 1.],
                [1., 1.]], dtype=torch.float64)

    Reference:
        Yadav, Tam, Choshen, Raffel, Bansal, "TIES-Merging", 2023, arXiv:2306.01708, section 3 (elect).
    """

    votes: str = "mass"

    phase: ClassVar[str] = "elect"

    def __post_init__(self) -> None:
        """Check the argument."""
        require_choice("elect_sign", "votes", self.votes, VOTES)

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with weights `(clients, coordinates)`, 0 for those who are outvoted."""
        by_mass = self.votes == "mass"
        vote, _ = weighted_sum(stack if by_mass else Stack(stack.values.sign(), stack.weights))
        positive, negative = vote > 0, vote < 0
        weights = torch.zeros_like(stack.values, dtype=torch.float64)
        for value, weight, target in zip(stack.values, stack.weights, weights, strict=True):
            agrees = ((value > 0) & positive) | ((value < 0) & negative)
            torch.where(agrees, weight, target, out=target)
        return Stack(stack.values, weights)


def weighted_sum(stack: Stack) -> tuple[Tensor, Tensor]:
    """Sum of weight times value, and sum of weights, over the clients.

    Client by client in float64, with separate multiplications and additions: the same bits for any chunking,
    and no float64 copy of the whole stack.

    Args:
        stack: values and weights.

    Returns:
        float64 `(coordinates,)` and float64 `(1,)` or `(coordinates,)`.
    """
    total = torch.zeros(stack.coordinates, dtype=torch.float64, device=stack.values.device)
    divisor = torch.zeros_like(stack.weights[0])
    for value, weight in zip(stack.values, stack.weights, strict=True):
        total.add_(value.to(torch.float64, copy=True).mul_(weight))
        divisor.add_(weight)
    return total, divisor
