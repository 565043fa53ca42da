"""What the spaces that work on LoRA products share: modules in, next factors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, Lora, rounded, working_dtype
from fedmerge.adapters.apply import Source, apply_rule, stepped, tensor_source
from fedmerge.adapters.coefficients import weighted_sum
from fedmerge.adapters.context import Context
from fedmerge.adapters.cores import layer_of
from fedmerge.adapters.lowrank import LowRank, orthonormal, truncate_between, truncate_product
from fedmerge.adapters.pairs import split_names
from fedmerge.adapters.refactor import balanced_factors
from fedmerge.adapters.spaces.space import Energy, Placed
from fedmerge.adapters.updates import lora_settings, updates_of, widest_lora
from fedmerge.errors import AdapterMismatch, RuleError
from fedmerge.rules import Rule, resolve
from fedmerge.rules.spectral import PRECISION, Factored, Layer, MatrixRule

DENSE_BYTES = 1 << 30
"""The dense updates of one module that may lie side by side for a fused kernel; above, they go by tiles."""


@dataclass(frozen=True, eq=False)
class Step:
    """One module's next product, and the squared Frobenius norm of the merged update in it."""

    low: LowRank
    step: float


class Layers:
    """The pairs and other tensors of one merge; float64 copies of the two last used pairs, no more."""

    def __init__(self, received: Adapter | None, deltas: Sequence[Adapter], device: torch.device) -> None:
        self.model = deltas[0] if received is None else received
        self.received, self.deltas = received, deltas
        pairs, self.others = split_names(self.model.tensors)
        self.pairs = {pair.module: pair for pair in pairs}
        self.updates = lru_cache(maxsize=2)(
            lambda name: updates_of(self.pairs[name], received, deltas, device)
        )

    @property
    def started(self) -> Lora:
        """The received adapter's LoRA settings; of deltas of their own, the widest."""
        return widest_lora(self.deltas) if self.received is None else lora_settings(self.received)

    @property
    def total_rank(self) -> int:
        """All ranks together: the received adapter's, if there is one, and each delta's."""
        received = [] if self.received is None else [self.received]
        return sum(lora_settings(adapter).rank for adapter in [*received, *self.deltas])

    def shape(self, name: str) -> tuple[int, int]:
        """Shape of a module's update, (outputs, inputs)."""
        pair = self.pairs[name]
        return self.model.tensors[pair.b].shape[0], self.model.tensors[pair.a].shape[-1]

    def product(self, name: str) -> Source:
        """A module's dense updates, as a rule sees them: values are made where they are asked for."""
        pair = self.pairs[name]
        a, b = self.model.tensors[pair.a], self.model.tensors[pair.b]
        dtype = working_dtype(a.dtype, b.dtype)
        outputs, inputs = self.shape(name)
        size = len(self.deltas) * outputs * inputs * dtype.itemsize
        return Source(
            name,
            (outputs, inputs),
            dtype,
            lambda client, start, stop: self.updates(name).values(client, start, stop, dtype),
            together=size <= DENSE_BYTES,
        )

    def tensors(self) -> list[Source]:
        """The tensors that are no LoRA pair."""
        return [tensor_source(name, [delta.tensors[name] for delta in self.deltas]) for name in self.others]

    def precision(self, name: str) -> float:
        """Singular values below this share of the largest are rounding of the adapter's dtype."""
        a = self.model.tensors[self.pairs[name].a]
        return max(torch.finfo(working_dtype(a.dtype)).eps, a.shape[-1] * torch.finfo(torch.float64).eps)

    def weighted(self, name: str, coefficients: Tensor, rank: int) -> Step:
        """Received plus `sum c_i tau_i`, truncated: in a core, no matrix of the layer's size.

        Raises:
            AdapterMismatch: the product is beyond float64.
        """
        updates = self.updates(name)
        left, right = updates.bases()
        tall, wide = orthonormal(left), orthonormal(right.T)
        core = updates.core(coefficients.tolist())
        with naming(name):
            low = truncate_between(tall, core, wide, rank, self.precision(name))
        start = len(updates.received[0])
        if not start:
            return Step(low, low.energy)
        core[:start, :start] = 0  # of received times received there is nothing in the updates
        return Step(low, float((tall.triangle @ core @ wide.triangle.T).square().sum()))

    def layer(self, name: str) -> Layer:
        """A module's updates between orthonormal bases."""
        return layer_of(self.updates(name), self.direction(name))

    def direction(self, name: str) -> float:
        """Singular values below this share of the largest are no direction that a rule should look at."""
        return max(PRECISION, self.precision(name))

    def following(self, name: str, merged: Factored, rank: int) -> Step:
        """The best rank-k factorisation of received plus a merged update in factors.

        Raises:
            AdapterMismatch: the product is beyond float64.
        """
        updates = self.updates(name)
        left = torch.cat([updates.scalings[0] * updates.received[1], merged.left], dim=1)
        right = torch.cat([updates.received[0], merged.right])
        identity = torch.eye(len(right), dtype=right.dtype, device=right.device)
        with naming(name):
            low = truncate_product(left, identity, right, rank, self.precision(name))
        inner = (merged.left.T @ merged.left) * (merged.right @ merged.right.T)
        return Step(low, max(float(inner.sum()), 0.0))

    def placed(self, merged: Iterable[tuple[str, Step | Tensor]], rank: int | None) -> Placed:
        """The next adapter.

        Args:
            merged: each module's step, and each other tensor's merged values.
            rank: what products were truncated to; the factors of a received adapter keep their shape where
                that is larger, so that every silo can load them. None: the rank that they start from.
        """
        started = self.started
        rank = rank or started.rank
        lora = started.of_rank(rank if self.received is None else max(rank, started.rank))
        tensors: dict[str, Tensor] = {}
        energies: dict[str, Energy] = {}
        for name, value in merged:
            if isinstance(value, Step):
                tensors |= self.factors(name, value.low, lora)
                low = value.low
                energies[name] = Energy(low.energy, low.discarded, value.step, low.effective_rank)
            else:
                tensors[name] = self.stepped(name, value)
        return Placed(self.adapter(tensors, lora), None, energies, rank)

    def adapter(self, tensors: Mapping[str, Tensor], lora: Lora) -> Adapter:
        """An adapter like the model, its tensors in order."""
        return replace(self.model, tensors={name: tensors[name] for name in sorted(tensors)}, lora=lora)

    def stepped(self, name: str, values: Tensor) -> Tensor:
        """The next value of a tensor that is no LoRA pair."""
        start = None if self.received is None else self.received.tensors[name]
        return stepped(start, values, self.model.tensors[name].dtype)[0]

    def factors(self, name: str, low: LowRank, lora: Lora) -> dict[str, Tensor]:
        """A merged product as the two factors of the next adapter."""
        updates = self.updates(name)
        received = updates.received[0]
        candidates = received if len(received) == lora.rank else updates.bases()[1]
        return self.named(name, *balanced_factors(low, lora.scaling, lora.rank, candidates))

    def named(self, name: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """A module's two factors by name, in their dtypes, on the CPU."""
        pair = self.pairs[name]
        dtypes = self.model.tensors[pair.a].dtype, self.model.tensors[pair.b].dtype
        return {pair.a: rounded(a, dtypes[0]).cpu(), pair.b: rounded(b, dtypes[1]).cpu()}


def merge_others(
    rule: Rule, sources: Sequence[Source], context: Context, known: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Merge tensors that are no LoRA pair; where a matrix rule stands, by what it has for such tensors.

    Args:
        rule: of the merge.
        sources: the tensors.
        context: of the merge.
        known: by name, coefficients that were decided over more than these tensors.
    """
    for source in sources:
        if source.name in known:
            yield source.name, weighted_sum(source, known[source.name], context)
    sources = [source for source in sources if source.name not in known]
    plain = [source for source in sources if not isinstance(resolve(rule, source.name), MatrixRule)]
    for source, values in apply_rule(rule, plain, context):
        yield source.name, values
    for source in sources:
        resolved = resolve(rule, source.name)
        if isinstance(resolved, MatrixRule):
            for _, values in apply_rule(resolved.others, [source], context):
                yield source.name, values


def check_rank(space: str, rank: object) -> None:
    """Raise unless a rank is None or a whole number from 1.

    Raises:
        RuleError: it is neither.

    Example:
        >>> check_rank("product", 0)
        Traceback (most recent call last):
        fedmerge.errors.RuleError: product(): rank is 0, expected a whole number from 1, or None
    """
    whole = isinstance(rank, int) and not isinstance(rank, bool)
    if rank is not None and (not whole or rank < 1):  # type: ignore[operator]
        raise RuleError(f"{space}(): rank is {rank!r}, expected a whole number from 1, or None")


@contextmanager
def naming(module: str) -> Iterator[None]:
    """Say whose product it was that overflowed."""
    try:
        yield
    except OverflowError:
        raise AdapterMismatch(
            f"the merge overflows: the product of {module!r} is beyond float64, although inputs are finite"
        ) from None
