"""What every space is: a way into the place where the rule works, and back into the next adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.context import Context
from fedmerge.rules import Rule


@dataclass(frozen=True)
class Energy:
    """Squared Frobenius norm of one layer's merged update, and how much of it a truncation left out."""

    whole: float
    discarded: float

    @property
    def share(self) -> float:
        """Discarded over whole, 0 for a zero update."""
        return self.discarded / self.whole if self.whole else 0.0


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
    """

    @property
    def mixed_ranks(self) -> bool:
        """Whether deltas of different ranks can be merged where nothing was received."""
        ...

    def merge(
        self, received: Adapter | None, deltas: Sequence[Adapter], rule: Rule, context: Context
    ) -> Placed:
        """Merge deltas that belong together, in the order of `context.silos`."""
        ...
