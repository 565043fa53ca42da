"""Scores of one candidate over the silos: which figure is compared; its mean, pooled mean and worst silo."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

HIGHER_IS_BETTER = {"accuracy": True, "bits_per_byte": False, "loss": False}
"""The figures that silos report, the one to compare first; others count as higher is better."""


@dataclass(frozen=True)
class Summary:
    """One figure of one candidate on one split.

    Args:
        metric: name of the figure.
        silos: its value at each silo, sorted by name; silos without rows of the split are left out.
        mean: over silos, each counting alike.
        pooled: over rows, each silo counting as much as it has.
        worst: of the silos.
    """

    metric: str
    silos: Mapping[str, float]
    mean: float
    pooled: float
    worst: float

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the figure is better."""
        return HIGHER_IS_BETTER.get(self.metric, True)

    def better_than(self, other: Summary | None) -> bool:
        """Whether the mean over silos is better; NaN is better than nothing, and worse than any number."""
        if other is None or math.isnan(other.mean):
            return not math.isnan(self.mean) or other is None
        return self.mean > other.mean if self.higher_is_better else self.mean < other.mean


def metric_of(metrics: Iterable[str], candidate: str, split: str) -> str | None:
    """The figure to compare, of all silos' keys "<candidate>/<split>/<name>"; None without scores.

    The one that most silos report, so that no single silo can choose it; of equally many the first of
    `HIGHER_IS_BETTER`.

    Example:
        >>> metric_of(["received/validation/loss", "received/validation/accuracy"], "received", "validation")
        'accuracy'
    """
    prefix = f"{candidate}/{split}/"
    votes = Counter(key.removeprefix(prefix) for key in metrics if key.startswith(prefix))
    return max((name for name in HIGHER_IS_BETTER if votes[name]), key=lambda name: votes[name], default=None)


def summarize(
    replies: Mapping[str, Mapping[str, float]], candidate: str, split: str, metric: str | None = None
) -> Summary | None:
    """Sum up what the silos report of one candidate on one split.

    Args:
        replies: metrics by silo, with keys "<candidate>/<split>/<name>".
        candidate: an adapter's name; "received" in train replies.
        split: "validation" or "test".
        metric: the figure; None takes the one that all silos' metrics suggest.

    Returns:
        The summary; None where no silo has rows of that split.

    Example:
        >>> replies = {"a": {"received/test/loss": 1.0, "received/test/count": 30},
        ...            "b": {"received/test/loss": 3.0, "received/test/count": 10}}
        >>> summary = summarize(replies, "received", "test")
        >>> summary.mean, summary.pooled, summary.worst
        (2.0, 1.5, 3.0)
    """
    metric = metric or metric_of([key for metrics in replies.values() for key in metrics], candidate, split)
    key, count_key = f"{candidate}/{split}/{metric}", f"{candidate}/{split}/count"
    silos = {name: float(replies[name][key]) for name in sorted(replies) if key in replies[name]}
    silos = {name: value for name, value in silos.items() if replies[name].get(count_key, 1.0) > 0}
    if metric is None or not silos:
        return None
    counts = {name: float(replies[name].get(count_key, 1.0)) for name in silos}
    pooled = math.fsum(silos[name] * counts[name] for name in silos) / math.fsum(counts.values())
    worst = min if HIGHER_IS_BETTER.get(metric, True) else max
    values = list(silos.values())
    return Summary(
        metric, silos, math.fsum(values) / len(values), pooled, worst(values, key=_nan_is_worst(metric))
    )


def _nan_is_worst(metric: str):  # type: ignore[no-untyped-def]
    """A sort key under which NaN is the worst value."""
    bad = -math.inf if HIGHER_IS_BETTER.get(metric, True) else math.inf
    return lambda value: bad if math.isnan(value) else value
