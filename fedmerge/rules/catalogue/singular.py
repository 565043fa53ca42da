"""Matrix rules that work on singular values and vectors: whiten, flatten, or cut off the spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.rules.checks import require_finite, require_share
from fedmerge.rules.spectral import Factored, Layer, MatrixRule, partial_isometry, shares, singular, weighed
from fedmerge.rules.stack import Draw


@dataclass(frozen=True)
class SingularVectors(MatrixRule):
    """The rule behind `tsv_merge`."""

    scale: float = 1.0

    name: ClassVar[str] = "tsv_merge"

    def __post_init__(self) -> None:
        """Check the scale."""
        require_finite(self.name, "scale", self.scale)

    def merge_cores(self, layer: Layer, weights: Tensor, draw: Draw) -> Factored:
        """Keep each client's leading triples, decorrelate them, put them together."""
        count = max(1, min(layer.shape) // layer.clients)
        triples = [singular(core, layer.precision) for core in weighed(layer, weights)]
        left = partial_isometry(torch.cat([one.left[:, :count] for one in triples], dim=1), layer.precision)
        right = partial_isometry(torch.cat([one.right[:count] for one in triples]), layer.precision)
        values = torch.cat([one.values[:count] for one in triples])
        return layer.lift(self.scale * left * values, right)


@dataclass(frozen=True)
class Isotropic(MatrixRule):
    """The rule behind `iso_c`."""

    scale: float = 1.0

    name: ClassVar[str] = "iso_c"

    def __post_init__(self) -> None:
        """Check the scale."""
        require_finite(self.name, "scale", self.scale)

    def merge_cores(self, layer: Layer, weights: Tensor, draw: Draw) -> Factored:
        """Give all directions of the sum the mean of its singular values."""
        total = singular(weighed(layer, weights).sum(dim=0), layer.precision)
        length = self.scale * total.values.sum() / max(len(total.values), 1)
        return layer.lift(length * total.left, total.right)


@dataclass(frozen=True)
class CommonAndSpecific(MatrixRule):
    """The rule behind `iso_cts`."""

    common: float = 0.8
    scale: float = 1.0

    name: ClassVar[str] = "iso_cts"

    def __post_init__(self) -> None:
        """Check the knobs."""
        require_share(self.name, "common", self.common)
        require_finite(self.name, "scale", self.scale)

    def merge_cores(self, layer: Layer, weights: Tensor, draw: Draw) -> Factored:
        """The sum's leading directions, and each client's leading ones beside them, at one length."""
        cores = weighed(layer, weights)
        total = singular(cores.sum(dim=0), layer.precision)
        rank = len(total.values)
        own = min(rank // layer.clients, round((rank - int(rank * self.common)) / layer.clients))
        common = total.left[:, : rank - own * layer.clients]
        apart = [singular(core - common @ (common.T @ core), layer.precision) for core in cores]
        left = [*(one.left[:, :own] for one in apart), common]
        right = [*(one.right[:own] for one in apart), total.right[: common.shape[1]]]
        values = torch.cat([*(one.values[:own] for one in apart), total.values[: common.shape[1]]])
        length = self.scale * values.sum() / max(len(values), 1)
        columns = partial_isometry(torch.cat(left, dim=1), layer.precision)
        return layer.lift(length * columns, partial_isometry(torch.cat(right), layer.precision))


@dataclass(frozen=True)
class Centered(MatrixRule):
    """The rule behind `cart`."""

    density: float = 0.04
    scale: float = 1.0

    name: ClassVar[str] = "cart"

    def __post_init__(self) -> None:
        """Check the knobs."""
        require_share(self.name, "density", self.density)
        require_finite(self.name, "scale", self.scale)

    def merge_cores(self, layer: Layer, weights: Tensor, draw: Draw) -> Factored:
        """The mean, and the leading part of what each client differs from it."""
        parts = shares(weights)
        mean = torch.einsum("i,ipq->pq", parts, layer.cores)
        together = singular(torch.cat(list(layer.cores), dim=1), layer.precision)
        across = singular(torch.cat(list(layer.cores)), layer.precision)
        count = math.ceil(self.density * min(len(together.values), len(across.values)))
        merged = mean.clone()
        for share, core in zip(parts * layer.clients, layer.cores, strict=True):
            own = singular(core - mean, layer.precision)
            merged += self.scale * share * (own.left[:, :count] * own.values[:count]) @ own.right[:count]
        return layer.placed(merged)


def tsv_merge(scale: float = 1.0) -> SingularVectors:
    """TSV-Merge: each client's leading singular triples, their vectors decorrelated by Procrustes.

    With `tau_i = U_i S_i V_i` cut to the leading `max(1, int(min(d, m) / N))` triples: `lambda * P([U_1, ...,
    U_N]) diag(S_1, ..., S_N) P([V_1; ...; V_N])`, where `P(X D Y) = X Y` is the nearest matrix with
    orthonormal columns (rows). Where clients use the same directions, each gets its own, so that none drowns
    another. An update of LoRA has few triples, and all of them are kept up to that number; triples and
    directions that are only rounding take no part. Weights: `tau_i` counts `N w_i / sum w` times. Tensors
    that are no LoRA pair are averaged.

    Args:
        scale: lambda, any finite number.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(tsv_merge(scale=0.5))
        tsv_merge(scale=0.5)

    Reference:
        Gargiulo, Crisostomi, Bucarelli, Scardapane, Silvestri, Rodola, "Task Singular Vectors: Reducing Task
        Interference in Model Merging", 2024, arXiv:2412.00081.
    """
    return SingularVectors(scale)


def iso_c(scale: float = 1.0) -> Isotropic:
    """Iso-C: the sum of the updates with all its singular values made equal.

    With `sum_i tau_i = U diag(s) V` of rank R: `lambda * mean(s) * U V`. No direction dominates. The mean is
    taken over the R singular values above rounding: on a full matrix those are all, as in the paper; on LoRA
    updates R is at most the sum of the ranks, and directions that no client moved stay where they are. Such a
    spectrum has no gap: give the space a rank of that sum, or the cut picks among equals. Weights: `tau_i`
    counts `N w_i / sum w` times. Tensors that are no LoRA pair are averaged.

    Args:
        scale: lambda, any finite number.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(iso_c(scale=0.5))
        iso_c(scale=0.5)

    Reference:
        Marczak, Magistri, Cygert, Twardowski, Bagdanov, van de Weijer, "No Task Left Behind: Isotropic Model
        Merging with Common and Task-Specific Subspaces", 2025, arXiv:2502.04959.
    """
    return Isotropic(scale)


def iso_cts(common: float = 0.8, scale: float = 1.0) -> CommonAndSpecific:
    """Iso-CTS: the leading directions of the sum, and room for each client's own, all at the same length.

    With R the rank of `sum_i tau_i`, each client gets `k = round((R - int(c R)) / N)` directions, the sum
    keeps its leading `R - N k`, of left vectors U_c. Client i adds the leading k triples of `tau_i - U_c U_c'
    tau_i`. All left (right) vectors are made orthonormal by Procrustes, and all singular values become their
    mean, times lambda. Cut as `iso_c`, which it is at `c = 1`, and weighted like it. Tensors that are no LoRA
    pair are averaged.

    Args:
        common: c, share of the directions that the sum keeps, in (0, 1].
        scale: lambda, any finite number.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(iso_cts(common=0.7))
        iso_cts(common=0.7)

    Reference:
        Marczak, Magistri, Cygert, Twardowski, Bagdanov, van de Weijer, "No Task Left Behind: Isotropic Model
        Merging with Common and Task-Specific Subspaces", 2025, arXiv:2502.04959.
    """
    return CommonAndSpecific(common, scale)


def cart(density: float = 0.04, scale: float = 1.0) -> Centered:
    """CART: the mean, and of each client the leading part of what it differs from the mean.

    With the weighted mean `t`: `t + lambda * sum_i u_i SVD_k(tau_i - t)`, `u_i = N w_i / sum w` (1 for equal
    weights) and `k = ceil(rho R)`; R is min(d, m) on full matrices, as in the paper, and on LoRA updates the
    rank of all of them together. Lambda is worth tuning: at 1 and a large N the step is long. Tensors that
    are no LoRA pair are averaged.

    Args:
        density: rho, share of the rank that is kept, in (0, 1].
        scale: lambda, any finite number.

    Returns:
        The rule.

    Raises:
        RuleError: an argument out of range.

    Example:
        >>> print(cart(density=0.1))
        cart(density=0.1)

    Reference:
        Choi, Kim, Lee, Hong, "Revisiting Weight Averaging for Model Merging", 2024, arXiv:2412.12153.
    """
    return Centered(density, scale)
