"""Is the difference between two adapters more than chance? On the same silos, seeds and rows, in pairs.

Two things are left to chance: the seed (the first adapter, batches, masks, and where `data.seed` follows it
the rows that each silo holds), and which test rows there happen to be. For the difference `d`, the mean over
seeds of the mean over silos,

    var(d) = var_s(d_s) / S  +  sum_k v_k / K^2

with `d_s` the difference at seed s, and `v_k` the variance of silo k's difference over its test rows: that
of a ratio of sums, as bits per byte are one (Cochran, Sampling Techniques, 1977, section 6.3). Silos are
taken as given: the interval says nothing of other silos. Where rows change with the seed, the first term
holds their chance as well, and the interval is rather too wide than too narrow. Its ends are
`d -+ t sqrt(var)` with the degrees of freedom of Welch and Satterthwaite (Satterthwaite, 1946, Biometrics
Bulletin 2, 110-114).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.stats import t as student

CONFIDENCE = 0.95

Rows = Mapping[str, Sequence["SiloRows"]]
"""By silo: its test rows at each seed."""


@dataclass(frozen=True)
class SiloRows:
    """One silo's test rows under one adapter: the score is the sum of outcomes over the sum of sizes."""

    outcomes: Sequence[float]
    sizes: Sequence[float]


@dataclass(frozen=True)
class Difference:
    """A difference with its interval.

    Args:
        mean: over seeds of the mean over silos.
        low: lower end of the 95 % interval; NaN where nothing is known of chance.
        high: upper end.
        verdict: "better", "worse", or "tie" where 0 lies within the interval, or nothing is known of chance.
    """

    mean: float
    low: float
    high: float
    verdict: str


def difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    rows: tuple[Rows, Rows] | None = None,
    *,
    higher_is_better: bool = True,
) -> Difference:
    """Ours minus theirs, paired by seed and row.

    Args:
        ours: by seed, the mean over silos.
        theirs: likewise, at the same seeds.
        rows: ours and theirs, of the same silos and seeds; None where only sums are known.
        higher_is_better: the metric's direction, for the verdict.

    Raises:
        ValueError: other seeds or silos on one side.

    Example:
        >>> found = difference([0.80, 0.82, 0.81], [0.70, 0.73, 0.71])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), found.verdict
        (0.097, 0.082, 0.111, 'better')
        >>> difference([0.80, 0.70], [0.70, 0.75]).verdict
        'tie'
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} seeds on one side, {len(theirs)} on the other")
    each = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = math.fsum(each) / len(each)
    terms: list[tuple[float, float]] = []  # variance and its degrees of freedom
    if len(each) > 1:
        terms.append((statistics.variance(each) / len(each), len(each) - 1))
    if rows is not None:
        terms.append(_rows_variance(*rows))
    return _interval(mean, terms, higher_is_better)


def standard_error(rows: Rows) -> float:
    """The standard error of one adapter's mean over silos, over its test rows; of the seeds nothing is said.

    Example:
        >>> round(standard_error({"a": [SiloRows([1.0, 0.0, 1.0, 0.0], [1.0] * 4)]}), 3)
        0.289
    """
    nothing = {
        silo: [SiloRows([0.0] * len(each.outcomes), each.sizes) for each in seeds]
        for silo, seeds in rows.items()
    }
    return math.sqrt(_rows_variance(rows, nothing)[0])


def _interval(mean: float, terms: Sequence[tuple[float, float]], higher_is_better: bool) -> Difference:
    if not terms:
        return Difference(mean, math.nan, math.nan, "tie")
    variance = math.fsum(value for value, _ in terms)
    if variance == 0:
        half = 0.0
    else:
        freedom = variance**2 / math.fsum(value**2 / free for value, free in terms)
        half = float(student.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(variance)
    low, high = mean - half, mean + half
    apart = "better" if (mean > 0) == higher_is_better else "worse"
    return Difference(mean, low, high, "tie" if low <= 0 <= high else apart)


def _rows_variance(ours: Rows, theirs: Rows) -> tuple[float, float]:
    """The variance of the mean over silos that comes from the choice of rows, and its degrees of freedom."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"silos {sorted(ours)} on one side, {sorted(theirs)} on the other")
    variances, freedoms = [], []
    for silo in ours:
        variance, freedom = _silo_variance(ours[silo], theirs[silo])
        variances.append(variance / len(ours) ** 2)
        freedoms.append(freedom)
    total = math.fsum(variances)
    if total == 0:
        return 0.0, 1.0
    return total, total**2 / math.fsum(v**2 / f for v, f in zip(variances, freedoms, strict=True))


def _silo_variance(ours: Sequence[SiloRows], theirs: Sequence[SiloRows]) -> tuple[float, float]:
    """Of one silo's difference: over its rows, averaged over the seeds where these have the same ones."""
    seeds = [_differences(a, b) for a, b in zip(ours, theirs, strict=True)]
    if all(first.sizes == second.sizes for first, second in pairwise(seeds)):
        count = len(seeds)
        together = [math.fsum(values) / count for values in zip(*(s.outcomes for s in seeds), strict=True)]
        seeds = [SiloRows(together, seeds[0].sizes)]
    found = [_ratio_variance(each) for each in seeds]
    return math.fsum(v for v, _ in found) / len(found) ** 2, min(free for _, free in found)


def _differences(ours: SiloRows, theirs: SiloRows) -> SiloRows:
    if list(ours.sizes) != list(theirs.sizes):
        raise ValueError("the two adapters were scored on other rows")
    return SiloRows([a - b for a, b in zip(ours.outcomes, theirs.outcomes, strict=True)], list(ours.sizes))


def _ratio_variance(rows: SiloRows) -> tuple[float, float]:
    """Variance of sum(outcomes) / sum(sizes), over rows drawn independently."""
    count, total = len(rows.outcomes), math.fsum(rows.sizes)
    if count < 2 or total == 0:
        return 0.0, 1.0
    ratio = math.fsum(rows.outcomes) / total
    square = math.fsum((o - ratio * s) ** 2 for o, s in zip(rows.outcomes, rows.sizes, strict=True))
    return square * count / (count - 1) / total**2, float(count - 1)
