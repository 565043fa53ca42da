"""What several seeds say together: a mean, its spread, and whether a difference is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_CONFIDENCE = 0.95
_STEPS = 2000


@dataclass(frozen=True)
class Interval:
    """A mean difference over seeds and its 95 % interval; without ends where there is one seed."""

    mean: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """Whether the difference is above 0 ("more"), below ("less"), or neither ("tie").

        One seed decides by what is printed, three digits.
        """
        if self.low is None or self.high is None:
            return "tie" if round(self.mean, 3) == 0 else "more" if self.mean > 0 else "less"
        return "more" if self.low > 0 else "less" if self.high < 0 else "tie"


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what there is; None where there is nothing."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def spread(values: Sequence[float | None]) -> float | None:
    """The standard deviation over seeds (n - 1 in the divisor); None below two values.

    Example:
        >>> spread([1.0, 3.0]), spread([1.0])
        (1.4142135623730951, None)
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    middle = math.fsum(known) / len(known)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in known) / (len(known) - 1))


def interval(differences: Sequence[float]) -> Interval:
    """The mean of paired differences and its 95 % interval by Student's t.

    Example:
        >>> found = interval([0.1, 0.2, 0.3])
        >>> round(found.low, 3), round(found.high, 3), found.verdict
        (-0.048, 0.448, 'tie')
    """
    middle, deviation = math.fsum(differences) / len(differences), spread(differences)
    if deviation is None:
        return Interval(middle, None, None)
    half = student(len(differences) - 1) * deviation / math.sqrt(len(differences))
    return Interval(middle, middle - half, middle + half)


def student(freedom: int) -> float:
    """The quantile of Student's t that leaves 2.5 % above it, by bisection of the integral of the density.

    Example:
        >>> round(student(2), 3), round(student(30), 3)
        (4.303, 2.042)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < _CONFIDENCE else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(f) tan(angle)); the density in the angle is cos^(f-1), by Simpson's rule."""
    width = angle / _STEPS
    values = [math.cos(step * width) ** (freedom - 1) for step in range(_STEPS + 1)]
    total = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 2 * scale * total * width / 3
