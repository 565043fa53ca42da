"""The same names as others mean them: `like="peft"`, `"mergekit"` and `"paper"`.

Packages agree on the name TIES and differ in what they compute: who votes, what the sum is divided by, how
many entries are kept. Each preset is the chain of stages that computes a package's formula, in its order of
operations and in the precision of the values, so that results can be compared with it. For one's own merges
the rules without a preset are the better ones: weighted throughout, float64 inside, one rounding.

- `peft`: PEFT 0.21. Votes are sums of unweighted values, a vote of 0 elects +, the weighted sum is divided
  by the *number* of clients that agree (weights that sum to 1 therefore shrink the result by 1 / N), `dare`
  is an undivided sum.
- `mergekit`: mergekit 0.1.5, from its published definitions. Weighted votes, a vote of 0 elects +; DARE
  rescales each tensor to its former L1 norm; `dare` and `dare_ties` are undivided sums.
- `paper`: the authors' code. Weights are ignored; the threshold of TIES is one for the whole adapter and
  keeps one entry more, and all that equal it; a vote of 0 takes the sign of the majority of all votes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.checks import require_choice, require_share
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import SCOPES, EqualWeights, KeepLargest, Stage

PAPER_TRIM_DENSITY = 0.2
"""The density at which the DARE authors' code trims again before it elects: the default of TIES."""


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
        keep_norm: rescale each tensor to its former L1 norm instead of by 1 / density.
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
        before, after = (x.to(torch.float64).abs().sum(dim=1, keepdim=True) for x in (values, kept))
        ratio = before / torch.where(after > 0, after, 1.0)
        return Stack(kept * ratio.to(kept.dtype), stack.weights)


@dataclass(frozen=True)
class ElectInPlainPrecision(Stage):
    """Elect in the values' own precision.

    Args:
        weighted: whether the votes are weighted.
        zero: who wins a vote of 0: "positive", or "majority", the sign of the sum of all votes' signs.
    """

    weighted: bool
    zero: str = "positive"

    phase: ClassVar[str] = "elect"
    separable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the argument."""
        require_choice("elect", "zero", self.zero, ("positive", "majority"))

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return the stack with weight 0 for those who are outvoted."""
        votes = weighted_values(stack) if self.weighted else stack.values * (stack.weights > 0)
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
    """

    divisor: str

    phase: ClassVar[str] = "combine"
    separable: ClassVar[bool] = (
        False  # torch's sum over clients depends, in the last bit, on where a column lies
    )

    def __post_init__(self) -> None:
        """Check the argument."""
        require_choice("sum", "divisor", self.divisor, ("one", "count", "weights"))

    def __call__(self, stack: Stack, draw: Draw) -> Stack:
        """Return one row."""
        total = weighted_values(stack).sum(dim=0)
        if self.divisor == "count":
            total = total / (stack.weights > 0).sum(dim=0).clamp(min=1.0)
        if self.divisor == "weights":
            weight = stack.weights.to(total.dtype).sum(dim=0)
            total = total / torch.where(weight > 0, weight, 1.0)
        return Stack(total[None], torch.ones(1, 1, dtype=torch.float64, device=total.device))

    def linear(self, coefficients: Tensor) -> Tensor | None:
        """The raw weights, where they are not divided."""
        return coefficients if self.divisor == "one" else None


def weighted_values(stack: Stack) -> Tensor:
    """Values times weights `(clients, coordinates)`; weights have float32, as PEFT's have."""
    return stack.values * stack.weights.to(torch.float32)


Stages = tuple[Stage, ...]
PRESETS: dict[tuple[str, str], Callable[[float, str | None], Stages]] = {
    ("task_arithmetic", "peft"): lambda density, scope: (SumInPlainPrecision("one"),),
    ("task_arithmetic", "mergekit"): lambda density, scope: (SumInPlainPrecision("one"),),
    ("task_arithmetic", "paper"): lambda density, scope: (EqualWeights(), SumInPlainPrecision("one")),
    ("ties", "peft"): lambda density, scope: (
        KeepLargest(density, scope or "tensor", minimum=0),
        ElectInPlainPrecision(weighted=False),
        SumInPlainPrecision("count"),
    ),
    ("ties", "mergekit"): lambda density, scope: (
        KeepLargest(density, scope or "tensor"),
        ElectInPlainPrecision(weighted=True),
        SumInPlainPrecision("weights"),
    ),
    ("ties", "paper"): lambda density, scope: (
        EqualWeights(),
        KeepThreshold(density, scope or "adapter"),
        ElectInPlainPrecision(weighted=False, zero="majority"),
        SumInPlainPrecision("count"),
    ),
    ("dare", "peft"): lambda density, scope: (DropInPlainPrecision(density), SumInPlainPrecision("one")),
    ("dare", "mergekit"): lambda density, scope: (
        DropInPlainPrecision(density, keep_norm=True),
        SumInPlainPrecision("one"),
    ),
    ("dare", "paper"): lambda density, scope: (
        EqualWeights(),
        DropInPlainPrecision(density),
        SumInPlainPrecision("one"),
    ),
    ("dare_ties", "peft"): lambda density, scope: (
        DropInPlainPrecision(density),
        ElectInPlainPrecision(weighted=False),
        SumInPlainPrecision("count"),
    ),
    ("dare_ties", "mergekit"): lambda density, scope: (
        DropInPlainPrecision(density, keep_norm=True),
        ElectInPlainPrecision(weighted=True),
        SumInPlainPrecision("one"),
    ),
    ("dare_ties", "paper"): lambda density, scope: (
        EqualWeights(),
        DropInPlainPrecision(density),
        KeepThreshold(PAPER_TRIM_DENSITY, scope or "adapter"),
        ElectInPlainPrecision(weighted=False, zero="majority"),
        SumInPlainPrecision("count"),
    ),
}


def preset(rule: str, like: str, density: float = 1.0, scope: str | None = None) -> Stages:
    """The stages that compute a rule as somebody else does, without the scale.

    Args:
        rule: the rule's name.
        like: "peft", "mergekit" or "paper".
        density: share kept.
        scope: of a threshold; None for the preset's own.

    Returns:
        The stages.

    Raises:
        RuleError: where there is no such preset of that rule.
    """
    known = [name for owner, name in PRESETS if owner == rule]
    if like not in known:
        raise RuleError(
            f"{rule}: like={like!r} is not known; it is one of {', '.join(map(repr, known))}, or left out"
        )
    return PRESETS[rule, like](density, scope)
