"""The finished rules, each one line of composition, and the table that makes them reachable from text.

Symbols, the same in every formula: tau_i the delta of client i (one tensor, one coordinate at a time), w_i
its raw weight, N the number of clients, n the number of coordinates, rho the density, lambda the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedmerge.errors import RuleError
from fedmerge.rules.combine import Mean, Median, Scale, Total, TrimmedMean
from fedmerge.rules.compose import Chain, Rule, chain
from fedmerge.rules.presets import (
    DropInPlainPrecision,
    ElectInPlainPrecision,
    KeepThreshold,
    SumInPlainPrecision,
    preset,
)
from fedmerge.rules.stages import DropRandom, ElectSign, EqualWeights, KeepLargest, Stage
from fedmerge.text import build, parse_call, render


def fedavg() -> Chain:
    """Federated averaging: the weighted mean.

    `sum_i w_i tau_i / sum_i w_i`. The baseline of every comparison, and the only rule to which the silos'
    numbers of examples give exactly the pooled gradient after a single step.

    Returns:
        The rule.

    Example:
        >>> print(fedavg())
        fedavg()

    Reference:
        McMahan, Moore, Ramage, Hampson, Agueera y Arcas, "Communication-Efficient Learning of Deep Networks
        from Decentralized Data", 2016, arXiv:1602.05629.
    """
    return _named("fedavg", {}, (Mean(),))


def uniform() -> Chain:
    """Uniform soup: the mean in which every client counts the same.

    `sum_i tau_i / N`, whatever the numbers of examples; a client of weight 0 does not count.

    Returns:
        The rule.

    Example:
        >>> print(uniform())
        uniform()

    Reference:
        Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
        without increasing inference time", 2022, arXiv:2203.05482.
    """
    return _named("uniform", {}, (EqualWeights(), Mean()))


def task_arithmetic(scale: float = 1.0, like: str | None = None) -> Chain:
    """Task arithmetic: the scaled sum of the deltas.

    `lambda * sum_i tau_i` with equal weights; in general `lambda * N * sum_i w_i tau_i / sum_i w_i`, so that
    numbers of examples can serve as weights. Equal to `fedavg` at `lambda = 1 / N`: what differs is the
    length of the step, so the scale is worth tuning on validation data (the paper searches it too).

    Args:
        scale: lambda, any finite number.
        like: None, or "peft" or "mergekit" for `lambda * sum_i w_i tau_i`, or "paper" for the unweighted sum.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(task_arithmetic(scale=0.3))
        task_arithmetic(scale=0.3)

    Reference:
        Ilharco et al., "Editing Models with Task Arithmetic", 2022, arXiv:2212.04089.
    """
    stages = preset("task_arithmetic", like) if like is not None else (Total(),)
    return _named("task_arithmetic", {"scale": scale, "like": like}, stages, scale)


def ties(
    density: float = 0.2, scale: float = 1.0, scope: str | None = None, like: str | None = None
) -> Chain:
    """TIES: trim, elect a sign per coordinate, average those who agree.

    With `t_i = tau_i` where `|tau_i|` is among the `max(1, int(rho n))` largest and 0 elsewhere, and
    `g = sgn(sum_i w_i t_i)`: `lambda * sum_{i: sgn t_i = g} w_i t_i / sum_{i: sgn t_i = g} w_i`, and 0 where
    `g = 0`. Keeps large changes at full length where the mean would dilute them; helps where silos differ.

    Args:
        density: rho, share of a tensor's entries kept, in (0, 1].
        scale: lambda, any finite number.
        scope: "tensor" (the default) or "adapter": what one threshold is chosen over.
        like: None, or "peft", "mergekit" or "paper" for their mathematics (presets.py).

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
        stages = preset("ties", like, density, scope)
    else:
        stages = (KeepLargest(density, scope or "tensor"), ElectSign(), Mean())
    return _named("ties", {"density": density, "scale": scale, "scope": scope, "like": like}, stages, scale)


def dare(density: float = 0.5, scale: float = 1.0, like: str | None = None) -> Chain:
    """DARE: drop entries at random, rescale the rest, average.

    `lambda * sum_i w_i m_i tau_i / rho / sum_i w_i` with independent masks `m_i ~ Bernoulli(rho)`: the
    expectation is lambda times the weighted mean.

    Args:
        density: rho, share kept on average, in (0, 1]; 1 - p in the paper.
        scale: lambda, any finite number.
        like: None, or "peft", "mergekit" or "paper" for their mathematics (presets.py): sums, not means.

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
    stages = preset("dare", like, density) if like is not None else (DropRandom(density), Mean())
    return _named("dare", {"density": density, "scale": scale, "like": like}, stages, scale)


def dare_ties(density: float = 0.5, scale: float = 1.0, like: str | None = None) -> Chain:
    """DARE, then the election and the mean of TIES.

    With `t_i = m_i tau_i / rho`, `m_i ~ Bernoulli(rho)`, and `g = sgn(sum_i w_i t_i)`:
    `lambda * sum_{i: sgn t_i = g} w_i t_i / sum_{i: sgn t_i = g} w_i`, and 0 where `g = 0`.
    Dropped entries do not count in the divisor, so that the rescaled ones are not diluted: a coordinate moves
    by up to 1 / rho of what the silos moved it.

    Args:
        density: rho, share kept on average, in (0, 1]; 1 - p in the paper.
        scale: lambda, any finite number.
        like: None, or "peft", "mergekit" or "paper" for their mathematics (presets.py).

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
    stages = (
        preset("dare_ties", like, density) if like is not None else (DropRandom(density), ElectSign(), Mean())
    )
    return _named("dare_ties", {"density": density, "scale": scale, "like": like}, stages, scale)


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
    return _named("median", {}, (Median(),))


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
    return _named("trimmed_mean", {"trim": trim}, (TrimmedMean(trim),))


def _named(name: str, knobs: Mapping[str, object], stages: tuple[Stage, ...], scale: float = 1.0) -> Chain:
    """A chain under its rule's name; a scale of 1 needs no stage, later knobs are written if set."""
    scaled = stages if scale == 1 else (*stages, Scale(scale))
    first = next(iter(knobs), None)
    unsaid = {"scale": 1.0, "scope": None, "like": None}
    return Chain(scaled, render(name, knobs, {key: value for key, value in unsaid.items() if key != first}))


RULES: dict[str, Callable[..., Rule]] = {
    "fedavg": fedavg,
    "uniform": uniform,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare": dare,
    "dare_ties": dare_ties,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "chain": chain,
}
"""Rule name -> function. A new rule joins by a line here."""

STAGES: dict[str, Callable[..., Stage]] = {
    "equal_weights": EqualWeights,
    "keep_largest": KeepLargest,
    "drop_random": DropRandom,
    "elect_sign": ElectSign,
    "mean": Mean,
    "total": Total,
    "scale": Scale,
    "keep_threshold": KeepThreshold,
    "drop_in_plain_precision": DropInPlainPrecision,
    "elect_in_plain_precision": ElectInPlainPrecision,
    "sum_in_plain_precision": SumInPlainPrecision,
}
"""Stage name -> class, for use inside `chain(...)`; a median or trimmed mean stands there by its rule's
name."""


def parse_rule(text: str) -> Rule:
    """Read a rule from text.

    Args:
        text: `ties(density=0.2)`, or `chain(keep_largest(density=0.2), elect_sign(), mean())`.

    Returns:
        The rule; `str` gives text back that reads as an equal rule.

    Raises:
        RuleError: text that can't be read, an unknown name or knob, an argument out of range.

    Example:
        >>> parse_rule("ties(density=0.2)") == ties(density=0.2)
        True
        >>> parse_rule("trimmed_mean(trin=0.2)")
        Traceback (most recent call last):
        fedmerge.errors.RuleError: trimmed_mean() has no knob 'trin'. Did you mean 'trim'? There are: trim
    """
    call = parse_call(text, "rule")
    made = build(call, {**STAGES, **RULES}, "rule")
    if not isinstance(made, Rule):
        raise RuleError(f"rule {text!r} is a single stage; put it into chain(...)")
    return made
