"""The aligned space: small cores in which like is compared with like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.context import Context
from fedmerge.adapters.cores import published
from fedmerge.adapters.spaces.layers import Layers, check_rank, naming
from fedmerge.adapters.spaces.merging import merge_layers
from fedmerge.adapters.spaces.places import Cores
from fedmerge.adapters.spaces.space import Placed
from fedmerge.errors import RuleError
from fedmerge.rules import Rule
from fedmerge.rules.spectral import Layer, aligned
from fedmerge.text import render


@dataclass(frozen=True)
class Core:
    """`tau_i = L M_i R`: the rule merges the small M_i, and `L M R` is the merged update.

    L and R are orthonormal and span what all silos moved; nothing is lost on the way in. Rules that compare
    entries (ties, median) compare the same pair of directions of all silos. With a linear rule it is
    `product()`; with an elementwise rule it is far cheaper, as no matrix of the layer's size is formed, and
    another merge: a coordinate is a pair of directions, not an entry of the weight.

    Tensors that are no LoRA pair are treated as in `factors()`.

    Args:
        rank: the k of the truncation, as in `product()`.
        like: None: each silo is canonicalised first by the thin SVD of its update, so that the result does
            not depend on how it factored it. "paper": L and R are the singular vectors of the stacked factors
            as they came; an invertible R between the factors moved a TIES merge by 98 %.

    Raises:
        RuleError: a rank that is no whole number from 1, or another `like`.

    Example:
        >>> str(Core()), str(Core(rank=8, like="paper"))
        ('core()', "core(rank=8, like='paper')")

    Reference:
        Panariello et al., Accurate and Efficient Low-Rank Model Merging in Core Space, 2025, arXiv
        2509.17786.
    """

    rank: int | None = None
    like: str | None = None

    mixed_ranks: ClassVar[bool] = True
    grows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_rank("core", self.rank)
        if self.like not in (None, "paper"):
            raise RuleError(f"core(): like is {self.like!r}, expected 'paper' or None")

    def check_rule(self, rule: Rule) -> None:
        """Every rule will do."""

    def merge(
        self, received: Adapter | None, deltas: Sequence[Adapter], rule: Rule, context: Context
    ) -> Placed:
        """Merge the cores of the LoRA pairs, and the other tensors as they are.

        Raises:
            AdapterMismatch: no LoRA settings, factors that do not fit them, or products beyond float64.
        """
        layers = Layers(received, deltas, context.device)

        def align(name: str) -> Layer:
            weights = context.weights.to(context.device)
            with naming(name):
                if self.like == "paper":
                    return published(layers.updates(name), weights, layers.direction(name))
                return aligned(layers.layer(name), weights)

        return layers.placed(merge_layers(layers, rule, context, self.rank, Cores(layers, align)), self.rank)

    def __str__(self) -> str:
        return render("core", {"rank": self.rank, "like": self.like}, {"rank": None, "like": None})
