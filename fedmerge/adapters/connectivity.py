"""Linear mode connectivity: what the loss does on the straight line between two adapters, and beyond.

The space is that of true updates: a point of the line is an adapter of higher rank, exact, and whoever can
score an adapter can score it. How it is scored is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.blend import blend


@dataclass(frozen=True)
class Point:
    """What was measured of one adapter.

    Args:
        loss: the mean over silos, say.
        score: of the metric, if one is known.
        silos: the loss at each silo, where that is known.
    """

    loss: float
    score: float | None = None
    silos: Mapping[str, float] = field(default_factory=dict)


Evaluate = Callable[[Adapter], float | tuple[float, float] | Point]
"""Scores an adapter: its loss, or loss and score, or a `Point`."""


def measured(value: float | tuple[float, float] | Point) -> Point:
    """What an `Evaluate` returned, as a point."""
    if isinstance(value, Point):
        return value
    return Point(*value) if isinstance(value, tuple) else Point(value)


@dataclass(frozen=True)
class Ends:
    """A line: from `start` at t = 0 through `stop` at t = 1.

    Args:
        names: of the two.
        start: an adapter; None stands for the base, which has none.
        stop: an adapter.
        lora: the settings whose scaling all points get; None: those of the adapters.
    """

    names: tuple[str, str]
    start: Adapter | None
    stop: Adapter
    lora: Lora | None = None

    def at(self, t: float) -> Adapter:
        """The adapter at `(1 - t) start + t stop`."""
        if self.start is None:
            return blend([self.stop], [t], self.lora)
        return blend([self.start, self.stop], [1 - t, t], self.lora)


@dataclass(frozen=True)
class Line:
    """What was measured along a line.

    Args:
        names: of its ends.
        at: the t of each point, rising.
        points: what was measured there.
    """

    names: tuple[str, str]
    at: tuple[float, ...]
    points: tuple[Point, ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """The loss at each point."""
        return tuple(point.loss for point in self.points)

    @property
    def barrier(self) -> float:
        """Height of the barrier between the ends; see `barrier`."""
        return barrier(self.at, self.losses)

    @property
    def best(self) -> float:
        """The t of the lowest loss."""
        return min(zip(self.losses, self.at, strict=True), key=lambda pair: (math.isnan(pair[0]), pair))[1]

    def __getitem__(self, t: float) -> Point:
        """What was measured at a t of the line."""
        return self.points[self.at.index(t)]


def measure_line(
    ends: Ends, at: Sequence[float], evaluate: Evaluate, known: Mapping[float, Point] | None = None
) -> Line:
    """Score an adapter at each t.

    Args:
        ends: of the line.
        at: the t to score at, 0 and 1 among them.
        evaluate: scores an adapter.
        known: points that need not be scored again, by t.

    Example:
        >>> import torch
        >>> one, two = Adapter({"x": torch.tensor([-1.0])}), Adapter({"x": torch.tensor([1.0])})
        >>> hill = lambda adapter: 2 - adapter.tensors["x"].item() ** 2
        >>> line = measure_line(Ends(("one", "two"), one, two), (0, 0.5, 1), hill)
        >>> line.losses, line.barrier
        ((1.0, 2.0, 1.0), 1.0)
    """
    known = known or {}
    points = [known[t] if t in known else measured(evaluate(ends.at(t))) for t in at]
    return Line(ends.names, tuple(at), tuple(points))


def barrier(at: Sequence[float], losses: Sequence[float]) -> float:
    """`max over t in [0, 1] of L(t) - ((1 - t) L(0) + t L(1))`: 0 where nothing rises above that line.

    Args:
        at: the t of the points, 0 and 1 among them; those beyond do not count.
        losses: there. One that is no number counts as infinite.

    Example:
        >>> barrier([0, 0.5, 1, 1.5], [1.0, 1.5, 1.0, 9.0])
        0.5

    Reference:
        Frankle, Dziugaite, Roy, Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020,
        arXiv 1912.05671 (error barrier).
        Entezari, Sedghi, Saukh, Neyshabur, The Role of Permutation Invariance in Linear Mode Connectivity of
        Neural Networks, 2022, arXiv 2110.06296, definition 2.1 (this form).
    """
    finite = [math.inf if math.isnan(loss) else loss for loss in losses]
    values = dict(zip(at, finite, strict=True))
    first, last = values[0], values[1]
    if math.isinf(first) or math.isinf(last):
        return math.inf
    return max(loss - ((1 - t) * first + t * last) for t, loss in values.items() if 0 <= t <= 1)


def spread_points(count: int, stop: float = 1.0) -> tuple[float, ...]:
    """Evenly spaced t from 0 to 1, and on with the same step to `stop`.

    Args:
        count: how many from 0 to 1, at least 2.
        stop: the last t, at least 1.

    Example:
        >>> spread_points(3), spread_points(3, 1.5)
        ((0.0, 0.5, 1.0), (0.0, 0.5, 1.0, 1.5))
    """
    steps = count - 1
    return tuple(step / steps for step in range(int(stop * steps + 1e-9) + 1))
