"""Which chains a fused kernel can stand for, and what it must know of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
