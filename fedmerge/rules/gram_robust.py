"""Stages that keep a minority of bad deltas from deciding: Krum, the geometric median, clipping by norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.checks import require_choice, require_finite, require_whole
from fedmerge.rules.combine import NEGLIGIBLE
from fedmerge.rules.gram import GramStage, norms_of
from fedmerge.rules.stages import SCOPES

ROUNDING = 1e-12
"""Scores that differ by less than this share are equal: the client that comes first by name is taken."""


@dataclass(frozen=True)
class Krum(GramStage):
    """The one delta whose neighbours are nearest; see `fedmerge.rules.krum`.

    Args:
        attackers: how many clients may send anything, from 0.
        scope: "adapter" for one choice over the whole adapter, or "tensor".

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> gram = torch.tensor([[1.0, 1.0, 9.0], [1.0, 1.0, 9.0], [9.0, 9.0, 81.0]], dtype=torch.float64)
        >>> Krum(attackers=0).among(gram, torch.ones(3, dtype=torch.float64))
        tensor([1., 0., 0.], dtype=torch.float64)
    """

    attackers: int = 1
    scope: str = "adapter"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_whole("krum", "attackers", self.attackers, 0)
        require_choice("krum", "scope", self.scope, SCOPES)

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """1 for the chosen client, 0 for the others."""
        _require_enough(self, len(weights), self.attackers)
        return _chosen(gram, self.attackers, 1).to(torch.float64)


@dataclass(frozen=True)
class MultiKrum(GramStage):
    """The mean of the deltas whose neighbours are nearest; see `fedmerge.rules.multi_krum`.

    Args:
        attackers: how many clients may send anything, from 0.
        keep: how many are chosen, from 1; None: all but `attackers + 2`.
        scope: "adapter" for one choice over the whole adapter, or "tensor".

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> gram = torch.diag(torch.tensor([1.0, 1.0, 1.0, 81.0], dtype=torch.float64))
        >>> MultiKrum(attackers=0).among(gram, torch.tensor([1.0, 3.0, 1.0, 1.0]))
        tensor([0.2500, 0.7500, 0.0000, 0.0000])
    """

    attackers: int = 1
    keep: int | None = None
    scope: str = "adapter"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_whole("multi_krum", "attackers", self.attackers, 0)
        if self.keep is not None:
            require_whole("multi_krum", "keep", self.keep, 1)
        require_choice("multi_krum", "scope", self.scope, SCOPES)

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Shares of the chosen clients, 0 for the others."""
        _require_enough(self, len(weights), self.attackers)
        most = len(weights) - self.attackers - 2
        if self.keep is not None and self.keep > most:
            raise RuleError(
                f"{self} keeps {self.keep} of {len(weights)} clients; with {self.attackers} attackers it can "
                f"keep N - attackers - 2 = {most} at most"
            )
        counted = weights * _chosen(gram, self.attackers, self.keep or most)
        return counted / counted.sum()


@dataclass(frozen=True)
class GeometricMedian(GramStage):
    """The point of least weighted distance to all deltas; see `fedmerge.rules.geometric_median`.

    Args:
        iterations: of the smoothed Weiszfeld algorithm, from 1.
        smoothing: least distance that counts, as a share of the deltas' median norm, above 0.
        scope: "adapter" for one distance over the whole adapter, or "tensor".

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> line = torch.tensor([0.0, 1.0, 100.0], dtype=torch.float64)
        >>> factors = GeometricMedian().among(line.outer(line), torch.ones(3, dtype=torch.float64))
        >>> round(float(factors @ line), 3)
        1.0
    """

    iterations: int = 100
    smoothing: float = 1e-6
    scope: str = "adapter"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_whole("geometric_median", "iterations", self.iterations, 1)
        require_finite("geometric_median", "smoothing", self.smoothing)
        if self.smoothing <= 0:
            raise RuleError(f"geometric_median: smoothing={self.smoothing!r} is out of range: above 0")
        require_choice("geometric_median", "scope", self.scope, SCOPES)

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Shares of all clients, with sum 1."""
        shares = weights / weights.sum()
        least = self.smoothing * _median(norms_of(gram), weights)
        tiny = torch.finfo(torch.float64).tiny
        for _ in range(self.iterations):
            closeness = weights / _distances(gram, shares).clamp(min=max(least, tiny))
            # Near the smallest floats a quotient overflows; only ratios count.
            closeness = closeness.clamp(max=torch.finfo(torch.float64).max / len(weights))
            shares = closeness / closeness.sum()
        return shares


@dataclass(frozen=True)
class ClipNorm(GramStage):
    """Shorten each delta that is longer than a limit to that limit: `tau_i min(1, L / |tau_i|)`.

    Prepares for other stages: it may stand anywhere before an election or a combining stage.

    Args:
        limit: L, the longest norm left as it is, above 0; None: the weighted median of the clients' norms.
        scope: "adapter" for the norm of the whole delta, or "tensor".

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> gram = torch.diag(torch.tensor([1.0, 4.0, 100.0], dtype=torch.float64))
        >>> ClipNorm(limit=5.0).among(gram, torch.ones(3, dtype=torch.float64))
        tensor([1.0000, 1.0000, 0.5000], dtype=torch.float64)

    Reference:
        Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv:1911.07963.
    """

    limit: float | None = None
    scope: str = "adapter"

    phase: ClassVar[str] = "sparsify"

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.limit is not None:
            require_finite("clip_norm", "limit", self.limit)
            if self.limit <= 0:
                raise RuleError(f"clip_norm: limit={self.limit!r} is out of range: above 0")
        require_choice("clip_norm", "scope", self.scope, SCOPES)

    def among(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Factors in (0, 1]."""
        norms = norms_of(gram)
        limit = _median(norms, weights) if self.limit is None else self.limit
        return torch.where(norms > limit, limit / torch.where(norms > 0, norms, 1.0), 1.0)


def _require_enough(stage: GramStage, clients: int, attackers: int) -> None:
    if clients < 2 * attackers + 3:
        raise RuleError(
            f"{stage} needs N >= 2 * attackers + 3 = {2 * attackers + 3} clients of weight above 0, "
            f"{clients} were given"
        )


def _chosen(gram: Tensor, attackers: int, count: int) -> Tensor:
    """Mark the `count` clients of least score: squared distances to the N - attackers - 2 nearest others."""
    squares = gram.diagonal()
    distances = (squares + squares.unsqueeze(1) - 2 * gram).clamp(min=0)
    distances.fill_diagonal_(math.inf)
    nearest = distances.sort(dim=1).values[:, : len(gram) - attackers - 2]
    scores = nearest.sum(dim=1)
    chosen = torch.zeros(len(gram), dtype=torch.bool)
    for _ in range(count):
        left = torch.where(chosen, math.inf, scores)
        least = int(left.argmin())
        # Of scores that only rounding tells apart the first: whichever way the Gram matrix was computed.
        alike = left <= left[least] + ROUNDING * (left[least] + squares[least])
        chosen[int(alike.nonzero()[0])] = True
    return chosen


def _distances(gram: Tensor, shares: Tensor) -> Tensor:
    """From each delta to the point `sum_j b_j tau_j`, where the b_j have sum 1.

    As `(e_i - b)' G (e_i - b)`: the differences are small where the point comes close, so that no digits are
    lost there.
    """
    apart = torch.eye(len(gram), dtype=torch.float64) - shares
    return ((gram - shares @ gram) * apart).sum(dim=1).clamp(min=0).sqrt()


def _median(values: Tensor, weights: Tensor) -> float:
    """The weighted median: the middle between the lower and the upper one where the weight splits evenly."""
    values, order = values.sort()
    until = weights[order].cumsum(0) / weights.sum()
    lower = values[int((until >= 0.5 - NEGLIGIBLE).nonzero()[0])]
    upper = values[int((until >= 0.5 + NEGLIGIBLE).nonzero()[0])]
    return float(lower / 2 + upper / 2)
