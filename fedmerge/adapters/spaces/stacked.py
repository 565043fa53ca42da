"""Concatenation: the exact merge, whose rank is the sum of the silos'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.context import Context
from fedmerge.adapters.spaces.exact import check_coefficients, exact_products
from fedmerge.adapters.spaces.layers import Layers, merge_others
from fedmerge.adapters.spaces.merging import coefficients_of
from fedmerge.adapters.spaces.space import Energy, Placed
from fedmerge.rules import Rule


@dataclass(frozen=True)
class Stacked:
    """`sum_i c_i tau_i` as `[B_1, ..., B_N] [c_1 A_1; ...; c_N A_N]`: nothing is approximated.

    For rules that come down to a coefficient for each silo (fedavg, task_arithmetic, model_stock, krum). The
    rank grows to the sum of the ranks, and by the received adapter's where there is one: in a run of several
    rounds it would grow from round to round, so it is for one round or offline.

    Tensors that are no LoRA pair are treated as in `factors()`.

    Example:
        >>> str(Stacked())
        'stacked()'

    Reference:
        Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
        Adaptations, 2024, arXiv 2409.05976.
    """

    mixed_ranks: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    def check_rule(self, rule: Rule) -> None:
        """Raise RuleError unless the rule comes down to a coefficient for each silo."""
        check_coefficients(self, rule)

    def merge(
        self, received: Adapter | None, deltas: Sequence[Adapter], rule: Rule, context: Context
    ) -> Placed:
        """Concatenate the LoRA pairs, and merge the other tensors as they are.

        Raises:
            RuleError: a rule without coefficients.
            AdapterMismatch: no LoRA settings, factors that do not fit them, or products beyond float64.
        """
        self.check_rule(rule)
        layers = Layers(received, deltas, context.device)
        rank = layers.total_rank
        lora = layers.started.of_rank(rank)
        tensors: dict[str, Tensor] = {}
        energies: dict[str, Energy] = {}
        known = coefficients_of(layers, rule, context)
        for name, coefficients, energy in exact_products(self, layers, rule, known):
            updates = layers.updates(name)
            left, right = updates.bases()
            core = updates.core(coefficients.tolist())
            tensors |= layers.named(name, core @ right / lora.scaling, left)
            energies[name] = energy
        for name, values in merge_others(rule, layers.tensors(), context, known):
            tensors[name] = layers.stepped(name, values)
        return Placed(layers.adapter(tensors, lora), None, energies, rank)

    def __str__(self) -> str:
        return "stacked()"
