"""Rules on directions and angles between deltas: along arcs, means on the sphere, Model Stock.

All of them need the inner products of the deltas and nothing else: on LoRA products they are exact and form
no matrix of a layer's size.
"""

from __future__ import annotations

from fedmerge.rules.compose import Chain
from fedmerge.rules.gram_sphere import Karcher, ModelStock, Multislerp, Nuslerp, Slerp


def slerp(t: float | None = None, scope: str = "tensor") -> Chain:
    """Spherical interpolation between two clients' deltas.

    With the angle theta between tau_1 and tau_2: `sin((1 - t) theta) / sin(theta) tau_1 + sin(t theta) /
    sin(theta) tau_2`; linear, `(1 - t) tau_1 + t tau_2`, where `|cos(theta)| > 0.9995`. A delta of zeros
    stands at a right angle to all. mergekit has the same formula on whole weights, where theta is nearly 0.

    Args:
        t: how far from the client whose name comes first towards the other, in [0, 1]; None: `w_2 / (w_1 +
            w_2)`. A single client is then returned as it came.
        scope: "tensor" or "adapter": what one angle is taken over.

    Returns:
        The rule. It takes two clients, and refuses to merge any other number.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(slerp(), slerp(t=0.3))
        slerp() slerp(t=0.3)

    Reference:
        Shoemake, "Animating Rotation with Quaternion Curves", 1985, SIGGRAPH.
    """
    return _alone(Slerp(t, scope))


def nuslerp(scope: str = "tensor") -> Chain:
    """Spherical interpolation between two clients' deltas by their weights, linear only where it must be.

    `slerp` with `t = w_2 / (w_1 + w_2)`, and linear only where `|sin(theta)| < 1e-6`. This is mergekit's
    nuslerp with a base model and flattened tensors, but for its 1e-8, which rounding keeps exact opposites
    from; its row-wise form is no rule of inner products.

    Args:
        scope: "tensor" or "adapter": what one angle is taken over.

    Returns:
        The rule. It takes two clients (or one, returned as it came), and refuses to merge more.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(nuslerp())
        nuslerp()

    Reference:
        Goddard et al., "Arcee's MergeKit: A Toolkit for Merging Large Language Models", 2024,
        arXiv:2403.13257 (the program; nuslerp came later).
    """
    return _alone(Nuslerp(scope))


def multislerp(scope: str = "tensor") -> Chain:
    """The mean direction of any number of deltas, as long as they are on average.

    With `u_i = tau_i / |tau_i|`, `p_i = w_i / sum w` and `m = sum_i p_i u_i`: `sum_i p_i |tau_i| * m / |m|`.
    mergekit's multislerp with a base model goes on to a tangent space at m and back; with weights of sum 1
    the step it takes there is 0. Where the directions cancel out (m shorter than 1e-7, counting deltas that
    are not zero) it is the weighted mean.

    Args:
        scope: "tensor" or "adapter": what one direction is taken over.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(multislerp())
        multislerp()

    Reference:
        Goddard, "Multi-SLERP", 2025, the method of that name in mergekit.
    """
    return _alone(Multislerp(scope))


def karcher(iterations: int = 100, scope: str = "tensor") -> Chain:
    """The Riemannian mean of the directions, as long as the deltas are on average.

    With `u_i = tau_i / |tau_i|` and `p_i = w_i / sum w` (over deltas that are not zero): the unit vector u
    with `sum_i p_i log_u(u_i) = 0`, where `log_u(v) = theta / sin(theta) (v - cos(theta) u)`, times the mean
    length `sum_i w_i |tau_i| / sum_i w_i` over all clients. Found by `u <- exp_u(sum_i p_i log_u(u_i))` from
    the normalised mean; a delta opposite to u has no pull. Where the directions cancel out (the mean unit
    vector is shorter than 1e-7) it is the weighted mean. mergekit's karcher runs 10 steps on whole weights,
    all alike.

    Args:
        iterations: most steps, from 1; it ends before where a step is shorter than 1e-13. Deltas within a
            quarter of a turn of each other have one mean, and need some 30.
        scope: "tensor" or "adapter": what one direction is taken over.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(karcher())
        karcher()

    Reference:
        Karcher, "Riemannian Center of Mass and Mollifier Smoothing", 1977, Communications on Pure and Applied
        Mathematics 30.
    """
    return _alone(Karcher(iterations, scope))


def model_stock(scope: str = "tensor") -> Chain:
    """Model Stock: the mean of the deltas, shrunk by how little they agree.

    `t sum_i w_i tau_i / sum_i w_i` with `t = N c / (1 + (N - 1) c)`, where c is the mean cosine over all
    pairs of clients. Weights enter the mean alone: the paper has equal ones. Where `c <= 0` nothing is
    shared and `t = 0`; the formula would turn the mean around, without bound towards `c = -1 / (N - 1)`
    (mergekit does so, except at that point). A delta of zeros has cosine 0 with all. A single client is
    returned as it came.

    Args:
        scope: "tensor" (the paper's, layer by layer) or "adapter": what one ratio t is taken over.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(model_stock())
        model_stock()

    Reference:
        Jang, Yun, Han, "Model Stock: All we need is just a few fine-tuned models", 2024, arXiv:2403.19522.
    """
    return _alone(ModelStock(scope))


def _alone(stage: Slerp | Nuslerp | Multislerp | Karcher | ModelStock) -> Chain:
    return Chain((stage,), str(stage))
