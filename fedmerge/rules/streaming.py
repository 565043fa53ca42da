"""Mean-like rules over a stream of clients: one accumulator, however many come.

A rule streams where nothing before its combining stage looks across clients (equal weights, trims and drops
of each client by itself), where that stage needs no more than the sums over the clients (`mean()`,
`total()`), and where it works tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.rounding import round_once
from fedmerge.rules.stack import Draw, Stack
from fedmerge.rules.stages import Stage

CHUNK = 2**20
"""Coordinates of a client added at once: bounds the float64 temporaries to some 25 MB."""


@runtime_checkable
class FromSums(Protocol):
    """A combining stage that needs no more than sums over the clients."""

    def of_sums(self, total: Tensor, divisor: Tensor, counted: Tensor) -> Tensor:
        """The row from sums over the clients: of weight times value, of weights, and their number."""
        ...


def streams(stages: Sequence[Stage]) -> bool:
    """Whether a chain of these stages can merge a stream.

    Example:
        >>> from fedmerge.rules import dare, median, ties
        >>> streams(dare().stages), streams(ties().stages), streams(median().stages)
        (True, False, False)
    """
    return all(_streams(stage) for stage in stages)


def _streams(stage: Stage) -> bool:
    if stage.phase in ("weigh", "sparsify"):
        return bool(getattr(stage, "per_client", False)) and stage.scope == "tensor"
    return isinstance(stage, FromSums) if stage.phase == "combine" else stage.phase == "scale"


class Stream:
    """One tensor's merge under way: the weighted sum so far. Made by `Chain.begin`.

    Clients added in the order in which a stack holds them give the bits that the rule gives on the stack.

    Args:
        stages: of a chain that streams.
        draw: what random numbers are drawn for, the silos apart.
        dtype: of the values.
        device: where they are added up.

    Example:
        >>> from fedmerge.rules import fedavg
        >>> stream = fedavg().begin(Draw(0, 0, (), "x", (2,)), torch.float32)
        >>> stream.add("a", torch.tensor([1.0, 0.0]), weight=2)
        >>> stream.add("b", torch.tensor([4.0, 3.0]), weight=1)
        >>> stream.finish()
        tensor([2., 1.])
    """

    def __init__(
        self, stages: Sequence[Stage], draw: Draw, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        """Begin with nobody."""
        combine = next(index for index, stage in enumerate(stages) if stage.phase == "combine")
        needs_whole = [index for index, stage in enumerate(stages) if not stage.separable]
        split = needs_whole[-1] + 1 if needs_whole else 0
        self._whole, self._chunked = tuple(stages[:split]), tuple(stages[split:combine])
        self._combine, self._scale = stages[combine], tuple(stages[combine + 1 :])
        self._draw, self._dtype = draw, dtype
        coordinates = torch.Size(draw.shape).numel()
        self._total = torch.zeros(coordinates, dtype=torch.float64, device=device)
        self._divisor = torch.zeros(1, dtype=torch.float64, device=device)
        self._counted = torch.zeros(1, dtype=torch.int64, device=device)

    def add(
        self, silo: str, values: Tensor, weight: float, statistics: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add one client; its values need not be kept.

        Args:
            silo: its name, which random masks depend on.
            values: `(coordinates,)`.
            weight: raw, finite, from 0; nothing happens at 0.
            statistics: what the silo measured, `(coordinates,)` each, for stages that need it.

        Raises:
            RuleError: values of another length or dtype, or a weight out of range.
        """
        if tuple(values.shape) != tuple(self._total.shape) or values.dtype != self._dtype:
            raise RuleError(
                f"silo {silo!r}: values of {self._draw.tensor!r} are {values.dtype} {tuple(values.shape)}, "
                f"expected {self._dtype} {tuple(self._total.shape)}"
            )
        if not 0 <= weight < float("inf"):
            raise RuleError(f"silo {silo!r}: a weight is {weight}; weights are finite and not negative")
        if weight == 0:
            return
        device = self._total.device
        rows = {name: given.to(device)[None] for name, given in (statistics or {}).items()}
        weights = torch.full((1, 1), float(weight), dtype=torch.float64, device=device)
        with torch.no_grad():
            self._add(replace(self._draw, silos=(silo,)), Stack(values.to(device)[None], weights, rows))

    def _add(self, draw: Draw, stack: Stack) -> None:
        """As `weighted_sum` does for each row of a stack."""
        weights, each = stack.weights, False
        stack = run_stages(self._whole, stack, draw)
        for start in range(0, stack.coordinates, CHUNK):
            stop = min(start + CHUNK, stack.coordinates)
            chunk = run_stages(self._chunked, stack.columns(start, stop), draw.at(start))
            added = chunk.values[0].to(torch.float64, copy=True).mul_(chunk.weights[0])
            self._total[start:stop].add_(added)
            weights = chunk.weights
            each = each or weights.shape[1] > 1  # of the last chunk a single coordinate may be left
            if each:
                self._count(weights[0], slice(start, stop))
        if not each:
            self._count(weights[0], slice(None))

    def _count(self, weights: Tensor, place: slice) -> None:
        """Add up the weights, and who counts: one number each, or one a coordinate where weights differ."""
        if len(weights) > len(self._divisor):
            shape = self._total.shape
            self._divisor, self._counted = (
                sums.expand(shape).clone() for sums in (self._divisor, self._counted)
            )
        self._divisor[place].add_(weights)
        self._counted[place].add_((weights > 0).to(torch.int64))

    def finish(self) -> Tensor:
        """The merged values.

        Returns:
            `(coordinates,)` of the values' dtype, rounded once; 0 where nobody was added.
        """
        assert isinstance(self._combine, FromSums)  # Chain.begin asked `streams`
        with torch.no_grad():
            row = self._combine.of_sums(self._total, self._divisor, self._counted)
            one = torch.ones(1, 1, dtype=torch.float64, device=row.device)
            return round_once(
                run_stages(self._scale, Stack(row[None], one), self._draw).values[0], self._dtype
            )


def run_stages(stages: Sequence[Stage], stack: Stack, draw: Draw) -> Stack:
    """The stack that is left after all stages."""
    return reduce(lambda so_far, stage: _carried(stage(so_far, draw), so_far), stages, stack)


def _carried(stack: Stack, before: Stack) -> Stack:
    """The stack that a stage made, with the silos' statistics for the stages after it."""
    if not before.statistics or stack.statistics or stack.values.shape != before.values.shape:
        return stack
    return replace(stack, statistics=before.statistics)
