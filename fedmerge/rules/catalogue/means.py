"""Means and sums: the rules without a threshold."""

from __future__ import annotations

from fedmerge.rules.catalogue.named import named
from fedmerge.rules.combine import Mean, Total
from fedmerge.rules.compose import Chain
from fedmerge.rules.negation import Negate
from fedmerge.rules.presets import preset
from fedmerge.rules.stages import EqualWeights, Stage


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
    return named("fedavg", {}, (Mean(),))


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
    return named("uniform", {}, (EqualWeights(), Mean()))


def task_arithmetic(scale: float = 1.0, like: str | None = None, negate: str | tuple[str, ...] = "") -> Chain:
    """Task arithmetic: the scaled sum of the deltas.

    `lambda * sum_i tau_i` with equal weights; in general `lambda * N * sum_i w_i tau_i / sum_i w_i`, so that
    numbers of examples can serve as weights. Equal to `fedavg` at `lambda = 1 / N`: what differs is the
    length of the step, so the scale is worth tuning on validation data (the paper searches it too). Silos
    that are named in `negate` are subtracted: task negation, by which a model forgets what they taught.

    Args:
        scale: lambda, any finite number.
        like: None, or "peft" or "mergekit" for `lambda * sum_i w_i tau_i`, or "paper" for the unweighted sum.
        negate: silos whose deltas are subtracted, "silo-x, silo-y", or a tuple of names; "" for none. Each of
            them must be there.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(task_arithmetic(scale=0.3))
        task_arithmetic(scale=0.3)
        >>> print(task_arithmetic(scale=0.3, negate="silo-x"))
        task_arithmetic(scale=0.3, negate='silo-x')

    Reference:
        Ilharco et al., "Editing Models with Task Arithmetic", 2022, arXiv:2212.04089.
    """
    stages: tuple[Stage, ...] = preset("task_arithmetic", like) if like is not None else (Total(),)
    against = (Negate(negate),) if negate else ()
    knobs = {"scale": scale, "like": like, "negate": negate}
    return named("task_arithmetic", knobs, (*against, *stages), scale)
