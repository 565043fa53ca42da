"""Rules that thin out each delta by the ranks of its magnitudes: DELLA and Model Breadcrumbs."""

from __future__ import annotations

from fedmerge.rules.catalogue.named import named
from fedmerge.rules.combine import Mean, Total
from fedmerge.rules.compose import Chain
from fedmerge.rules.presets import Knobs, preset
from fedmerge.rules.stages import ElectSign, Stage
from fedmerge.rules.stages_magnitude import DropByRank, KeepMiddle


def della(density: float = 0.5, epsilon: float = 0.05, scale: float = 1.0, like: str | None = None) -> Chain:
    """DELLA: drop small entries more often than large ones, rescale, elect a sign, average those who agree.

    With `t_i = m_i tau_i / p_i`, `m_i ~ Bernoulli(p_i)`, `p_i = rho - epsilon + 2 epsilon r_i`, where r_i in
    [0, 1] is the rank of `|tau_i|` within its row, and `g = sgn(sum_i w_i t_i)`:
    `lambda * sum_{i: sgn t_i = g} w_i t_i / sum_{i: sgn t_i = g} w_i`, and 0 where `g = 0`. At `epsilon = 0`
    it is `dare_ties`.

    Args:
        density: rho, share kept on average, in (0, 1].
        epsilon: half the span of the probabilities, from 0; rho - epsilon is above 0, rho + epsilon at most
            1. The authors' code has 0.05, mergekit 0.15.
        scale: lambda, any finite number.
        like: None, or "mergekit" for its mathematics: each tensor rescaled to its former L1 norm (presets/).

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(della(density=0.5, epsilon=0.15))
        della(density=0.5, epsilon=0.15)

    Reference:
        Deep, Bhardwaj, Poria, "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based
        Sampling", 2024, arXiv:2406.11617.
    """
    knobs = {"density": density, "epsilon": epsilon, "scale": scale, "like": like}
    stages: tuple[Stage, ...] = (DropByRank(density, epsilon), ElectSign(), Mean())
    if like is not None:
        stages = preset("della", like, Knobs(density, epsilon=epsilon))
    return named("della", knobs, stages, scale)


def della_linear(
    density: float = 0.5, epsilon: float = 0.05, scale: float = 1.0, like: str | None = None
) -> Chain:
    """DELLA without an election: drop small entries more often than large ones, rescale, add up.

    `lambda * sum_i m_i tau_i / p_i` with equal weights, in general `lambda * N * sum_i w_i m_i tau_i / p_i /
    sum_i w_i`, with masks and probabilities as in `della`: the expectation is that of `task_arithmetic`.

    Args:
        density: rho, share kept on average, in (0, 1].
        epsilon: half the span of the probabilities, from 0; rho - epsilon is above 0, rho + epsilon at most
            1.
        scale: lambda, any finite number.
        like: None, or "mergekit" for its mathematics: each tensor rescaled to its former L1 norm (presets/).

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(della_linear(density=0.5, epsilon=0.05, scale=0.3))
        della_linear(density=0.5, epsilon=0.05, scale=0.3)

    Reference:
        Deep, Bhardwaj, Poria, 2024, arXiv:2406.11617.
    """
    knobs = {"density": density, "epsilon": epsilon, "scale": scale, "like": like}
    stages: tuple[Stage, ...] = (DropByRank(density, epsilon), Total())
    if like is not None:
        stages = preset("della_linear", like, Knobs(density, epsilon=epsilon))
    return named("della_linear", knobs, stages, scale)


def breadcrumbs(
    density: float = 0.9,
    gamma: float = 0.01,
    scale: float = 1.0,
    scope: str | None = None,
    like: str | None = None,
) -> Chain:
    """Model Breadcrumbs: cut off each delta's outliers and its smallest entries, add up the rest.

    `lambda * sum_i m_i tau_i` with equal weights, in general `lambda * N * sum_i w_i m_i tau_i / sum_i w_i`.
    Of n entries m_i leaves out the `int(gamma n)` of largest magnitude and keeps the next
    `max(1, int(rho n))`.

    Args:
        density: rho, share of a tensor's entries kept, in (0, 1].
        gamma: share of outliers, in [0, 1); together with rho at most 1.
        scale: lambda, any finite number.
        scope: "tensor" (the default) or "adapter": what one band is chosen over.
        like: None, or "mergekit" for its mathematics: an undivided weighted sum (presets/).

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(breadcrumbs(density=0.9, gamma=0.01))
        breadcrumbs(density=0.9, gamma=0.01)

    Reference:
        Davari, Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", 2023,
        arXiv:2312.06795.
    """
    knobs = {"density": density, "gamma": gamma, "scale": scale, "scope": scope, "like": like}
    stages: tuple[Stage, ...] = (KeepMiddle(density, gamma, scope or "tensor"), Total())
    if like is not None:
        stages = preset("breadcrumbs", like, Knobs(density, scope, gamma=gamma))
    return named("breadcrumbs", knobs, stages, scale)


def breadcrumbs_ties(
    density: float = 0.9,
    gamma: float = 0.01,
    scale: float = 1.0,
    scope: str | None = None,
    like: str | None = None,
) -> Chain:
    """Model Breadcrumbs, then the election of TIES: the sum over those who agree.

    With `t_i = m_i tau_i`, masks as in `breadcrumbs`, and `g = sgn(sum_i w_i t_i)`: `lambda * sum_{i: sgn t_i
    = g} t_i` with equal weights, in general the weighted mean of those who agree, times their number.

    Args:
        density: rho, share of a tensor's entries kept, in (0, 1].
        gamma: share of outliers, in [0, 1); together with rho at most 1.
        scale: lambda, any finite number.
        scope: "tensor" (the default) or "adapter": what one band is chosen over.
        like: None, or "mergekit" for its mathematics: an undivided weighted sum (presets/).

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(breadcrumbs_ties(density=0.9, gamma=0.01, scale=0.5))
        breadcrumbs_ties(density=0.9, gamma=0.01, scale=0.5)

    Reference:
        Davari, Belilovsky, 2023, arXiv:2312.06795; Yadav et al., 2023, arXiv:2306.01708.
    """
    knobs = {"density": density, "gamma": gamma, "scale": scale, "scope": scope, "like": like}
    stages: tuple[Stage, ...] = (KeepMiddle(density, gamma, scope or "tensor"), ElectSign(), Total())
    if like is not None:
        stages = preset("breadcrumbs_ties", like, Knobs(density, scope, gamma=gamma))
    return named("breadcrumbs_ties", knobs, stages, scale)
