"""TIES and DARE: trim or drop, elect a sign, average those who agree."""

from __future__ import annotations

from fedmerge.rules.catalogue.named import named
from fedmerge.rules.combine import Mean
from fedmerge.rules.compose import Chain
from fedmerge.rules.presets import Knobs, preset
from fedmerge.rules.stages import DropRandom, ElectSign, KeepLargest


def ties(
    density: float = 0.2,
    scale: float = 1.0,
    scope: str | None = None,
    like: str | None = None,
    votes: str = "mass",
) -> Chain:
    """TIES: trim, elect a sign per coordinate, average those who agree.

    With `t_i = tau_i` where `|tau_i|` is among the `max(1, int(rho n))` largest and 0 elsewhere, and
    `g = sgn(sum_i w_i t_i)`: `lambda * sum_{i: sgn t_i = g} w_i t_i / sum_{i: sgn t_i = g} w_i`, and 0 where
    `g = 0`. Keeps large changes at full length where the mean would dilute them; helps where silos differ.

    Args:
        density: rho, share of a tensor's entries kept, in (0, 1].
        scale: lambda, any finite number.
        scope: "tensor" (the default) or "adapter": what one threshold is chosen over.
        like: None, or "peft", "mergekit" or "paper" for their mathematics (presets/).
        votes: "mass", or "frequency" for `g = sgn(sum_i w_i sgn(t_i))`: heads count, not lengths.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(ties(density=0.2))
        ties(density=0.2)
        >>> ties(density=20)
        Traceback (most recent call last):
        fedmerge.errors.RuleError: keep_largest: density=20 is out of range: a share in (0, 1], never percent

    Reference:
        Yadav, Tam, Choshen, Raffel, Bansal, "TIES-Merging: Resolving Interference When Merging Models", 2023,
        arXiv:2306.01708.
    """
    if like is not None:
        stages = preset("ties", like, Knobs(density, scope, votes))
    else:
        stages = (KeepLargest(density, scope or "tensor"), ElectSign(votes), Mean())
    knobs = {"density": density, "scale": scale, "scope": scope, "like": like, "votes": votes}
    return named("ties", knobs, stages, scale)


def dare(density: float = 0.5, scale: float = 1.0, like: str | None = None) -> Chain:
    """DARE: drop entries at random, rescale the rest, average.

    `lambda * sum_i w_i m_i tau_i / rho / sum_i w_i` with independent masks `m_i ~ Bernoulli(rho)`: the
    expectation is lambda times the weighted mean.

    Args:
        density: rho, share kept on average, in (0, 1]; 1 - p in the paper.
        scale: lambda, any finite number.
        like: None, or "peft", "mergekit" or "paper" for their mathematics (presets/): sums, not means.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(dare(density=0.1, scale=0.3))
        dare(density=0.1, scale=0.3)

    Reference:
        Yu, Yu, Yu, Huang, Li, "Language Models are Super Mario: Absorbing Abilities from Homologous Models as
        a Free Lunch", 2023, arXiv:2311.03099.
    """
    stages = preset("dare", like, Knobs(density)) if like is not None else (DropRandom(density), Mean())
    return named("dare", {"density": density, "scale": scale, "like": like}, stages, scale)


def dare_ties(
    density: float = 0.5, scale: float = 1.0, like: str | None = None, votes: str = "mass"
) -> Chain:
    """DARE, then the election and the mean of TIES.

    With `t_i = m_i tau_i / rho`, `m_i ~ Bernoulli(rho)`, and `g = sgn(sum_i w_i t_i)`:
    `lambda * sum_{i: sgn t_i = g} w_i t_i / sum_{i: sgn t_i = g} w_i`, and 0 where `g = 0`.
    Dropped entries do not count in the divisor, so that the rescaled ones are not diluted: a coordinate moves
    by up to 1 / rho of what the silos moved it.

    Args:
        density: rho, share kept on average, in (0, 1]; 1 - p in the paper.
        scale: lambda, any finite number.
        like: None, or "peft", "mergekit" or "paper" for their mathematics (presets/).
        votes: "mass", or "frequency" for `g = sgn(sum_i w_i sgn(t_i))`.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(dare_ties(density=0.5))
        dare_ties(density=0.5)

    Reference:
        Yu, Yu, Yu, Huang, Li, 2023, arXiv:2311.03099; Yadav et al., 2023, arXiv:2306.01708.
    """
    if like is not None:
        stages = preset("dare_ties", like, Knobs(density, votes=votes))
    else:
        stages = (DropRandom(density), ElectSign(votes), Mean())
    knobs = {"density": density, "scale": scale, "like": like, "votes": votes}
    return named("dare_ties", knobs, stages, scale)
