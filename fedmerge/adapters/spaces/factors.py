"""A and B each by itself: what most federated LoRA code does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.apply import apply_rule, stepped, tensor_source
from fedmerge.adapters.context import Context
from fedmerge.adapters.spaces.space import Placed
from fedmerge.rules import Rule


@dataclass(frozen=True)
class Factors:
    """Every tensor by itself, LoRA factors too: next = received + merged.

    The mean of products is not the product of means, but from a shared start it is close: a relative error of
    0.0925 against 0.0921 for the best rank-16 (8 silos, 4096 x 4096). For adapters trained apart it is not
    (0.93).

    Example:
        >>> str(Factors())
        'factors()'

    Reference:
        Zhang et al., Towards Building the Federated GPT: Federated Instruction Tuning, 2023, arXiv
        2305.05644.
    """

    mixed_ranks: ClassVar[bool] = False

    def merge(
        self, received: Adapter | None, deltas: Sequence[Adapter], rule: Rule, context: Context
    ) -> Placed:
        """Merge tensor by tensor."""
        model = deltas[0] if received is None else received
        sources = [
            tensor_source(name, [delta.tensors[name] for delta in deltas]) for name in sorted(model.tensors)
        ]
        merged, steps = {}, {}
        for source, values in apply_rule(rule, sources, context):
            start = None if received is None else received.tensors[source.name]
            merged[source.name], steps[source.name] = stepped(start, values, model.tensors[source.name].dtype)
        return Placed(replace(model, tensors=merged), replace(model, tensors=steps))

    def __str__(self) -> str:
        return "factors()"
