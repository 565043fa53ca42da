"""Rules that come down to one coefficient for each client, over the tensors and modules of an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmerge.adapters.batches import in_tiles
from fedmerge.adapters.context import Context
from fedmerge.adapters.grams import gram_of_values
from fedmerge.errors import RuleError
from fedmerge.rules import Rule, resolve
from fedmerge.rules.compose import CoefficientsRule
from fedmerge.rules.negation import for_silos
from fedmerge.rules.rounding import round_once

if TYPE_CHECKING:
    from fedmerge.adapters.apply import Source

TILE = 1 << 20
"""Coordinates added up at once: 8 MB in float64, of one client at a time."""

Gram = Callable[[], Tensor]
"""Gives the clients' inner products in one tensor or module, `(clients, clients)`, when it is asked."""


def decide(rule: Rule, grams: Mapping[str, Gram], context: Context) -> dict[str, Tensor]:
    """The coefficients of each tensor or module whose rule has them without seeing values.

    A linear rule has them from the weights; one of kind "coefficients" from the Gram matrix of each unit, or,
    where its scope is the adapter, from the sum of the Gram matrices of all units that fall to it.

    Args:
        rule: any rule, one by name too.
        grams: by name of the unit; asked only where a rule needs them, each once.
        context: of the merge.

    Returns:
        By name, float64 `(clients,)` on the CPU; units of other rules are left out.

    Raises:
        RuleError: clients that the rule can't treat.

    Example:
        >>> from fedmerge.rules import parse_rule
        >>> context = Context(torch.ones(3, dtype=torch.float64), ("a", "b", "c"))
        >>> far = torch.diag(torch.tensor([1.0, 1.0, 81.0], dtype=torch.float64))
        >>> decide(parse_rule("norm_clipping()"), {"x": lambda: far}, context)["x"].tolist()
        [0.3333333333333333, 0.3333333333333333, 0.037037037037037035]
    """
    decided: dict[str, Tensor] = {}
    together: list[tuple[CoefficientsRule, list[str]]] = []
    for name, gram in grams.items():
        resolved = for_silos(resolve(rule, name), context.silos)
        linear = resolved.linear(context.weights)
        by_gram = None if linear is not None else _by_gram(resolved)
        if linear is not None:
            decided[name] = linear
        elif by_gram is not None and by_gram.scope == "tensor":
            decided[name] = by_gram.coefficients(gram(), context.weights)
        elif by_gram is not None:
            _members(together, by_gram).append(name)
    for shared, names in together:
        total = reduce(torch.add, (grams[name]() for name in names))
        decided |= dict.fromkeys(names, shared.coefficients(total, context.weights))
    return decided


def _by_gram(rule: Rule) -> CoefficientsRule | None:
    """The rule, where it decides by inner products."""
    if rule.kind != "coefficients":
        return None
    if not isinstance(rule, CoefficientsRule):
        raise RuleError(f"{rule} is of kind 'coefficients', but has no method coefficients(gram, weights)")
    return rule


def _members(together: list[tuple[CoefficientsRule, list[str]]], rule: CoefficientsRule) -> list[str]:
    """The names that fall to a rule so far."""
    for known, names in together:
        if known == rule:
            return names
    together.append((rule, []))
    return together[-1][1]


def source_gram(source: Source, context: Context) -> Gram:
    """The Gram matrix of one tensor, not yet computed."""
    return partial(gram_of_values, source.values, len(context.silos), source.coordinates, context.device)


def merge_by_coefficients(
    rule: Rule, sources: Sequence[Source], context: Context
) -> Iterator[tuple[Source, Tensor]]:
    """Merge tensors by a rule of kind "coefficients", in two passes over their values.

    Args:
        rule: of that kind, for all of these tensors.
        sources: the tensors; to a rule of scope "adapter" they are the whole adapter.
        context: of the merge.

    Yields:
        The source, and its merged values in its dtype and shape, on the context's device.

    Raises:
        RuleError: clients that the rule can't treat.
    """
    known = decide(rule, {source.name: source_gram(source, context) for source in sources}, context)
    for source in sources:
        yield source, weighted_sum(source, known[source.name], context)


def weighted_sum(source: Source, coefficients: Tensor, context: Context) -> Tensor:
    """`sum_i c_i tau_i` of one tensor: in float64, in the order of the clients, rounded once.

    Clients of coefficient 0 are not read.

    Args:
        source: the tensor.
        coefficients: float64 `(clients,)`.
        context: of the merge.

    Returns:
        Of the source's dtype and shape, on the context's device.
    """
    merged = torch.empty(source.coordinates, dtype=source.dtype, device=context.device)
    counted = [(client, factor) for client, factor in enumerate(coefficients.tolist()) if factor]

    def add_up(start: int, stop: int) -> None:
        total = torch.zeros(stop - start, dtype=torch.float64, device=context.device)
        for client, factor in counted:
            values = source.values(client, start, stop).to(context.device)
            total.add_(values.to(torch.float64, copy=True).mul_(factor))
        merged[start:stop] = round_once(total, source.dtype)

    in_tiles(source.coordinates, TILE, add_up, divisible=True)
    return merged.reshape(source.shape)
