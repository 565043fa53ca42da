"""What every space is: a way into the place where the rule works, and back into the next adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.context import Context
from fedmerge.rules import Rule


@dataclass(frozen=True)
class Energy:
    """What became of one layer's merged update on its way into the next adapter.

    Args:
        whole: squared Frobenius norm of received plus merged, before a truncation.
        discarded: the part of it that the truncation left out.
        step: squared Frobenius norm of the merged update alone.
        effective_rank: of the next adapter's product (LowRank.effective_rank).
    """

    whole: float
    discarded: float
    step: float = 0.0
    effective_rank: float = 0.0

    @property
    def share(self) -> float:
        """Discarded over whole, 0 for a zero update."""
        return self.discarded / self.whole if self.whole else 0.0

    @property
    def error(self) -> float:
        """Aggregation error: how far the step as broadcast is from the merged update, relative Frobenius.

        0 where nothing was left out; above 1 where a truncation costs more than the round's step. Where the
        merged update is zero, relative to the whole.
        """
        whole = self.step or self.whole
        return math.sqrt(self.discarded / whole) if whole else 0.0


@dataclass(frozen=True, eq=False)
class Placed:
    """What a space gives back.

    Args:
        adapter: the next adapter.
        delta: next minus received, where the space is that of the factors themselves; else None.
        energies: by module, where the space truncates.
        rank: what LoRA products were truncated to, where the space truncates.
    """

    adapter: Adapter
    delta: Adapter | None
    energies: Mapping[str, Energy] = field(default_factory=dict)
    rank: int | None = None


class Space(Protocol):
    """`next = back(received, rule(into(received, deltas), weights))`.

    Attributes:
        mixed_ranks: whether deltas of different ranks can be merged where nothing was received.
        grows: whether the next adapter's rank is larger than the received one's, each time again.
    """

    @property
    def mixed_ranks(self) -> bool:
        """Whether deltas of different ranks can be merged where nothing was received."""
        ...

    @property
    def grows(self) -> bool:
        """Whether the next adapter's rank is larger than the received one's, each time again."""
        ...

    def check_rule(self, rule: Rule) -> None:
        """Raise RuleError where the rule surely does not work here; ask before a round is spent."""
        ...

    def merge(
        self, received: Adapter | None, deltas: Sequence[Adapter], rule: Rule, context: Context
    ) -> Placed:
        """Merge deltas that belong together, in the order of `context.silos`."""
        ...
