"""The mean of deltas that are kept from being too long."""

from __future__ import annotations

from fedmerge.rules.combine import Mean
from fedmerge.rules.compose import Chain
from fedmerge.rules.gram_robust import ClipNorm
from fedmerge.rules.stages import spell


def norm_clipping(limit: float | None = None, scope: str = "adapter") -> Chain:
    """The weighted mean, after every delta that is longer than a limit is shortened to it.

    `sum_i w_i min(1, L / |tau_i|) tau_i / sum_i w_i`. No client moves the result by more than its share of
    the weight times L. The stage `clip_norm` does the same before other stages.

    Args:
        limit: L, the longest norm left as it is, above 0; None: the weighted median of the clients' norms,
            which follows the run, and which less than half of the weight can't move beyond honest norms.
        scope: "adapter" or "tensor": what a norm is taken over.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(norm_clipping(limit=0.5))
        norm_clipping(limit=0.5)

    Reference:
        Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963
        (a fixed limit).
    """
    clip = ClipNorm(limit, scope)
    return Chain((clip, Mean()), spell(clip).replace("clip_norm", "norm_clipping"))
