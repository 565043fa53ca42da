"""Which chains a fused kernel can stand for, and what it must know of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fedmerge.rules import (
    Chain,
    DropRandom,
    ElectSign,
    EqualWeights,
    KeepLargest,
    Mean,
    Rule,
    Scale,
    Stage,
    Total,
)

KNOWN = frozenset({EqualWeights, KeepLargest, DropRandom, ElectSign, Mean, Total, Scale})
"""Stages that kernels stand for."""

LARGEST_WEIGHT = 1e100
"""Raw weights between this and its inverse: further out a product of a value and a vote could leave float64's
range, and with it its sign."""


@dataclass(frozen=True)
class Fused:
    """A chain as its kernel sees it: at most one way to sparsify, an election or none, a mean or a total.

    Args:
        keep: density of `KeepLargest` over each tensor; None where nothing is trimmed.
        drop: density of `DropRandom`; None where nothing is dropped.
        elect: whether signs are elected.
        combine: "mean" or "total".
        scales: the factors of the scales that follow, in their order: each one rounds.
        equal: whether all clients count the same.
    """

    keep: float | None = None
    drop: float | None = None
    elect: bool = False
    combine: str = ""
    scales: tuple[float, ...] = ()
    equal: bool = False

    def bears(self, weights: Tensor) -> bool:
        """Whether kernels can compute it with these raw weights `(clients,)`."""
        usual = (weights >= 1 / LARGEST_WEIGHT) & (weights <= LARGEST_WEIGHT)
        return bool(usual.all()) and not (self.elect and self.combine == "total")

    def factors(self, weights: Tensor) -> list[float]:
        """What a sum is multiplied by, what it is divided by, and the scales.

        Args:
            weights: those that count, `(clients,)`: all 1 where the plan says `equal`.
        """
        if self.elect:  # each coordinate has a divisor of its own
            return [1.0, 1.0, *self.scales]
        divisor = 0.0
        for weight in weights.tolist():  # in the order of the composition: other sums round otherwise
            divisor += weight
        return [float(len(weights)) if self.combine == "total" else 1.0, divisor, *self.scales]


def fused(rule: Rule) -> Fused | None:
    """What a kernel must compute to stand for a rule; None where no kernel can.

    Args:
        rule: any rule.

    Returns:
        The plan, or None.

    Example:
        >>> from fedmerge.rules import median, ties
        >>> fused(ties(density=0.2))
        Fused(keep=0.2, drop=None, elect=True, combine='mean', scales=(), equal=False)
        >>> fused(median()) is None
        True
    """
    if not isinstance(rule, Chain):
        return None
    plan: Fused | None = Fused()
    for stage in rule.stages:
        plan = None if plan is None else _with(plan, stage)
    return plan


def _with(plan: Fused, stage: Stage) -> Fused | None:  # noqa: PLR0911 (a row a stage)
    """The plan with one stage more, None where no kernel knows it."""
    if type(stage) not in KNOWN:  # a subclass may compute anything
        return None
    sparsified = plan.keep is not None or plan.drop is not None
    match stage:
        case EqualWeights():
            return replace(plan, equal=True)
        case KeepLargest(density=1) | DropRandom(density=1):
            return plan
        case KeepLargest(scope="tensor", minimum=1) if not sparsified:
            return replace(plan, keep=stage.density)
        case DropRandom() if not sparsified:
            return replace(plan, drop=stage.density)
        case ElectSign(votes="mass") if not plan.elect:
            return replace(plan, elect=True)
        case Mean():
            return replace(plan, combine="mean")
        case Total():
            return replace(plan, combine="total")
        case Scale():
            return replace(plan, scales=(*plan.scales, stage.factor))
    return None
