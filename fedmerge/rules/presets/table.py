"""Which stages a rule has as somebody else computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedmerge.errors import RuleError
from fedmerge.rules.presets.mergekit import DropByRankKeepNorm, KeepVaryingOfNonzero, WeighByMeanSquare
from fedmerge.rules.presets.stages import (
    DropInPlainPrecision,
    ElectInPlainPrecision,
    KeepThreshold,
    SumInPlainPrecision,
)
from fedmerge.rules.stages import EqualWeights, KeepLargest, Stage
from fedmerge.rules.stages_magnitude import KeepMiddle

PAPER_TRIM_DENSITY = 0.2
"""The density at which the DARE authors' code trims again before it elects: the default of TIES."""

SCE_SMALLEST_DIVISOR = 1e-6
"""mergekit's SCE divides by no smaller sum of weights."""


@dataclass(frozen=True)
class Knobs:
    """What a rule was called with; each preset reads what it has a use for.

    Args:
        density: share kept.
        scope: of a threshold; None for the preset's own.
        votes: "mass" or "frequency", see `ElectSign`; only PEFT has a choice.
        epsilon: of the DELLA rules.
        gamma: of the Breadcrumbs rules.
    """

    density: float = 1.0
    scope: str | None = None
    votes: str = "mass"
    epsilon: float = 0.15
    gamma: float = 0.01


Stages = tuple[Stage, ...]
UNDIVIDED = SumInPlainPrecision("one")
MERGEKIT_ELECT = ElectInPlainPrecision(weighted=True)
PAPER_ELECT = ElectInPlainPrecision(weighted=False, zero="majority")


def _peft_elect(knobs: Knobs) -> Stage:
    return ElectInPlainPrecision(weighted=False, votes=knobs.votes)


def _mergekit_drop(knobs: Knobs) -> Stage:
    return DropInPlainPrecision(knobs.density, keep_norm=True)


def _mergekit_drop_by_rank(knobs: Knobs) -> Stage:
    return DropByRankKeepNorm(knobs.density, knobs.epsilon)


def _middle(knobs: Knobs) -> Stage:
    return KeepMiddle(knobs.density, knobs.gamma, knobs.scope or "tensor")


PRESETS: dict[tuple[str, str], Callable[[Knobs], Stages]] = {
    ("task_arithmetic", "peft"): lambda knobs: (UNDIVIDED,),
    ("task_arithmetic", "mergekit"): lambda knobs: (UNDIVIDED,),
    ("task_arithmetic", "paper"): lambda knobs: (EqualWeights(), UNDIVIDED),
    ("ties", "peft"): lambda knobs: (
        KeepLargest(knobs.density, knobs.scope or "tensor", minimum=0),
        _peft_elect(knobs),
        SumInPlainPrecision("count"),
    ),
    ("ties", "mergekit"): lambda knobs: (
        KeepLargest(knobs.density, knobs.scope or "tensor"),
        MERGEKIT_ELECT,
        SumInPlainPrecision("weights"),
    ),
    ("ties", "paper"): lambda knobs: (
        EqualWeights(),
        KeepThreshold(knobs.density, knobs.scope or "adapter"),
        PAPER_ELECT,
        SumInPlainPrecision("count"),
    ),
    ("dare", "peft"): lambda knobs: (DropInPlainPrecision(knobs.density), UNDIVIDED),
    ("dare", "mergekit"): lambda knobs: (_mergekit_drop(knobs), UNDIVIDED),
    ("dare", "paper"): lambda knobs: (EqualWeights(), DropInPlainPrecision(knobs.density), UNDIVIDED),
    ("dare_ties", "peft"): lambda knobs: (
        DropInPlainPrecision(knobs.density),
        _peft_elect(knobs),
        SumInPlainPrecision("count"),
    ),
    ("dare_ties", "mergekit"): lambda knobs: (_mergekit_drop(knobs), MERGEKIT_ELECT, UNDIVIDED),
    ("dare_ties", "paper"): lambda knobs: (
        EqualWeights(),
        DropInPlainPrecision(knobs.density),
        KeepThreshold(PAPER_TRIM_DENSITY, knobs.scope or "adapter"),
        PAPER_ELECT,
        SumInPlainPrecision("count"),
    ),
    ("della", "mergekit"): lambda knobs: (
        _mergekit_drop_by_rank(knobs),
        MERGEKIT_ELECT,
        SumInPlainPrecision("weights"),
    ),
    ("della_linear", "mergekit"): lambda knobs: (_mergekit_drop_by_rank(knobs), UNDIVIDED),
    ("breadcrumbs", "mergekit"): lambda knobs: (_middle(knobs), UNDIVIDED),
    ("breadcrumbs_ties", "mergekit"): lambda knobs: (_middle(knobs), MERGEKIT_ELECT, UNDIVIDED),
    ("sce", "mergekit"): lambda knobs: (
        EqualWeights(),
        KeepVaryingOfNonzero(knobs.density),
        WeighByMeanSquare(),  # before the election, after which a client may count nowhere
        ElectInPlainPrecision(weighted=False),
        SumInPlainPrecision("weights", floor=SCE_SMALLEST_DIVISOR),
    ),
}


def preset(rule: str, like: str, knobs: Knobs | None = None) -> Stages:
    """The stages that compute a rule as somebody else does, without the scale.

    Args:
        rule: the rule's name.
        like: "peft", "mergekit" or "paper".
        knobs: what the rule was called with.

    Returns:
        The stages.

    Raises:
        RuleError: where there is no such preset of that rule, or it has no such vote.
    """
    knobs = knobs or Knobs()
    known = [name for owner, name in PRESETS if owner == rule]
    if like not in known:
        raise RuleError(
            f"{rule}: like={like!r} is not known; it is one of {', '.join(map(repr, known))}, or left out"
        )
    if like != "peft" and knobs.votes != "mass":
        raise RuleError(
            f"{rule}: votes={knobs.votes!r} is no choice that {like} has; it goes with like='peft', or "
            "without `like`"
        )
    return PRESETS[rule, like](knobs)
