"""The loss on the plane through an origin and two adapters, in the space of true updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.blend import blend
from fedmerge.adapters.compared import compared
from fedmerge.adapters.connectivity import Evaluate, Point, measured
from fedmerge.errors import AdapterMismatch

FLAT = 1e-6
"""Two updates whose triangle is lower than this share of the longer one lie on a line, and span no plane."""

MARGIN = 0.25
"""How far the grid reaches beyond what lies in it, as a share of its size: there lie the slopes."""


@dataclass(frozen=True, eq=False)
class Triangle:
    """Three points of a plane, and others to be seen from there.

    Args:
        names: of origin, one and two.
        origin: an adapter; None stands for the base, which has none.
        one: on the x axis.
        two: above it.
        others: adapters that are projected onto the plane, by name.
        lora: the settings whose scaling all points get; None: those of the adapters.
    """

    names: tuple[str, str, str]
    origin: Adapter | None
    one: Adapter
    two: Adapter
    others: Mapping[str, Adapter] = field(default_factory=dict)
    lora: Lora | None = None

    @property
    def start(self) -> Adapter:
        """The origin as an adapter."""
        return blend([self.one], [0.0]) if self.origin is None else self.origin

    def at(self, alpha: float, beta: float) -> Adapter:
        """The adapter at `origin + alpha (one - origin) + beta (two - origin)`."""
        if self.origin is None:
            return blend([self.one, self.two], [alpha, beta], self.lora)
        return blend([self.origin, self.one, self.two], [1 - alpha - beta, alpha, beta], self.lora)


@dataclass(frozen=True)
class Axes:
    """Orthonormal axes of a plane: x along the first update, y upright to it towards the second.

    Args:
        length: Frobenius norm of the first update.
        lean: x of the second.
        height: y of the second, above 0.

    Reference:
        Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv 1802.10026,
        appendix (the plane through three weights).
    """

    length: float
    lean: float
    height: float

    def coefficients(self, x: float, y: float) -> tuple[float, float]:
        """Of the two updates, for a point of the plane.

        Example:
            >>> Axes(length=2.0, lean=1.0, height=4.0).coefficients(1.0, 4.0)
            (0.0, 1.0)
        """
        beta = y / self.height
        return (x - beta * self.lean) / self.length, beta


@dataclass(frozen=True)
class Plane:
    """The loss on a grid.

    Args:
        corners: names of origin, one and two.
        x: of the columns, in units of the updates' Frobenius norm.
        y: of the rows.
        losses: by row, then by column.
        points: `(x, y)` of the corners and the others, these projected onto the plane.
        distances: how far each of the others lies off the plane.
    """

    corners: tuple[str, str, str]
    x: tuple[float, ...]
    y: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    points: Mapping[str, tuple[float, float]]
    distances: Mapping[str, float]


def measure_plane(triangle: Triangle, steps: int, evaluate: Evaluate) -> Plane:
    """Score an adapter at each point of a grid that holds the three corners and the others.

    Args:
        triangle: what spans the plane.
        steps: points along each axis, at least 2.
        evaluate: scores an adapter.

    Raises:
        AdapterMismatch: adapters that do not belong together, or three that lie on a line.

    Example:
        >>> one, two = Adapter({"x": torch.tensor([2.0, 0.0])}), Adapter({"x": torch.tensor([0.0, 2.0])})
        >>> bowl = lambda adapter: float((adapter.tensors["x"] - 1).square().sum())
        >>> plane = measure_plane(Triangle(("base", "one", "two"), None, one, two), 3, bowl)
        >>> plane.x, plane.losses[1]
        ((-0.5, 1.0, 2.5), (2.25, 0.0, 2.25))
    """
    axes, points, distances = laid_out(triangle)
    x = _spread([place[0] for place in points.values()], steps)
    y = _spread([place[1] for place in points.values()], steps)
    losses = tuple(
        tuple(_loss(evaluate, triangle.at(*axes.coefficients(across, up))) for across in x) for up in y
    )
    return Plane(triangle.names, x, y, losses, points, distances)


def laid_out(triangle: Triangle) -> tuple[Axes, dict[str, tuple[float, float]], dict[str, float]]:
    """The axes, where everything lies in the plane, and how far the others lie off it.

    From inner products of whole adapters: `<p - o, q - o> = G_pq - G_po - G_oq + G_oo`.

    Raises:
        AdapterMismatch: adapters that do not belong together, or three that lie on a line.
    """
    named = dict(zip(triangle.names, (triangle.start, triangle.one, triangle.two), strict=True))
    named |= {name: adapter for name, adapter in triangle.others.items() if name not in named}
    gram = _from_first(_gram(list(named.values()), list(named)))
    length = math.sqrt(max(float(gram[0, 0]), 0.0))
    lean = float(gram[0, 1]) / length if length else 0.0
    height = math.sqrt(max(float(gram[1, 1]) - lean**2, 0.0))
    if height <= FLAT * max(length, abs(lean)) or not length:
        raise AdapterMismatch(
            f"{', '.join(map(repr, triangle.names))} lie on a line and span no plane; choose two other silos"
        )
    points, distances = {triangle.names[0]: (0.0, 0.0)}, {}
    for place, name in enumerate(list(named)[1:]):
        x = float(gram[0, place]) / length
        y = (float(gram[1, place]) - lean * x) / height
        points[name] = (x, y)
        if name not in triangle.names:
            distances[name] = math.sqrt(max(float(gram[place, place]) - x**2 - y**2, 0.0))
    return Axes(length, lean, height), points, distances


def _gram(adapters: Sequence[Adapter], names: Sequence[str]) -> Tensor:
    return torch.stack(list(compared(adapters, names=names).grams().values())).sum(dim=0)


def _from_first(gram: Tensor) -> Tensor:
    """Inner products of the differences to the first one."""
    to_first = gram[1:, 0]
    return gram[1:, 1:] - to_first.unsqueeze(0) - to_first.unsqueeze(1) + gram[0, 0]


def _spread(values: Sequence[float], steps: int) -> tuple[float, ...]:
    low, high = min(values), max(values)
    margin = MARGIN * (high - low)
    width = (high - low + 2 * margin) / (steps - 1)
    return tuple(low - margin + step * width for step in range(steps))


def _loss(evaluate: Evaluate, adapter: Adapter) -> float:
    point: Point = measured(evaluate(adapter))
    return point.loss
