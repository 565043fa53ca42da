"""Whether a merge may stay: judged by the silos' own scores of what it made.

The gate is optimistic. A round is merged and broadcast at once; the silos score the broadcast before they
train from it, and where those scores say that the merge hurt, the replies of that round are discarded and the
last good broadcast returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fedmerge.errors import ConfigError
from fedmerge.server.scores import Summary
from fedmerge.text import build, parse_call

_MOST_NAMED = 5


class Gate(Protocol):
    """Decides from the silos' scores of the last good broadcast and of the one after it."""

    def judge(self, before: Summary | None, after: Summary | None) -> str:
        """Why the newer one is rejected, in words that follow "it"; "" where it may stay."""
        ...


@dataclass(frozen=True)
class Open:
    """`off()`: everything may stay."""

    def judge(self, before: Summary | None, after: Summary | None) -> str:
        """Nothing."""
        return ""


@dataclass(frozen=True)
class Silos:
    """`silos(share=0.5, drop=0.02)`: rejects what lowered the score of more than a share of the silos.

    A silo's reference r is its score of the last good broadcast. Its score s is lowered where it is worse
    than r by more than drop times |r|: `r - s > drop * |r|` where higher is better (accuracy),
    `s - r > drop * |r|` where lower is better (loss, bits per byte). Where r is 0 any worsening counts: a
    share of nothing is nothing. A score that is not finite counts as lowered. A reference that is not finite
    says nothing, and its silo is left out, as is every silo that did not score both.

    Args:
        share: of the compared silos, in [0, 1); exactly so many may be lowered.
        drop: the least relative worsening that counts, at least 0.

    Raises:
        ConfigError: a knob out of range.

    Example:
        >>> before = Summary("accuracy", {"a": 0.8, "b": 0.5}, 0.65, 0.65, 0.5)
        >>> after = Summary("accuracy", {"a": 0.6, "b": 0.4}, 0.5, 0.5, 0.4)
        >>> Silos().judge(before, after)
        'lowered accuracy by more than 2 % at 2 of 2 silos (a 0.800 to 0.600, b 0.500 to 0.400)'
    """

    share: float = 0.5
    drop: float = 0.02

    def __post_init__(self) -> None:
        for name, most in (("share", 1.0), ("drop", math.inf)):
            value = getattr(self, name)
            known = isinstance(value, int | float) and not isinstance(value, bool)
            if not known or not 0 <= value < most:
                end = " and below 1" if name == "share" else ""
                raise ConfigError(f"strategy.gate: {name} is {value!r}, expected a number at least 0{end}")

    def judge(self, before: Summary | None, after: Summary | None) -> str:
        """Compare silo by silo."""
        if before is None or after is None:
            return ""
        sign = 1.0 if after.higher_is_better else -1.0
        compared = {
            silo: (reference, after.silos[silo])
            for silo, reference in before.silos.items()
            if silo in after.silos and math.isfinite(reference)
        }
        lowered = [
            silo
            for silo, (reference, score) in compared.items()
            if not math.isfinite(score) or sign * (reference - score) > self.drop * abs(reference)
        ]
        if len(lowered) <= self.share * len(compared) + 1e-9:  # a third of three silos is one of them
            return ""
        verb = "lowered" if after.higher_is_better else "raised"
        return (
            f"{verb} {after.metric} by more than {100 * self.drop:g} % at {len(lowered)} of {len(compared)} "
            f"silos ({_named(lowered, compared)})"
        )


def _named(silos: list[str], compared: Mapping[str, tuple[float, float]]) -> str:
    said = [f"{silo} {compared[silo][0]:.3f} to {compared[silo][1]:.3f}" for silo in silos[:_MOST_NAMED]]
    more = len(silos) - _MOST_NAMED
    return ", ".join(said) + (f" and {more} more" if more > 0 else "")


GATES = {"off": Open, "silos": Silos}


def parse_gate(text: str) -> Gate:
    """Read "silos(share=0.5, drop=0.02)" or "off()".

    Raises:
        RuleError: text that is no call.
        ConfigError: an unknown name or knob, or a knob out of range.
    """
    gate: Gate = build(parse_call(text, "strategy.gate"), GATES, "strategy.gate", ConfigError)
    return gate
