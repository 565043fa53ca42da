"""The true updates of the weights, whatever factors they came in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.context import Context
from fedmerge.adapters.spaces.layers import Layers, check_rank
from fedmerge.adapters.spaces.merging import merge_layers
from fedmerge.adapters.spaces.places import Dense
from fedmerge.adapters.spaces.space import Placed
from fedmerge.rules import Rule
from fedmerge.text import render


@dataclass(frozen=True)
class Product:
    """`lora_scaling * (B_i A_i - B_0 A_0)`, merged, and the best rank-k factors of received plus merged.

    The result does not depend on how a client factored its update. Rules with fixed coefficients (fedavg,
    task arithmetic) never form a matrix of the layer's size: they run in a core of rank (N + 1) r. Other
    elementwise rules work on the dense updates, tile by tile, one dense result at a time.

    Tensors that are no LoRA pair are treated as in `factors()`.

    Args:
        rank: the k of the truncation; None: the received adapter's rank, or, where nothing was received, the
            largest among the deltas. Next to a received adapter of larger rank the product is truncated to k
            and the factors keep the received shape, so that every silo can load them.

    Raises:
        RuleError: a rank that is no whole number from 1.

    Example:
        >>> str(Product()), str(Product(rank=8))
        ('product()', 'product(rank=8)')

    Reference:
        Singhal et al., FedEx-LoRA, 2024, arXiv 2410.09432 (why the mean of factors is not exact).
        Eckart, Young, The Approximation of One Matrix by Another of Lower Rank, 1936.
    """

    rank: int | None = None

    mixed_ranks: ClassVar[bool] = True
    grows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_rank("product", self.rank)

    def check_rule(self, rule: Rule) -> None:
        """Every rule will do."""

    def merge(
        self, received: Adapter | None, deltas: Sequence[Adapter], rule: Rule, context: Context
    ) -> Placed:
        """Merge the products of the LoRA pairs, and the other tensors as they are.

        Raises:
            AdapterMismatch: no LoRA settings, factors that do not fit them, or products beyond float64.
        """
        layers = Layers(received, deltas, context.device)
        return layers.placed(merge_layers(layers, rule, context, self.rank, Dense(layers)), self.rank)

    def __str__(self) -> str:
        return render("product", {"rank": self.rank}, {"rank": None})
