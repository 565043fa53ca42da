"""The tables that make rules and stages reachable from text."""

from __future__ import annotations

from collections.abc import Callable

from fedmerge.errors import RuleError
from fedmerge.rules.catalogue.means import fedavg, task_arithmetic, uniform
from fedmerge.rules.catalogue.robust import median, trimmed_mean
from fedmerge.rules.catalogue.ties import dare, dare_ties, ties
from fedmerge.rules.combine import Mean, Scale, Total
from fedmerge.rules.compose import Rule, chain
from fedmerge.rules.presets import (
    DropInPlainPrecision,
    ElectInPlainPrecision,
    KeepThreshold,
    SumInPlainPrecision,
)
from fedmerge.rules.stages import DropRandom, ElectSign, EqualWeights, KeepLargest, Stage
from fedmerge.text import build, parse_call

RULES: dict[str, Callable[..., Rule]] = {
    "fedavg": fedavg,
    "uniform": uniform,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare": dare,
    "dare_ties": dare_ties,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "chain": chain,
}
"""Rule name -> function. A new rule joins by a line here."""

STAGES: dict[str, Callable[..., Stage]] = {
    "equal_weights": EqualWeights,
    "keep_largest": KeepLargest,
    "drop_random": DropRandom,
    "elect_sign": ElectSign,
    "mean": Mean,
    "total": Total,
    "scale": Scale,
    "keep_threshold": KeepThreshold,
    "drop_in_plain_precision": DropInPlainPrecision,
    "elect_in_plain_precision": ElectInPlainPrecision,
    "sum_in_plain_precision": SumInPlainPrecision,
}
"""Stage name -> class, for use inside `chain(...)`; a median or trimmed mean stands there by its rule's
name."""


def parse_rule(text: str) -> Rule:
    """Read a rule from text.

    Args:
        text: `ties(density=0.2)`, or `chain(keep_largest(density=0.2), elect_sign(), mean())`.

    Returns:
        The rule; `str` gives text back that reads as an equal rule.

    Raises:
        RuleError: text that can't be read, an unknown name or knob, an argument out of range.

    Example:
        >>> parse_rule("ties(density=0.2)") == ties(density=0.2)
        True
        >>> parse_rule("trimmed_mean(trin=0.2)")
        Traceback (most recent call last):
        fedmerge.errors.RuleError: trimmed_mean() has no knob 'trin'. Did you mean 'trim'? There are: trim
    """
    call = parse_call(text, "rule")
    made = build(call, {**STAGES, **RULES}, "rule")
    if not isinstance(made, Rule):
        raise RuleError(f"rule {text!r} is a single stage; put it into chain(...)")
    return made
