"""Combining stages that look at directions: interpolation and means on the sphere, and Model Stock.

They work on deltas. Programs that merge whole weights by the same names measure angles from 0 instead of from
the common start, where all fine-tunes of one model point almost the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.checks import require_choice, require_finite, require_whole
from fedmerge.rules.gram import GramStage, cosines_of, norms_of
from fedmerge.rules.stages import SCOPES

PARALLEL = 0.9995
"""slerp: closer to a line than this, it is linear."""

COLINEAR = 1e-6
"""Below this sine of the angle two directions lie on a line: those of exact opposites come out as 1e-8."""

CANCELLED = 1e-7
"""Where the mean of the unit vectors is shorter, its direction is rounding."""

SETTLED = 1e-13
"""karcher: a step of this length, in radians, ends the iteration."""


@dataclass(frozen=True)
class Slerp(GramStage):
    """Along the arc between two clients' deltas; see `fedmerge.rules.slerp`.

    Args:
        t: how far from the first towards the second, in [0, 1]; None: the second's share of the weight.
        scope: "tensor", or "adapter" for one angle over the whole adapter.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> Slerp(t=0.5).among(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        tensor([0.7071, 0.7071], dtype=torch.float64)
    """

    t: float | None = None
    scope: str = "tensor"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_choice("slerp", "scope", self.scope, SCOPES)
        if self.t is not None:
            require_finite("slerp", "t", self.t)
            if not 0 <= self.t <= 1:
                raise RuleError(f"slerp: t={self.t!r} is out of range: it lies in [0, 1]")

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Factors of both."""
        if len(weights) == 1 and self.t is None:
            return torch.ones_like(weights)
        _require_two(self, weights)
        t = float(weights[1] / weights.sum()) if self.t is None else self.t
        cosine = cosines_of(gram)[0, 1]
        return _linear(t) if abs(float(cosine)) > PARALLEL else _arc(cosine, t)


@dataclass(frozen=True)
class Nuslerp(GramStage):
    """Along the arc between two clients' deltas by their weights; see `fedmerge.rules.nuslerp`.

    Args:
        scope: "tensor", or "adapter" for one angle over the whole adapter.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> Nuslerp().among(torch.eye(2, dtype=torch.float64), torch.tensor([3.0, 1.0]))
        tensor([0.9239, 0.3827], dtype=torch.float64)
    """

    scope: str = "tensor"

    def __post_init__(self) -> None:
        """Check the argument."""
        require_choice("nuslerp", "scope", self.scope, SCOPES)

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Factors of both."""
        if len(weights) == 1:
            return torch.ones_like(weights)
        _require_two(self, weights)
        t = float(weights[1] / weights.sum())
        cosine = cosines_of(gram)[0, 1]
        sine = (1 - cosine) * (1 + cosine)
        return _linear(t) if float(sine) < COLINEAR**2 else _arc(cosine, t)


@dataclass(frozen=True)
class Multislerp(GramStage):
    """The mean direction times the mean length; see `fedmerge.rules.multislerp`.

    Args:
        scope: "tensor", or "adapter" for one direction of the whole adapter.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> Multislerp().among(torch.diag(torch.tensor([9.0, 1.0]).double()), torch.ones(2).double())
        tensor([0.4714, 1.4142], dtype=torch.float64)
    """

    scope: str = "tensor"

    def __post_init__(self) -> None:
        """Check the argument."""
        require_choice("multislerp", "scope", self.scope, SCOPES)

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Factors of all."""
        return _on_sphere(gram, weights, 0)


@dataclass(frozen=True)
class Karcher(GramStage):
    """The Riemannian mean of the directions times the mean length; see `fedmerge.rules.karcher`.

    Args:
        iterations: most steps of the iteration, from 1.
        scope: "tensor", or "adapter" for one direction of the whole adapter.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> Karcher().among(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        tensor([0.7071, 0.7071], dtype=torch.float64)
    """

    iterations: int = 100
    scope: str = "tensor"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_whole("karcher", "iterations", self.iterations, 1)
        require_choice("karcher", "scope", self.scope, SCOPES)

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Factors of all."""
        return _on_sphere(gram, weights, self.iterations)


@dataclass(frozen=True)
class ModelStock(GramStage):
    """The weighted mean, shrunk by how little the deltas agree; see `fedmerge.rules.model_stock`.

    Args:
        scope: "tensor", or "adapter" for one ratio for the whole adapter.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> half = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> ModelStock().among(half, torch.ones(2, dtype=torch.float64))
        tensor([0.3333, 0.3333], dtype=torch.float64)
    """

    scope: str = "tensor"

    def __post_init__(self) -> None:
        """Check the argument."""
        require_choice("model_stock", "scope", self.scope, SCOPES)

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Factors of all."""
        count = len(weights)
        mean = weights / weights.sum()
        if count == 1:
            return mean
        cosine = float(cosines_of(gram).triu(1).sum()) * 2 / (count * (count - 1))
        # At and below 0 the estimate is negative, and without bound towards -1 / (N - 1).
        ratio = count * cosine / (1 + (count - 1) * cosine) if cosine > 0 else 0.0
        return ratio * mean


def _require_two(stage: GramStage, weights: Tensor) -> None:
    if len(weights) != 2:
        raise RuleError(
            f"{stage} lies between two clients, {len(weights)} of weight above 0 were given; karcher() and "
            "multislerp() take any number"
        )


def _linear(t: float) -> Tensor:
    return torch.tensor([1 - t, t], dtype=torch.float64)


def _arc(cosine: Tensor, t: float) -> Tensor:
    """`sin((1 - t) theta) / sin theta` and `sin(t theta) / sin theta`."""
    angle = torch.acos(cosine.to(torch.float64))
    return torch.sin(_linear(t) * angle) / torch.sin(angle)


def _on_sphere(gram: Tensor, weights: Tensor, steps: int) -> Tensor:
    """A mean of the unit vectors times the mean length; the mean itself where the unit vectors cancel out.

    Args:
        gram: float64 `(clients, clients)`.
        weights: float64 `(clients,)`, above 0.
        steps: of the iteration from the mean in space towards the mean on the sphere.
    """
    shares = weights / weights.sum()
    norms, cosines = norms_of(gram), cosines_of(gram)
    moved = shares * (norms > 0)
    place = moved / moved.sum() if bool(moved.any()) else moved
    length = _length(place, cosines)
    if length < CANCELLED:
        return shares
    place = place / length
    if steps:
        place = _settled(place, moved / moved.sum(), cosines, steps)
    return (shares @ norms) * place / torch.where(norms > 0, norms, 1.0)


def _length(place: Tensor, cosines: Tensor) -> float:
    """Length of the sum of unit vectors times `place`."""
    return float((place @ cosines @ place).clamp(min=0).sqrt())


def _settled(place: Tensor, shares: Tensor, cosines: Tensor, steps: int) -> Tensor:
    """Walk to where the mean of the logarithms vanishes, `sum_i p_i log_u(u_i) = 0`.

    The unit vectors stand in the coordinates of the space that they span. On factors of the vectors the walk
    would drift without bound where they depend on each other.
    """
    values, axes = torch.linalg.eigh(cosines)
    spanned = values > len(values) * torch.finfo(torch.float64).eps * values[-1]
    axes, roots = axes[:, spanned], values[spanned].sqrt()
    units = axes * roots
    point = _walked(place @ units, shares, units, steps)
    coefficients: Tensor = axes @ (point / roots)
    return coefficients


def _walked(point: Tensor, shares: Tensor, units: Tensor, steps: int) -> Tensor:
    """Follow the mean of the logarithms from a point on the sphere, `(dimensions,)`."""
    for _ in range(steps):
        near = (units @ point).clamp(-1, 1)
        angle = torch.acos(near)
        sine = torch.sin(angle)
        # At the far pole no direction leads there: such a client has no pull.
        pull = torch.where(sine > COLINEAR, angle / sine.clamp(min=COLINEAR), (near > 0).to(near.dtype))
        pull = shares * pull
        step = pull @ units - (pull @ near) * point
        length = float(torch.linalg.vector_norm(step))
        if length < SETTLED:
            break
        point = math.cos(length) * point + math.sin(length) / length * step
        point = point / torch.linalg.vector_norm(point)
    return point
