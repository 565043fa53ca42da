"""The run-config table "strategy": how replies are gathered and merged."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedmerge.errors import ConfigError, nearest

WEIGHTINGS = ("examples", "uniform")
SHADOW_SCORINGS = ("final", "server", "silos")


def _number(key: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse `value` outside of [low, high], or (low, high] with `open_low`."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    inside = known and math.isfinite(value) and (low < value if open_low else low <= value) and value <= high  # type: ignore[operator, arg-type]
    if not inside:
        start = "above" if open_low else "at least"
        end = "" if math.isinf(high) else f" and at most {high:g}"
        raise ConfigError(f"strategy.{key} is {value!r}, expected a number {start} {low:g}{end}")


@dataclass(frozen=True)
class StrategySettings:
    """How replies are gathered and merged; every field is a key "strategy.<name>" of the run-config.

    Rule, space, optimizer and shadow texts are parsed by `fedmerge.server.plan.Plan`.

    Args:
        rule: how deltas are merged, "ties(density=0.2)".
        space: where deltas are compared, "factors()" or "product()".
        weighting: "examples" (a silo counts as much as it has training rows) or "uniform".
        weight_cap: the largest share of the total that one silo may have, in (0, 1]; 0 is without a cap.
        server_optimizer: what is done with the merged step, "momentum(rate=1.0, beta=0.9)".
        shadows: further merges of a round's replies, to be compared: "rule @ space; rule @ space".
        fraction: share of the silos that a round asks, in (0, 1]; at least one silo.
        quorum: share of the asked silos whose replies a round needs, in (0, 1].
        deadline_seconds: how long a round waits for replies.
        wait_seconds: how long a round waits for nodes to connect.
        guard: what is done with outliers: "finite()" nothing, "refuse(times=10)" refuses a delta longer than
            so many times the median of the round's, "clip(times=10)" shortens it to that; with
            "refuse(times=10, cosine=-0.5)", or clip likewise, one is refused whose cosine to the mean of the
            others is below the bound. NaN and Inf are refused always.
        gate: what sends a broadcast back: "silos(share=0.5, drop=0.02)" the scores of the silos that received
            it, "off()" nothing.
        shadow_scoring: where shadows are scored: "final" after the last round, at all silos; in every round
            at the "server", on rows of its own, or at the round's "silos".

    Raises:
        ConfigError: a value is out of range; the message names the key.

    Example:
        >>> StrategySettings(fraction=0.5).fraction
        0.5
        >>> StrategySettings(quorum=2)
        Traceback (most recent call last):
        fedmerge.errors.ConfigError: strategy.quorum is 2, expected a number above 0 and at most 1
    """

    rule: str = "fedavg()"
    space: str = "factors()"
    weighting: str = "examples"
    weight_cap: float = 0.0
    server_optimizer: str = "none()"
    shadows: str = ""
    fraction: float = 1.0
    quorum: float = 1.0
    deadline_seconds: float = 3600.0
    wait_seconds: float = 300.0
    guard: str = "finite()"
    gate: str = "silos(share=0.5, drop=0.02)"
    shadow_scoring: str = "final"

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("rule", "space", "server_optimizer", "shadows", "guard", "gate"):
            if not isinstance(getattr(self, name), str):
                key = name.replace("_", "-")
                raise ConfigError(f"strategy.{key} is {getattr(self, name)!r}, expected text")
        if self.weighting not in WEIGHTINGS:
            raise ConfigError(
                f"strategy.weighting is {self.weighting!r}: {nearest(str(self.weighting), WEIGHTINGS)}"
            )
        if self.shadow_scoring not in SHADOW_SCORINGS:
            expected = nearest(str(self.shadow_scoring), SHADOW_SCORINGS)
            raise ConfigError(f"strategy.shadow-scoring is {self.shadow_scoring!r}: {expected}")
        _number("weight-cap", self.weight_cap, 0, 1)
        _number("fraction", self.fraction, 0, 1, open_low=True)
        _number("quorum", self.quorum, 0, 1, open_low=True)
        _number("deadline-seconds", self.deadline_seconds, 0, math.inf, open_low=True)
        _number("wait-seconds", self.wait_seconds, 0, math.inf)
