"""Rules that need statistics of the silos: what each measured on its own rows after training."""

from __future__ import annotations

from fedmerge.rules.combine import Mean, Scale
from fedmerge.rules.compose import Chain
from fedmerge.rules.statistics import FisherWeights, RegMean
from fedmerge.text import render


def fisher(scale: float = 1.0, floor: float = 1e-6, normalize: str = "none") -> Chain:
    """Fisher merging: the mean in which a coordinate counts by how much the silo's loss depends on it.

    `lambda * sum_i F_i w_i tau_i / sum_i F_i w_i` per coordinate, with `F_i` silo i's diagonal Fisher, at
    least `floor`. It is the mode of the product of Gaussians around what each silo trained, with `F_i` as
    their precision. In a round each silo sends its `F_i` along with its delta, 4 bytes a value; offline they
    are `merge(..., statistics=[{"fisher": {tensor name: F_i}}, ...])`. In `factors()` only: a value for
    each coordinate of A and of B says nothing of the coordinates of their product.

    The authors' code divides each Fisher by its length over the whole model (`normalize="adapter"`), and
    lays the floor under the first model alone, its target; here there is no first silo, and the floor is
    under all. A silo's Fisher is as good as a weight, and no `weight-cap` bounds it; where silos are not
    trusted, normalize, so that each has the same length to spend.

    Args:
        scale: lambda, any finite number.
        floor: least Fisher, from 0. With one above all Fishers this is `fedavg`.
        normalize: "none", or what a Fisher is divided by its Euclidean length over: "tensor" or "adapter".

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(fisher())
        fisher()
        >>> print(fisher(floor=1e-8, normalize="adapter"))
        fisher(floor=1e-08, normalize='adapter')

    Reference:
        Matena, Raffel, "Merging Models with Fisher-Weighted Averaging", 2021, arXiv:2111.09832.
    """
    stages = (FisherWeights(floor, normalize), Mean(), *((Scale(scale),) if scale != 1 else ()))
    knobs = {"scale": scale, "floor": floor, "normalize": normalize}
    return Chain(stages, render("fisher", knobs, {"scale": 1.0, "floor": 1e-6, "normalize": "none"}))


def regmean(off_diagonal: float = 0.95) -> RegMean:
    """RegMean on LoRA factors: the B that answers each silo's inputs as that silo's own B does.

    `B = (sum_i w_i B_i G_i) (sum_i w_i G_i)^+` with `G_i` the `(rank, rank)` Gram matrix of what B is fed:
    the mean of `(A_i x) (A_i x)^T` over silo i's tokens x. The same holds of the deltas of B, since all
    start from one B. A, and every tensor that is no LoRA factor, is the weighted mean. The Gram matrix of x
    itself, which A would want, has the layer's width squared and never travels. In `factors()` only.

    What is exact: where A is frozen, or the same at all silos, and `off_diagonal` is 1, B minimises
    `sum_i w_i E |B A x - B_i A x|^2` over all silos' inputs; if each B_i is the least-squares fit of its
    silo's targets, B is the fit of all targets together. Where A trains too, `G_i` belongs to the silo's own
    A_i and not to the merged one, and B is an approximation. `E` is over the rows that a silo measures
    (`train.statistics-rows`), so that with weights by examples all silos' rows count alike.

    Args:
        off_diagonal: what the off-diagonals of every `G_i` are multiplied by, in (0, 1]: 0.95 of the paper's
            grid steadies the inverse; 1 is least squares.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(regmean(), regmean(off_diagonal=1.0))
        regmean() regmean(off_diagonal=1.0)

    Reference:
        Jin, Ren, Preotiuc-Pietro, Cheng, "Dataless Knowledge Fusion by Merging Weights of Language Models",
        2022, arXiv:2212.09849 (RegMean).
        Salami et al., "Closed-form merging of parameter-efficient modules for Federated Continual Learning",
        2024, arXiv:2410.17961 (LoRM: one factor at a time).
    """
    return RegMean(off_diagonal)
