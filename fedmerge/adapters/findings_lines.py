"""Sentences about scored lines: one base or not, one basin or not, whether a longer step would be better."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from fedmerge.adapters.connectivity import Line
from fedmerge.adapters.figures import Figures, count, share, share_range

LEAST_GAIN = 0.002
"""A fine-tune of this base lowers the loss somewhere by this share at least.

Measured on the built-in base (silo asyncio, 50 steps, seed 0, its own validation rows): it saves 2.0 %
at t = 0.1 and 7.0 % at 0.5; the same with the units permuted, which fits no better than one of another
base, loses 0.02 % at 0.1 and 1.1 % at 1. Between two random bases of 16 units (20 steps) one saved 1.4 %
on its own base and by chance 0.1 % on the other.
"""

BARRIER = 0.02
"""A barrier below this share of the straight line between the ends is none. Frankle et al. 2020 (arXiv
1912.05671) draw the line at 2 % (of error), where differences between two evaluations end."""

MOST_NAMED = 3
"""Pairs named one by one; of more, the number."""


def gain(line: Line) -> float:
    """The largest share of the loss at its start that is saved anywhere on a line up to t = 1.

    On the rows of the silo that it leads to, where these are known; else at the silo that gains most.
    """
    own = line.names[1]
    start = line[0].silos or {"": line[0].loss}
    places = [own] if own in start else list(start)
    saved = [
        1 - (point.silos or {"": point.loss})[place] / (start[place] or 1.0)
        for t, point in zip(line.at, line.points, strict=True)
        for place in places
        if 0 < t <= 1
    ]
    return max((value for value in saved if math.isfinite(value)), default=-math.inf)


def strangers(figures: Figures) -> dict[str, Line]:
    """Those that help nowhere on the line from the start to them, by name."""
    return {line.names[1]: line for line in figures.from_start if gain(line) < LEAST_GAIN}


def base_sentences(figures: Figures) -> Iterator[str]:
    """Whether the silos' adapters belong to the base that they were scored on."""
    odd = strangers(figures)
    for name, line in odd.items():
        t = min(t for t in line.at if t > 0)
        losses = f"{line[0].loss:.3f} to {line[t].loss:.3f} at t = {t:g} and {line[1].loss:.3f} at t = 1"
        yield (
            f"{name} was not trained from {figures.ground}, or its training failed: on the line to it "
            f"the loss goes from {losses}, and no silo that counts gains more than "
            f"{share(max(gain(line), 0.0))} on the way."
        )
    gains = [gain(line) for line in figures.from_start if line.names[1] not in odd]
    if gains:
        whose = "Each" if len(gains) == len(figures.names) > 1 else _listed(figures.names, odd)
        yield (
            f"{whose} was trained from {figures.ground}: on the line from there to it the loss falls, by "
            f"{share_range(gains)}."
        )
    elif not figures.from_start and not figures.whole:
        yield _unmeasured(figures)


def _listed(names: Sequence[str], odd: Mapping[str, Line]) -> str:
    kept = [name for name in names if name not in odd]
    return kept[0] if len(kept) == 1 else f"Each of the other {len(kept)}"


def _unmeasured(figures: Figures) -> str:
    if figures.fingerprint:
        return f"All carry the fingerprint of one base, {figures.fingerprint[:12]}."
    return (
        "Whether they share a base is not known: they carry no fingerprint, and without a simulation's rows "
        "nothing was evaluated."
    )


def basin_sentences(figures: Figures) -> Iterator[str]:
    """Whether a barrier lies between the silos."""
    if not figures.between:
        return
    heights = {line.names: _relative_barrier(line) for line in figures.between}
    apart = {names: height for names, height in heights.items() if not height < BARRIER}
    if not apart:
        inside = sum(_middle_is_best(line) for line in figures.between)
        yield (
            f"One basin: on {count(len(heights), 'line')} between two silos the loss rises by "
            f"{share(max(heights.values()))} at most above the straight line of the ends' losses (below "
            f"{share(BARRIER)} is no barrier); on {inside} of them a point between is better than both ends."
        )
        return
    for (one, two), height in sorted(apart.items(), key=lambda entry: -entry[1])[:MOST_NAMED]:
        yield (
            f"Not one basin: between {one} and {two} the loss rises by {share(height)} above the straight "
            f"line of the ends' losses ({share(BARRIER)} and more is a barrier)."
        )
    if len(apart) > MOST_NAMED:
        yield f"{len(apart)} of {len(heights)} lines between two silos have a barrier."


def _relative_barrier(line: Line) -> float:
    return line.barrier / ((abs(line[0].loss) + abs(line[1].loss)) / 2 or 1.0)


def _middle_is_best(line: Line) -> bool:
    return min(line.losses) < min(line[0].loss, line[1].loss)


def merge_sentences(figures: Figures) -> Iterator[str]:
    """Whether the merge goes as far as it should."""
    line = figures.merge
    if line is None:
        return
    best = line.best
    told = f"loss {line[0].loss:.3f} at its start, {line[1].loss:.3f} at the merge"
    if best in (0, 1):
        where = "the merge itself" if best else "its start, so the merge hurts"
        yield f"On the line through the merge the loss is lowest at {where} ({told})."
    else:
        step = "longer" if best > 1 else "shorter"
        edge = ", the last point measured" if best == line.at[-1] else ""
        yield (
            f"On the line through the merge the loss is lowest at t = {best:g}{edge}: a {step} step is "
            f"better here ({told}, {line[best].loss:.3f} there)."
        )
