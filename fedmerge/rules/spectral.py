"""Matrix rules: what they are given, what they give back, and the steps that they share.

A layer is given as small cores between orthonormal bases, so that a rule on LoRA updates of 4096 x 4096 works
on 128 x 128. Everything here is float64, and depends on the updates alone, not on the bases they came in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.combine import Mean
from fedmerge.rules.compose import Chain, Rule, round_once
from fedmerge.rules.negation import negated_by
from fedmerge.rules.stack import Draw, Stack
from fedmerge.text import render

PRECISION = 1e-10
"""Singular values below this share of the largest are rounding, where values came in float64."""


@dataclass(frozen=True, eq=False)
class Factored:
    """A merged update as a product of two factors that is not formed.

    Args:
        left: float64 `(outputs, k)`.
        right: float64 `(k, inputs)`.
    """

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """The update itself, `(outputs, inputs)`."""
        return self.left @ self.right


@dataclass(frozen=True, eq=False)
class Layer:
    """The clients' updates of one 2-D tensor: client i's is `left @ cores[i] @ right`.

    Args:
        cores: float64 `(clients, p, q)`.
        left: `(outputs, p)` with orthonormal columns, or None for the identity.
        right: `(q, inputs)` with orthonormal rows, or None for the identity.
        precision: singular values below this share of the largest are rounding, and no direction.

    Example:
        >>> layer = Layer(torch.ones(2, 3, 4, dtype=torch.float64))
        >>> layer.clients, layer.shape
        (2, (3, 4))
    """

    cores: Tensor
    left: Tensor | None = None
    right: Tensor | None = None
    precision: float = PRECISION

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.cores)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the updates, (outputs, inputs)."""
        rows, columns = self.cores.shape[1:]
        return (
            rows if self.left is None else self.left.shape[0],
            columns if self.right is None else self.right.shape[1],
        )

    def lift_left(self, columns: Tensor) -> Tensor:
        """From coordinates `(p, k)` to `(outputs, k)`."""
        # Not left @ columns: this order took a quarter of the time where left lies by columns.
        return columns if self.left is None else (columns.T @ self.left.T).T

    def lift_right(self, rows: Tensor) -> Tensor:
        """From coordinates `(k, q)` to `(k, inputs)`."""
        return rows if self.right is None else rows @ self.right

    def lift(self, columns: Tensor, rows: Tensor) -> Factored:
        """`columns @ rows` of the core as an update."""
        return Factored(self.lift_left(columns), self.lift_right(rows))

    def placed(self, core: Tensor) -> Factored:
        """The update of a core `(p, q)`."""
        if self.right is not None:
            return Factored(self.lift_left(core), self.right)
        identity = torch.eye(len(core), dtype=core.dtype, device=core.device)
        return Factored(identity if self.left is None else self.left, core)

    def turned(self, left: Tensor, right: Tensor) -> Layer:
        """The same updates between narrower bases inside these, the signs of the bases fixed.

        Args:
            left: `(p, k)` with orthonormal columns.
            right: `(l, q)` with orthonormal rows.
        """
        columns, rows = self.lift_left(left), self.lift_right(right)
        signs, across = column_signs(columns), column_signs(rows.T)
        cores = (left * signs).T @ self.cores @ (right * across.unsqueeze(1)).T
        return Layer(cores, columns * signs, rows * across.unsqueeze(1), self.precision)


class MatrixRule(ABC):
    """What all matrix rules share; each is a frozen dataclass with a `name` and `merge_cores`.

    Called with a stack, as an elementwise rule is, it works on the dense matrices of a 2-D tensor and leaves
    all other tensors to `others`, the weighted mean.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "matrix"
    scope: ClassVar[str] = "tensor"
    separable: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    others: ClassVar[Rule] = Chain((Mean(),), "fedavg()")

    def merge_layer(self, layer: Layer, weights: Tensor, draw: Draw) -> Factored:
        """Merge the clients' updates of one 2-D tensor.

        Args:
            layer: the updates, float64.
            weights: raw, `(clients,)`; a client of weight 0 is left out.
            draw: what random numbers are drawn for; a silo for each client.

        Returns:
            The merged update.

        Raises:
            RuleError: weights that are negative or not finite, or more or fewer than clients.
            OverflowError: updates beyond float64.
        """
        weights = weights.to(layer.cores)
        if weights.shape != (layer.clients,) or len(draw.silos) != layer.clients:
            raise RuleError(
                f"{self}: the layer has {layer.clients} clients, but there are {weights.numel()} weights and "
                f"{len(draw.silos)} silos in the draw"
            )
        if not bool(((weights >= 0) & weights.isfinite()).all()):
            raise RuleError(f"{self}: weights are {weights.tolist()}; weights are finite and not negative")
        counted = weights.nonzero().flatten()
        if len(counted) == 0:
            rows, columns = layer.shape
            return Factored(layer.cores.new_zeros(rows, 0), layer.cores.new_zeros(0, columns))
        if len(counted) < layer.clients:
            layer = replace(layer, cores=layer.cores[counted])
            weights = weights[counted]
            draw = replace(draw, silos=tuple(draw.silos[client] for client in counted.tolist()))
        with torch.no_grad():
            return self.merge_cores(layer, weights, draw)

    @abstractmethod
    def merge_cores(self, layer: Layer, weights: Tensor, draw: Draw) -> Factored:
        """The rule itself; at least one client, all weights above 0."""

    def __call__(self, stack: Stack, draw: Draw) -> Tensor:
        """Merge one tensor, `(clients, coordinates)` to `(coordinates,)`."""
        if stack.weights.shape[1] != 1:
            raise RuleError(f"{self} takes one weight for each client, not one for each coordinate")
        if len(draw.shape) != 2:
            return self.others(stack, draw)
        cores = stack.values.to(torch.float64).reshape(stack.clients, *draw.shape)
        layer = Layer(cores, precision=max(PRECISION, torch.finfo(stack.values.dtype).eps))
        try:
            merged = self.merge_layer(layer, stack.weights[:, 0], draw).dense()
        except OverflowError:
            merged = cores[0] * torch.inf  # beyond float64, which the caller finds as with any other rule
        return round_once(merged.reshape(-1), stack.values.dtype)

    def linear(self, weights: Tensor) -> Tensor | None:
        """None: the values decide."""
        return None

    def __str__(self) -> str:
        """The rule as text that `parse_rule` reads back."""
        knobs = fields(self)  # type: ignore[arg-type]
        given = {knob.name: getattr(self, knob.name) for knob in knobs}
        return render(self.name, given, {knob.name: knob.default for knob in knobs})


@dataclass(frozen=True, eq=False)
class Triple:
    """The singular triples of one client's core above rounding.

    Args:
        left: `(p, k)`.
        values: falling, `(k,)`.
        right: `(k, q)`.
    """

    left: Tensor
    values: Tensor
    right: Tensor


def singular(matrix: Tensor, precision: float) -> Triple:
    """The thin SVD of a matrix without the directions that are only rounding.

    Raises:
        OverflowError: the matrix is not finite.

    Example:
        >>> triple = singular(torch.ones(3, 3, dtype=torch.float64), 1e-10)
        >>> round(float(triple.values[0]), 6), len(triple.values)
        (3.0, 1)
    """
    if not bool(matrix.isfinite().all()):
        raise OverflowError
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    count = int((values > precision * values[:1]).sum()) if values.numel() else 0
    return Triple(left[:, :count], values[:count], right[:count])


def shares(weights: Tensor) -> Tensor:
    """Weights over their sum, `(clients,)`."""
    return weights / weights.sum()


def weighed(layer: Layer, weights: Tensor) -> Tensor:
    """The cores as they count: `N w_i / sum w` times each, so that their sum is the total of the updates."""
    return (shares(weights) * layer.clients)[:, None, None] * layer.cores


def column_signs(columns: Tensor) -> Tensor:
    """+1 or -1 for each column, so that its entry of largest magnitude becomes positive; `(k,)`."""
    if columns.numel() == 0:
        return columns.new_ones(columns.shape[1])
    top = columns.abs().argmax(dim=0, keepdim=True)
    return torch.where(columns.gather(0, top)[0] < 0, -1.0, 1.0).to(columns.dtype)


def aligned(layer: Layer, weights: Tensor) -> Layer:
    """The updates between bases that all clients share, and that only the updates decide.

    Client i is canonicalised first by the thin SVD of its update, `tau_i = (U_i S_i^1/2) (S_i^1/2 V_i)`; the
    bases are the left singular vectors of `[v_1 U_1 S_1^1/2, ...]` and the right ones of `[v_1 S_1^1/2 V_1;
    ...]`, with `v_i^2 = w_i N / sum w`, so that a client of weight 2 equals two of weight 1.

    Returns:
        A layer whose cores are `(clients, R, R')`, R and R' at most the sum of the clients' ranks.
    """
    roots = (shares(weights) * layer.clients).sqrt()
    triples = [singular(core, layer.precision) for core in layer.cores]
    scales = [root * triple.values.sqrt() for root, triple in zip(roots, triples, strict=True)]
    left = torch.cat([one.left * scale for one, scale in zip(triples, scales, strict=True)], dim=1)
    right = torch.cat([scale.unsqueeze(1) * one.right for one, scale in zip(triples, scales, strict=True)])
    return layer.turned(singular(left, layer.precision).left, singular(right, layer.precision).right)


def partial_isometry(columns: Tensor, precision: float) -> Tensor:
    """The nearest matrix of orthonormal columns (Procrustes): `X Y` of the SVD `X D Y`.

    Directions of singular value 0 take no part: there is no nearest one for them.
    """
    triple = singular(columns, precision)
    return triple.left @ triple.right


def merge_coordinates(rule: Rule, cores: Tensor, weights: Tensor, draw: Draw) -> Tensor:
    """Merge equally shaped coordinates of all clients, `(clients, k, l)` to `(k, l)`, by any rule.

    Args:
        rule: of any kind but "by_name".
        cores: float64.
        weights: raw, `(clients,)`.
        draw: of the layer; random masks depend on its tensor's name and on the place within the cores.
    """
    draw = replace(draw, shape=tuple(cores.shape[1:]), offset=0)
    stack = Stack(cores.flatten(1), weights.unsqueeze(1))
    return rule(stack, draw).reshape(cores.shape[1:])


def inner_rule(owner: str, rule: object) -> Rule:
    """Check the rule that a matrix rule applies to coordinates.

    Raises:
        RuleError: no rule, or one that must see more than one tensor.
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"{owner}: rule={rule!r} is no rule; write rule=ties(density=0.2), say")
    if rule.kind == "by_name":
        raise RuleError(f"{owner}: {rule} chooses by name; put {owner} inside it, not the other way round")
    if rule.scope == "adapter":
        raise RuleError(f"{owner}: {rule} wants the whole adapter at once, but layers are merged one by one")
    if wanted := sorted(getattr(rule, "needs", ())):
        raise RuleError(f"{owner}: {rule} needs {' and '.join(wanted)}, which coordinates do not have")
    if negated := sorted(negated_by(rule)):
        raise RuleError(
            f"{owner}: {rule} negates {', '.join(negated)}, but tensors that are no matrix get a plain mean, "
            "in which they would count the other way"
        )
    return rule
