"""What the spaces share that keep the merged update exactly, at a rank that grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedmerge.adapters.spaces.layers import Layers
from fedmerge.adapters.spaces.space import Energy, Space
from fedmerge.errors import RuleError
from fedmerge.rules import Rule, resolve
from fedmerge.rules.negation import for_silos, negated_by


def check_coefficients(space: Space, rule: Rule) -> None:
    """Refuse a rule that looks at entries; one by name is only known once there are names.

    Raises:
        RuleError: the rule has no coefficient for each silo.
    """
    names = tuple(sorted(negated_by(rule))) or ("a", "b")
    ones = torch.ones(len(names), dtype=torch.float64)
    settled = for_silos(rule, names).linear(ones) is not None
    if not settled and rule.kind not in ("coefficients", "by_name"):
        raise _refusal(space, rule)


def _refusal(space: Space, rule: Rule) -> RuleError:
    return RuleError(
        f"{space} keeps the silos' factors as they are, so it takes rules with one coefficient for each silo "
        f"(fedavg, task_arithmetic, model_stock); {rule} looks further: use product() or core()"
    )


def exact_products(
    space: Space, layers: Layers, rule: Rule, known: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Energy]]:
    """Each module, its coefficients, and what the whole product is like.

    Args:
        space: that asks.
        layers: of the merge.
        rule: for all modules.
        known: its coefficients by module.

    Raises:
        RuleError: a rule that has no coefficients for a module.
        AdapterMismatch: a product beyond float64.
    """
    for name in layers.pairs:
        if name not in known:
            raise _refusal(space, resolve(rule, name))
        whole = layers.weighted(name, known[name], layers.total_rank)
        yield name, known[name], Energy(whole.low.energy, 0.0, whole.step, whole.low.effective_rank)
