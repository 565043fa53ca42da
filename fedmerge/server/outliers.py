"""What is done with a delta that is far longer than the round's others, or that points against them.

One silo whose training blew up, or that wants to, sends a delta a million times too long: finite,
well-formed, and the mean is its alone. Lengths are compared with the median of the round's. A delta of usual
length can still undo what the others learned: directions are compared with the mean of the others.

Whoever is refused is refused one by one, the worst first, until nobody is left who would be: the same as if
they had never been there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedmerge.errors import ConfigError
from fedmerge.server.directions import Pairs, cosines
from fedmerge.text import build, parse_call

FEWEST = 3
"""Silos below which there is no telling who is the odd one."""

ANY_DIRECTION = -1.0
"""The bound on cosines under which no delta lies."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a delta that is not left as it is.

    Args:
        factor: what it is multiplied by; 0 refuses its reply.
        reason: why.
    """

    factor: float
    reason: str


class OutlierPolicy(Protocol):
    """Decides from the deltas' lengths and inner products, by silo, what becomes of each."""

    def judge(self, norms: Mapping[str, float], pairs: Callable[[], Pairs] = dict) -> dict[str, Verdict]:
        """A verdict for each silo that is not left as it is.

        Args:
            norms: length of each delta.
            pairs: gives the cosine of each pair of deltas; called only where directions are compared.
        """
        ...


@dataclass(frozen=True)
class Finite:
    """Leaves all as they are; NaN and Inf were refused before."""

    def judge(self, norms: Mapping[str, float], pairs: Callable[[], Pairs] = dict) -> dict[str, Verdict]:
        """None."""
        return {}


def _check(times: float, cosine: float) -> None:
    if not isinstance(times, int | float) or not math.isfinite(times) or times <= 1:
        raise ConfigError(f"strategy.guard: times is {times!r}, expected a number above 1")
    if not isinstance(cosine, int | float) or isinstance(cosine, bool) or not -1 <= cosine < 1:
        raise ConfigError(f"strategy.guard: cosine is {cosine!r}, expected a number from -1 and below 1")


@dataclass(frozen=True)
class Refuse:
    """Refuses deltas longer than `times` the median, and those that point away from the mean of the others.

    Args:
        times: how many medians long a delta may be.
        cosine: the least that its cosine to the mean of the others may be; -1 lets every direction be.

    Example:
        >>> Refuse(times=10).judge({"a": 1.0, "b": 1.2, "c": 1e6})["c"].reason
        "its delta is far longer than the others': 8.33e+05 medians, the bound is 10"
    """

    times: float = 10.0
    cosine: float = ANY_DIRECTION

    def __post_init__(self) -> None:
        _check(self.times, self.cosine)

    def judge(self, norms: Mapping[str, float], pairs: Callable[[], Pairs] = dict) -> dict[str, Verdict]:
        """Factor 0 for each silo that is refused."""
        left, refused = dict(norms), {}
        while found := _too_long(left, self.times) or _astray(left, self.cosine, pairs):
            silo, reason = found
            refused[silo] = Verdict(0.0, reason)
            del left[silo]
        return refused


@dataclass(frozen=True)
class Clip:
    """Shortens deltas longer than `times` the median to that length.

    A direction can't be shortened away: a delta that, after that, points away from the mean of the others is
    refused, as `Refuse` does.

    Args:
        times: how many medians long a delta may be.
        cosine: the least that its cosine to the mean of the others may be; -1 lets every direction be.

    Example:
        >>> Clip(times=10).judge({"a": 1.0, "b": 1.0, "c": 1000.0})
        {'c': Verdict(factor=0.01, reason='shortened to 0.01 of its length')}
    """

    times: float = 10.0
    cosine: float = ANY_DIRECTION

    def __post_init__(self) -> None:
        _check(self.times, self.cosine)

    def judge(self, norms: Mapping[str, float], pairs: Callable[[], Pairs] = dict) -> dict[str, Verdict]:
        """The factor below 1 for each silo that is shortened, 0 for each that is refused."""
        left, refused = dict(norms), {}
        while found := _astray(self._shortened(left), self.cosine, pairs):
            silo, reason = found
            refused[silo] = Verdict(0.0, reason)
            del left[silo]
        shortened = {
            silo: Verdict(factor, f"shortened to {factor:.3g} of its length")
            for silo, factor in self._factors(left).items()
            if factor < 1
        }
        return refused | shortened

    def _shortened(self, norms: Mapping[str, float]) -> dict[str, float]:
        return {silo: norms[silo] * factor for silo, factor in self._factors(norms).items()}

    def _factors(self, norms: Mapping[str, float]) -> dict[str, float]:
        """What each delta is multiplied by."""
        most = self.times * statistics.median_low(norms.values()) if len(norms) >= FEWEST else 0.0
        return {silo: most / norms[silo] if norms[silo] > most > 0 else 1.0 for silo in sorted(norms)}


def _too_long(norms: Mapping[str, float], times: float) -> tuple[str, str] | None:
    """The longest delta, if it is too long; where most learned nothing, none stands out."""
    if len(norms) < FEWEST:
        return None
    longest = max(norms, key=lambda silo: (norms[silo], silo))
    middle = statistics.median_low(norms.values())
    if middle == 0 or norms[longest] <= times * middle:
        return None
    much = norms[longest] / middle
    return longest, f"its delta is far longer than the others': {much:.3g} medians, the bound is {times:g}"


def _astray(norms: Mapping[str, float], bound: float, pairs: Callable[[], Pairs]) -> tuple[str, str] | None:
    """The delta that points furthest away from the mean of the others, if it does so too much."""
    if len(norms) < FEWEST or bound <= ANY_DIRECTION:
        return None
    found = cosines(norms, pairs())
    worst = min(found, key=lambda silo: (found[silo], silo), default=None)
    if worst is None or found[worst] >= bound:
        return None
    return worst, f"its delta points away from the others': cosine {found[worst]:.3f}, the bound is {bound:g}"


POLICIES = {"finite": Finite, "refuse": Refuse, "clip": Clip}


def parse_guard(text: str) -> OutlierPolicy:
    """Read "finite()", "refuse(times=10, cosine=-0.5)" or "clip(times=10, cosine=-0.5)".

    Raises:
        RuleError: text that is no call.
        ConfigError: an unknown name or knob, or a knob out of range.
    """
    policy: OutlierPolicy = build(parse_call(text, "strategy.guard"), POLICIES, "strategy.guard", ConfigError)
    return policy
