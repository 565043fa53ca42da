"""What is done with a delta that is far longer than the round's others.

One silo whose training blew up, or that wants to, sends a delta a million times too long: finite,
well-formed, and the mean is its alone. Lengths are compared with the median of the round's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fedmerge.errors import ConfigError
from fedmerge.text import build, parse_call

FEWEST = 3
"""Silos below which there is no telling who is the odd one."""


class OutlierPolicy(Protocol):
    """Decides from the deltas' lengths, by silo name, what becomes of each."""

    def factors(self, norms: Mapping[str, float]) -> dict[str, float]:
        """The factor for each silo that is not left as it is; 0 refuses its reply."""
        ...


@dataclass(frozen=True)
class Finite:
    """Leaves all as they are; NaN and Inf were refused before."""

    def factors(self, norms: Mapping[str, float]) -> dict[str, float]:
        """None."""
        return {}


def _check_times(times: float) -> None:
    if not isinstance(times, int | float) or not math.isfinite(times) or times <= 1:
        raise ConfigError(f"strategy.guard: times is {times!r}, expected a number above 1")


@dataclass(frozen=True)
class Refuse:
    """Refuses deltas longer than `times` the median, the longest first, until none is left that is.

    Taking them one by one makes the result the same as that of a run without the refused silos.

    Example:
        >>> Refuse(times=10).factors({"a": 1.0, "b": 1.2, "c": 1e6})
        {'c': 0.0}
    """

    times: float = 10.0

    def __post_init__(self) -> None:
        _check_times(self.times)

    def factors(self, norms: Mapping[str, float]) -> dict[str, float]:
        """0 for each silo that is refused."""
        left, refused = dict(norms), {}
        while len(left) >= FEWEST:
            longest = max(left, key=lambda silo: (left[silo], silo))
            middle = statistics.median_low(left.values())
            if (
                middle == 0 or left[longest] <= self.times * middle
            ):  # where most learned nothing, none stands out
                break
            refused[longest] = 0.0
            del left[longest]
        return refused


@dataclass(frozen=True)
class Clip:
    """Shortens deltas longer than `times` the median to that length.

    Example:
        >>> Clip(times=10).factors({"a": 1.0, "b": 1.0, "c": 1000.0})
        {'c': 0.01}
    """

    times: float = 10.0

    def __post_init__(self) -> None:
        _check_times(self.times)

    def factors(self, norms: Mapping[str, float]) -> dict[str, float]:
        """The factor below 1 for each silo that is shortened."""
        if len(norms) < FEWEST:
            return {}
        most = self.times * statistics.median_low(norms.values())
        return {silo: most / norm for silo, norm in sorted(norms.items()) if norm > most > 0}


POLICIES = {"finite": Finite, "refuse": Refuse, "clip": Clip}


def parse_guard(text: str) -> OutlierPolicy:
    """Read "finite()", "refuse(times=10)" or "clip(times=10)".

    Raises:
        RuleError: text that is no call.
        ConfigError: an unknown name or knob, or a knob out of range.
    """
    policy: OutlierPolicy = build(parse_call(text, "strategy.guard"), POLICIES, "strategy.guard", ConfigError)
    return policy
