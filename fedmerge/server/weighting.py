"""What each silo counts: its number of training rows, or as much as every other; capped where wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence


def weights_of(examples: Sequence[float], weighting: str = "examples", cap: float = 0.0) -> list[float]:
    """The weights of a merge, one for each silo, in the order given; their mean is 1.

    Rules that divide by the weights don't care for the scale. Presets that do not (`like="peft"` divides by
    the count) would otherwise multiply the step by the number of rows.

    With a cap, the weights above it are lowered to the one level at which none has more than its share of the
    new total; where the cap is so low that no level does (below 1 / silos), all silos count alike.

    Args:
        examples: training rows of each silo, above 0.
        weighting: "examples" or "uniform".
        cap: the largest share of the total that one silo may have, in (0, 1]; 0 is without a cap.

    Returns:
        Weights above 0.

    Example:
        >>> weights_of([10.0, 30.0])
        [0.5, 1.5]
        >>> weights_of([10.0, 10.0, 980.0], cap=0.5)
        [0.75, 0.75, 1.5]
    """
    weights = [1.0] * len(examples) if weighting == "uniform" else [float(count) for count in examples]
    if cap > 0 and weights:
        level = _level(sorted(weights, reverse=True), cap)
        weights = [min(weight, level) for weight in weights]
    total = math.fsum(weights)
    return [weight * len(weights) / total for weight in weights]


def _level(ordered: Sequence[float], cap: float) -> float:
    """The weight to which the largest of `ordered` (falling) are lowered.

    With the k largest at level x, and the rest summing to s, x = cap * (k x + s).
    """
    for capped in range(len(ordered)):
        if capped * cap >= 1:
            break
        level = cap * math.fsum(ordered[capped:]) / (1 - capped * cap)
        if ordered[capped] <= level * (1 + 1e-12):
            return level if capped else ordered[0]
    return ordered[-1]
