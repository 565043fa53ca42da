"""Checks of a rule's arguments, made when the rule is made: before a round is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedmerge.errors import RuleError


def require_share(owner: str, knob: str, value: object) -> None:
    """Raise unless `value` is a share in (0, 1].

    Example:
        >>> require_share("ties", "density", 20)
        Traceback (most recent call last):
        fedmerge.errors.RuleError: ties: density=20 is out of range: a share in (0, 1], never percent
    """
    _require_number(owner, knob, value)
    if not 0 < value <= 1:  # type: ignore[operator]
        raise RuleError(f"{owner}: {knob}={value!r} is out of range: a share in (0, 1], never percent")


def require_between(owner: str, knob: str, value: object, low: float, high: float) -> None:
    """Raise unless `low <= value < high`."""
    _require_number(owner, knob, value)
    if not low <= value < high:  # type: ignore[operator]
        raise RuleError(f"{owner}: {knob}={value!r} is out of range: it lies in [{low}, {high})")


def require_finite(owner: str, knob: str, value: object) -> None:
    """Raise unless `value` is a finite number."""
    _require_number(owner, knob, value)
    if not math.isfinite(value):  # type: ignore[arg-type]
        raise RuleError(f"{owner}: {knob}={value!r} is out of range: a finite number")


def require_whole(owner: str, knob: str, value: object, low: int) -> None:
    """Raise unless `value` is a whole number from `low`.

    Example:
        >>> require_whole("consensus", "clients", 2.0, 1)
        Traceback (most recent call last):
        fedmerge.errors.RuleError: consensus: clients=2.0 is out of range: a whole number from 1
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise RuleError(f"{owner}: {knob}={value!r} is out of range: a whole number from {low}")


def require_choice(owner: str, knob: str, value: object, choices: Sequence[object]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise RuleError(f"{owner}: {knob}={value!r} is not known; it is one of {allowed}")


def _require_number(owner: str, knob: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RuleError(f"{owner}: {knob}={value!r} is no number")
