"""The mean of the factors, and beside it, as more factors, what it lacks of the mean of the products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.context import Context
from fedmerge.adapters.lowrank import truncate_product
from fedmerge.adapters.refactor import balanced_factors
from fedmerge.adapters.spaces.exact import check_coefficients, exact_products
from fedmerge.adapters.spaces.layers import Layers, check_rank, merge_others, naming
from fedmerge.adapters.spaces.merging import coefficients_of
from fedmerge.adapters.spaces.space import Energy, Placed
from fedmerge.adapters.updates import Updates
from fedmerge.rules import Rule
from fedmerge.rules.negation import for_silos
from fedmerge.rules.spectral import shares
from fedmerge.text import render


@dataclass(frozen=True)
class Residual:
    """The weighted mean of the factors, and in further ranks what it lacks of the merged product.

    `s B A + E` with `A = A_0 + sum_i u_i dA_i`, B alike, `u_i = w_i / sum w`, and E what is missing to the
    received product plus `sum_i c_i tau_i`. Under the mean E is `s sum_i u_i (B_i - B) (A_i - A)`, of rank at
    most (N - 1) r. The authors fold E into every silo's base; here it rides along as factors, so that the
    result is one adapter of a higher rank, for one round or offline.

    For rules that come down to a coefficient for each silo. Tensors that are no LoRA pair are treated as in
    `factors()`.

    Args:
        rank: of the rest; None keeps all of it, and the merge is exact.

    Raises:
        RuleError: a rank that is no whole number from 1.

    Example:
        >>> str(Residual()), str(Residual(rank=8))
        ('residual()', 'residual(rank=8)')

    Reference:
        Singhal et al., FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation
        Models, 2024, arXiv 2410.09432.
    """

    rank: int | None = None

    mixed_ranks: ClassVar[bool] = False
    grows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rank("residual", self.rank)

    def check_rule(self, rule: Rule) -> None:
        """Raise RuleError unless the rule comes down to a coefficient for each silo."""
        check_coefficients(self, rule)

    def merge(
        self, received: Adapter | None, deltas: Sequence[Adapter], rule: Rule, context: Context
    ) -> Placed:
        """Average the factors, add the rest, and merge the other tensors as they are.

        Raises:
            RuleError: a rule without coefficients.
            AdapterMismatch: no LoRA settings, factors that do not fit them, or products beyond float64.
        """
        self.check_rule(rule)
        layers = Layers(received, deltas, context.device)
        parts = shares(context.weights).to(context.device)
        spare = self._spare(layers, rule, context)
        lora = layers.started.of_rank(layers.started.rank + spare)
        tensors: dict[str, Tensor] = {}
        energies: dict[str, Energy] = {}
        known = coefficients_of(layers, rule, context)
        for name, coefficients, energy in exact_products(self, layers, rule, known):
            updates, precision = layers.updates(name), layers.precision(name)
            a, b, discarded = _with_rest(updates, coefficients, parts, spare, precision)
            tensors |= layers.named(name, a, b)
            spread = truncate_product(b, torch.eye(len(a)).to(a), a, len(a), precision).effective_rank
            energies[name] = replace(energy, discarded=discarded, effective_rank=spread)
        for name, values in merge_others(rule, layers.tensors(), context, known):
            tensors[name] = layers.stepped(name, values)
        return Placed(layers.adapter(tensors, lora), None, energies, lora.rank)

    def _spare(self, layers: Layers, rule: Rule, context: Context) -> int:
        """Rank of the rest: as given, or what is surely enough."""
        mean, most = for_silos(rule, context.silos).linear(context.weights), layers.total_rank
        if mean is not None and torch.allclose(mean, shares(context.weights), rtol=1e-12, atol=0):
            most = (len(context.silos) - 1) * layers.started.rank
        return min(self.rank or most, most)

    def __str__(self) -> str:
        return render("residual", {"rank": self.rank}, {"rank": None})


def _with_rest(
    updates: Updates, coefficients: Tensor, parts: Tensor, spare: int, precision: float
) -> tuple[Tensor, Tensor, float]:
    """A and B of the mean and of the rest beside it, and the energy that the rest's truncation lost."""
    left, right = updates.bases()
    rank = len(updates.deltas[0][0])
    identity = torch.eye(rank, dtype=left.dtype, device=left.device)
    blocks = [identity] * bool(len(updates.received[0])) + [part * identity for part in parts]
    mean, scaling = torch.cat(blocks), updates.scalings[0]
    core = updates.core(coefficients.tolist()) - scaling * mean @ mean.T
    with naming(updates.module):
        low = truncate_product(left, core, right, max(spare, 1), precision)
    a, b = mean.T @ right, left @ mean
    if not spare:
        return a, b, 0.0
    rest_a, rest_b = balanced_factors(low, scaling, spare, right)
    return torch.cat([a, rest_a]), torch.cat([b, rest_b], dim=1), low.discarded
