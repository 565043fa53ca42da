"""The same names as others mean them: `like="peft"`, `"mergekit"` and `"paper"`.

Packages agree on the name TIES and differ in what they compute: who votes, what the sum is divided by, how
many entries are kept. Each preset is the chain of stages that computes a package's formula, in its order of
operations and in the precision of the values, so that results can be compared with it. For one's own merges
the rules without a preset are the better ones: weighted throughout, float64 inside, one rounding.

- `peft`: PEFT 0.21. Votes are sums of unweighted values, a vote of 0 elects +, the weighted sum is divided
  by the *number* of clients that agree (weights that sum to 1 therefore shrink the result by 1 / N), `dare`
  is an undivided sum.
- `mergekit`: mergekit 0.1.5. Weighted votes, a vote of 0 elects +; DARE and DELLA rescale each tensor to its
  former L1 norm; all but `ties`, `della` and `sce` are undivided sums; `sce` ignores the weights.
- `paper`: the authors' code. Weights are ignored; the threshold of TIES is one for the whole adapter and
  keeps one entry more, and all that equal it; a vote of 0 takes the sign of the majority of all votes.

A scale is applied in float64 to what a preset gives.
"""

from __future__ import annotations

from fedmerge.rules.presets.mergekit import DropByRankKeepNorm, KeepVaryingOfNonzero, WeighByMeanSquare
from fedmerge.rules.presets.stages import (
    DropInPlainPrecision,
    ElectInPlainPrecision,
    KeepThreshold,
    SumInPlainPrecision,
    weighted_values,
)
from fedmerge.rules.presets.table import PRESETS, Knobs, preset

__all__ = [
    "PRESETS",
    "DropByRankKeepNorm",
    "DropInPlainPrecision",
    "ElectInPlainPrecision",
    "KeepThreshold",
    "KeepVaryingOfNonzero",
    "Knobs",
    "SumInPlainPrecision",
    "WeighByMeanSquare",
    "preset",
    "weighted_values",
]
