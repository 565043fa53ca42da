"""Rules that a minority of clients can't move, whatever it sends: Krum and the geometric median.

They judge whole deltas, not coordinates, so that what they give is a mix of what clients sent. By default the
whole adapter is judged at once: an attacker is one in every tensor.
"""

from __future__ import annotations

from fedmerge.rules.compose import Chain
from fedmerge.rules.gram_robust import GeometricMedian, Krum, MultiKrum


def krum(attackers: int = 1, scope: str = "adapter") -> Chain:
    """Krum: the one client's delta that lies closest to its neighbours.

    The i of least `s_i = sum |tau_i - tau_j|^2` over the `N - f - 2` nearest other clients j; of equal scores
    the client whose name comes first. Weights do not count (weight 0 is absent): a large weight is easily
    claimed. Withstands f clients that send anything.

    Args:
        attackers: f, how many clients may send anything, from 0; it needs `N >= 2 f + 3` clients.
        scope: "adapter" or "tensor": what a delta is judged by.

    Returns:
        The rule. It refuses to merge fewer than `2 f + 3` clients.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(krum(attackers=2))
        krum(attackers=2)

    Reference:
        Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent", 2017, arXiv:1703.02757.
    """
    return _alone(Krum(attackers, scope))


def multi_krum(attackers: int = 1, keep: int | None = None, scope: str = "adapter") -> Chain:
    """Multi-Krum: the weighted mean of those clients' deltas that lie closest to their neighbours.

    `sum_{i in S} w_i tau_i / sum_{i in S} w_i`, where S are the m clients of least score, scores as in
    `krum`. Weights do not help to be chosen; the paper's mean is that of equal weights. Withstands f clients
    that send anything.

    Args:
        attackers: f, how many clients may send anything, from 0; it needs `N >= 2 f + 3` clients.
        keep: m, in [1, N - f - 2]; None: `N - f - 2`. 1 is `krum`.
        scope: "adapter" or "tensor": what a delta is judged by.

    Returns:
        The rule. It refuses to merge fewer than `2 f + 3` clients.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(multi_krum(attackers=2, keep=3))
        multi_krum(attackers=2, keep=3)

    Reference:
        Blanchard, El Mhamdi, Guerraoui, Stainer, 2017, arXiv:1703.02757.
    """
    return _alone(MultiKrum(attackers, keep, scope))


def geometric_median(iterations: int = 100, smoothing: float = 1e-6, scope: str = "adapter") -> Chain:
    """The geometric median: the point whose weighted sum of distances to all deltas is least (RFA).

    `argmin_v sum_i w_i |v - tau_i|` by the smoothed Weiszfeld algorithm: from the weighted mean, `v <- sum_i
    b_i tau_i / sum_i b_i` with `b_i = w_i / max(nu, |v - tau_i|)`. Withstands clients that hold less than
    half of the weight. nu is `smoothing` times the weighted median of the deltas' norms, so that it has the
    deltas' scale; the paper's is a constant.

    Args:
        iterations: steps, from 1; the paper stops after 3.
        smoothing: in units of the median norm, above 0.
        scope: "adapter" or "tensor": what distances are taken over.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(geometric_median())
        geometric_median()

    Reference:
        Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", 2019, arXiv:1912.13445.
    """
    return _alone(GeometricMedian(iterations, smoothing, scope))


def _alone(stage: Krum | MultiKrum | GeometricMedian) -> Chain:
    return Chain((stage,), str(stage))
