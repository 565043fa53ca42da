"""Per coordinate, what a minority of the weight cannot move."""

from __future__ import annotations

from fedmerge.rules.catalogue.named import named
from fedmerge.rules.combine import Median, TrimmedMean
from fedmerge.rules.compose import Chain


def median() -> Chain:
    """The weighted median of each coordinate.

    Half of the weight lies on either side. Withstands silos that hold less than half of the weight, at the
    price of a bias towards 0 where changes are sparse.

    Returns:
        The rule.

    Example:
        >>> print(median())
        median()

    Reference:
        Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
        Rates", 2018, arXiv:1803.01498.
    """
    return named("median", {}, (Median(),))


def trimmed_mean(trim: float = 0.1) -> Chain:
    """The mean of each coordinate after a share of the weight is cut off at either end.

    Cut by weight, so that a client of weight 2 equals two of weight 1. Withstands silos that hold less than
    `trim` of the weight.

    Args:
        trim: beta, share of the weight cut off at each end, in [0, 0.5).

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(trimmed_mean(trim=0.1))
        trimmed_mean(trim=0.1)

    Reference:
        Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
        Rates", 2018, arXiv:1803.01498.
    """
    return named("trimmed_mean", {"trim": trim}, (TrimmedMean(trim),))
