"""The true updates of the weights, whatever factors they came in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, Lora, rounded, working_dtype
from fedmerge.adapters.apply import Source, apply_rule, stepped, tensor_source
from fedmerge.adapters.context import Context
from fedmerge.adapters.lowrank import LowRank, truncate_dense, truncate_product
from fedmerge.adapters.pairs import Pair, split_names
from fedmerge.adapters.refactor import balanced_factors
from fedmerge.adapters.spaces.space import Energy, Placed
from fedmerge.adapters.updates import lora_settings, updates_of, widest_lora
from fedmerge.errors import AdapterMismatch, RuleError
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

    def __post_init__(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        if self.rank is not None and (not whole or self.rank < 1):
            raise RuleError(f"product(): rank is {self.rank!r}, expected a whole number from 1, or None")

    def merge(
        self, received: Adapter | None, deltas: Sequence[Adapter], rule: Rule, context: Context
    ) -> Placed:
        """Merge the products of the LoRA pairs, and the other tensors as they are.

        Raises:
            AdapterMismatch: no LoRA settings, factors that do not fit them, or products beyond float64.
        """
        layers = _Layers(received, deltas, context.device)
        started = widest_lora(deltas) if received is None else lora_settings(received)
        rank = self.rank or started.rank
        lora = started.of_rank(rank if received is None else max(rank, started.rank))
        tensors: dict[str, Tensor] = {}
        energies: dict[str, Energy] = {}
        for name, merged in _merged(layers, rule, context, rank):
            if isinstance(merged, LowRank):
                tensors |= layers.factors(name, merged, lora)
                energies[name] = Energy(merged.energy, merged.discarded)
            else:
                start = None if received is None else received.tensors[name]
                tensors[name], _ = stepped(start, merged, layers.model.tensors[name].dtype)
        in_order = {name: tensors[name] for name in sorted(tensors)}
        return Placed(replace(layers.model, tensors=in_order, lora=lora), None, energies, rank)

    def __str__(self) -> str:
        return render("product", {"rank": self.rank}, {"rank": None})


class _Layers:
    """The pairs and other tensors of one merge; float64 copies of the two last used pairs, no more."""

    def __init__(self, received: Adapter | None, deltas: Sequence[Adapter], device: torch.device) -> None:
        self.model = deltas[0] if received is None else received
        self.deltas = deltas
        pairs, self.others = split_names(self.model.tensors)
        self.pairs = {pair.module: pair for pair in pairs}
        self.updates = lru_cache(maxsize=2)(
            lambda name: updates_of(self.pairs[name], received, deltas, device)
        )

    def products(self) -> list[Source]:
        """The dense updates, as a rule sees them: values are made where they are asked for."""
        return [self._product(name, pair) for name, pair in self.pairs.items()]

    def _product(self, name: str, pair: Pair) -> Source:
        a, b = self.model.tensors[pair.a], self.model.tensors[pair.b]
        dtype = working_dtype(a.dtype, b.dtype)
        shape = (b.shape[0], a.shape[-1])
        return Source(name, shape, dtype, lambda *span: self.updates(name).values(*span))

    def tensors(self) -> list[Source]:
        """The tensors that are no LoRA pair."""
        return [tensor_source(name, [delta.tensors[name] for delta in self.deltas]) for name in self.others]

    def precision(self, name: str) -> float:
        """Singular values below this share of the largest are rounding of the adapter's dtype."""
        a = self.model.tensors[self.pairs[name].a]
        return max(torch.finfo(working_dtype(a.dtype)).eps, a.shape[-1] * torch.finfo(torch.float64).eps)

    def factors(self, name: str, low: LowRank, lora: Lora) -> dict[str, Tensor]:
        """A merged product as the two factors of the next adapter."""
        pair, updates = self.pairs[name], self.updates(name)
        received = updates.received[0]
        candidates = received if len(received) == lora.rank else updates.bases()[1]
        a, b = balanced_factors(low, lora.scaling, lora.rank, candidates)
        dtypes = self.model.tensors[pair.a].dtype, self.model.tensors[pair.b].dtype
        return {pair.a: rounded(a, dtypes[0]).cpu(), pair.b: rounded(b, dtypes[1]).cpu()}


def _merged(
    layers: _Layers, rule: Rule, context: Context, rank: int
) -> Iterator[tuple[str, LowRank | Tensor]]:
    """Each module's product of received plus merged, truncated, and each other tensor's merged values."""
    coefficients = rule.linear(context.weights)
    sources = layers.tensors()
    if coefficients is None:
        sources = layers.products() + sources
    else:
        for name in layers.pairs:
            updates = layers.updates(name)
            left, right = updates.bases()
            core = updates.core(coefficients.tolist())
            with _naming(name):
                low = truncate_product(left, core, right, rank, layers.precision(name))
            yield name, low
    for source, values in apply_rule(rule, sources, context):
        if source.name not in layers.pairs:
            yield source.name, values
            continue
        updates = layers.updates(source.name)
        whole = updates.before() + values.to(torch.float64)
        with _naming(source.name):
            low = truncate_dense(whole, rank, layers.precision(source.name), updates.bases()[1])
        yield source.name, low


@contextmanager
def _naming(module: str) -> Iterator[None]:
    """Say whose product it was that overflowed."""
    try:
        yield
    except OverflowError:
        raise AdapterMismatch(
            f"the merge overflows: the product of {module!r} is beyond float64, although inputs are finite"
        ) from None
