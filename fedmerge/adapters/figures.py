"""What is measured of the geometry of fine-tunes, together, and how its figures are written in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedmerge.adapters.angles import Geometry
from fedmerge.adapters.connectivity import Line
from fedmerge.adapters.sign_conflict import Conflict
from fedmerge.adapters.spectra import Spectrum


@dataclass(frozen=True)
class Figures:
    """What was measured; lines are empty and None where nothing was evaluated.

    Args:
        names: of the silos or adapters.
        geometry: lengths, cosines, influence.
        relative: each update's length by that of the weights it moves.
        before: conflict of the untrimmed updates; None for a single one.
        after: conflict of the trimmed ones.
        spectra: by module.
        start: what the updates start from: "base", or "received" in a later round of a run.
        whole: whole models are compared with their base, so that their distance tells whether it is theirs.
        fingerprint: of the base, where all adapters carry the same.
        from_start: lines from there to each silo.
        between: lines between two silos.
        merge: the line from the start through the merge and beyond.
    """

    names: tuple[str, ...]
    geometry: Geometry
    relative: tuple[float, ...] | None = None
    before: Conflict | None = None
    after: Conflict | None = None
    spectra: Mapping[str, Sequence[Spectrum]] = field(default_factory=dict)
    start: str = "base"
    whole: bool = False
    fingerprint: str = ""
    from_start: tuple[Line, ...] = ()
    between: tuple[Line, ...] = ()
    merge: Line | None = None

    @property
    def ground(self) -> str:
        """What the updates start from, in words."""
        return "this base" if self.start == "base" else "what the silos received"


def share(value: float) -> str:
    """A share as a person reads it.

    Example:
        >>> share(0.694), share(0.0347), share(0.0001), share(0)
        ('69 %', '3.5 %', '<0.1 %', '0 %')
    """
    if value == 0:
        return "0 %"
    if not math.isfinite(value):
        return "more than any share"
    if abs(value) < 0.001:
        return "<0.1 %"
    return f"{100 * value:.1f} %" if abs(value) < 0.0995 else f"{100 * value:.0f} %"


def share_range(values: Iterable[float]) -> str:
    """The least and the largest share.

    Example:
        >>> share_range([0.05, 0.03, 0.04]), share_range([0.5])
        ('3.0 % to 5.0 %', '50 %')
    """
    ordered = sorted(values)
    low, high = share(ordered[0]), share(ordered[-1])
    return low if low == high else f"{low} to {high}"


def count(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> count(1, "line"), count(3, "line")
        ('1 line', '3 lines')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
