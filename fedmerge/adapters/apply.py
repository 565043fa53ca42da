"""How a rule meets tensors: tile by tile where it may, on the whole tensor or the whole adapter where it
must.

Here a rule's plain composition of stages is run. Where a fused kernel can stand for it (fused.py), the kernel
goes first and the composition merges what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedmerge.adapters.adapter import rounded, working_dtype
from fedmerge.adapters.batches import in_tiles
from fedmerge.adapters.coefficients import merge_by_coefficients
from fedmerge.adapters.context import Context
from fedmerge.adapters.fused import merged_by_kernel
from fedmerge.errors import RuleError
from fedmerge.rules import (
    Chain,
    ElectChanged,
    ElectLargest,
    ElectSign,
    EqualWeights,
    KeepConsensus,
    KeepLargest,
    Mean,
    Median,
    Rule,
    Scale,
    Total,
    TrimmedMean,
    resolve,
)
from fedmerge.rules.negation import Negate
from fedmerge.rules.stack import Stack

TILE_VALUES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Values of all clients in one tile: 32 MB on a CPU, 512 MB on a GPU, for each float64 temporary."""


COORDINATEWISE = frozenset(
    {
        ElectChanged,
        ElectLargest,
        ElectSign,
        EqualWeights,
        KeepConsensus,
        Mean,
        Median,
        Negate,
        Scale,
        Total,
        TrimmedMean,
    }
)
"""Stages that know neither a tensor's name nor its other coordinates: whichever tensors are merged side by
side, the bits are the same."""


@dataclass(frozen=True)
class Source:
    """One tensor as a rule sees it: its clients' values, made on demand.

    Args:
        name: the tensor's name.
        shape: its shape.
        dtype: float32 or float64, what `values` gives.
        values: `(client, start, stop) -> (stop - start,)`, flat coordinates of one client, on any device.
        stored: whether `values` only looks up what lies in memory.
        together: made on demand, but small enough for the values of all clients to lie side by side.
        statistics: what the clients measured of the tensor, asked as `values` is; for rules that need it.
        rows: each client's values, flat, where they lie in memory: looked up at no cost.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: Callable[[int, int, int], Tensor]
    stored: bool = False
    together: bool = False
    statistics: Mapping[str, Callable[[int, int, int], Tensor]] = field(default_factory=dict)
    rows: Sequence[Tensor] = ()

    @cached_property
    def coordinates(self) -> int:
        """Number of values of one client."""
        return math.prod(self.shape)

    def whole(self, client: int) -> Tensor:
        """All values of one client, flat."""
        return self.rows[client] if self.rows else self.values(client, 0, self.coordinates)


def tensor_source(name: str, tensors: Sequence[Tensor]) -> Source:
    """A tensor that all clients sent, as it is."""
    dtype = working_dtype(tensors[0].dtype)
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    shape = tuple(tensors[0].shape)
    values = lambda client, start, stop: flat[client][start:stop]  # noqa: E731
    return Source(name, shape, dtype, values, stored=True, rows=flat)


def apply_rule(rule: Rule, sources: Sequence[Source], context: Context) -> Iterator[tuple[Source, Tensor]]:
    """Merge each source, one at a time so that large results need not live together.

    Where the rule differs by name, the sources of one rule come together: to a rule of scope "adapter" they
    are the whole adapter.

    Yields:
        The source, and its merged values in its dtype and shape, on the context's device.

    Raises:
        RuleError: a rule of a kind that does not work coordinate by coordinate.
    """
    for resolved, members in _by_rule(rule, sources):
        if resolved.kind == "coefficients":
            yield from merge_by_coefficients(resolved, members, context)
            continue
        if resolved.kind not in ("elementwise", "factor", "matrix"):
            raise RuleError(
                f"{resolved} is a rule of kind {resolved.kind!r}; merge() knows 'elementwise', "
                "'coefficients', 'matrix' and 'factor'"
            )
        whole = resolved.scope == "adapter"
        done = set()
        if resolved.kind == "elementwise" and not whole:
            for source, values in merged_by_kernel(resolved, members, context):
                done.add(source.name)
                yield source, values
        left = [source for source in members if source.name not in done]
        for group in [left] if whole else _groups(resolved, left, _width(context)):
            yield from _merge_group(resolved, group, context)


def _by_rule(rule: Rule, sources: Sequence[Source]) -> list[tuple[Rule, list[Source]]]:
    """The rules that merge these sources by their names, each with all of its sources."""
    shares: list[tuple[Rule, list[Source]]] = []
    for source in sources:
        resolved = resolve(rule, source.name)
        members = next((members for known, members in shares if known == resolved), None)
        if members is None:
            shares.append((resolved, [source]))
        else:
            members.append(source)
    return shares


def _groups(rule: Rule, sources: Sequence[Source], width: int) -> Iterator[Sequence[Source]]:
    """Each source by itself; small neighbours together where that can't change a bit.

    A call costs tenths of a millisecond whatever the size, and an adapter has some hundred tensors of a few
    thousand values.

    Args:
        rule: what they are merged by.
        sources: in their order.
        width: most coordinates of several sources together.
    """
    together = isinstance(rule, Chain) and all(type(stage) in COORDINATEWISE for stage in rule.stages)
    group: list[Source] = []
    for source in sources:
        fits = sum(member.coordinates for member in group) + source.coordinates <= width
        alike = all(member.dtype == source.dtype and member.stored for member in group) and source.stored
        if group and not (together and fits and alike):
            yield group
            group = []
        group.append(source)
    if group:
        yield group


def _merge_group(rule: Rule, sources: Sequence[Source], context: Context) -> Iterator[tuple[Source, Tensor]]:
    """Merge sources as one long tensor."""
    if len(sources) == 1:
        yield sources[0], _merge_source(rule, sources[0], context).reshape(sources[0].shape)
    elif sources:
        merged = _merge_source(rule, _concatenated(sources, context.device), context)
        parts = torch.split(merged, [source.coordinates for source in sources])
        for source, part in zip(sources, parts, strict=True):
            # A copy: tensors that share memory can't be saved, and one would keep all of them alive.
            yield source, part.to(source.dtype, copy=True).reshape(source.shape)


def _concatenated(sources: Sequence[Source], device: torch.device) -> Source:
    """All coordinates of the adapter as one long tensor, in the order of the sources."""
    dtype = torch.float64 if any(source.dtype == torch.float64 for source in sources) else torch.float32
    total = sum(source.coordinates for source in sources)

    def joined(look_ups: Sequence[Callable[[int, int, int], Tensor]]) -> Callable[[int, int, int], Tensor]:
        def values(client: int, start: int, stop: int) -> Tensor:
            parts, first = [], 0
            for source, look_up in zip(sources, look_ups, strict=True):
                low, high = max(start - first, 0), min(stop - first, source.coordinates)
                if low < high:
                    parts.append(
                        look_up(client, low, high).to(device, dtype)
                    )  # products are made there, heads lie here
                first += source.coordinates
            return torch.cat(parts)

        return values

    statistics = {
        name: joined([source.statistics[name] for source in sources]) for name in sources[0].statistics
    }
    return Source("", (total,), dtype, joined([source.values for source in sources]), statistics=statistics)


def _width(context: Context) -> int:
    """Coordinates of one tile."""
    return max(1, TILE_VALUES.get(context.device.type, 1 << 22) // len(context.silos))


def _merge_source(rule: Rule, source: Source, context: Context) -> Tensor:
    """The merged values, flat."""
    width = _width(context)
    if rule.separable:
        return _merge_tiles(rule, source, context, width)
    trim, rest = _split_trim(rule)
    if trim is None or rest is None or source.coordinates <= width:
        return _merge_tiles(rule, source, context, source.coordinates)
    masks = [_kept(trim, source, client, context) for client in range(len(context.silos))]

    def trimmed(client: int, start: int, stop: int) -> Tensor:
        values = source.values(client, start, stop).to(context.device)
        return values.where(masks[client][start:stop], 0.0)

    return _merge_tiles(rest, replace(source, values=trimmed, rows=()), context, width)


def _merge_tiles(rule: Rule, source: Source, context: Context, width: int) -> Tensor:
    """Run the rule on tiles of `width` coordinates."""
    draw = context.draw(source.name, source.shape)
    weights = context.weights.to(context.device).unsqueeze(1)
    merged = torch.empty(source.coordinates, dtype=source.dtype, device=context.device)

    def merge(start: int, stop: int) -> None:
        values = torch.empty(len(weights), stop - start, dtype=source.dtype, device=context.device)
        for client, row in enumerate(values):
            row.copy_(source.values(client, start, stop))
        statistics = _statistics(source, len(weights), start, stop, context.device)
        merged[start:stop] = rule(Stack(values, weights, statistics), draw.at(start))

    in_tiles(source.coordinates, width, merge, divisible=rule.separable)
    return merged


def _statistics(
    source: Source, clients: int, start: int, stop: int, device: torch.device
) -> dict[str, Tensor]:
    """All clients' statistics of a stretch of coordinates, by their names."""
    return {
        name: torch.stack([look_up(client, start, stop).to(device) for client in range(clients)])
        for name, look_up in source.statistics.items()
    }


def _split_trim(rule: Rule) -> tuple[KeepLargest | None, Rule | None]:
    """Take the one stage that must see each client's whole tensor out of a chain, where it comes first.

    It looks at one client at a time, so that a mask of one byte a coordinate can stand for it, and N dense
    tensors never lie side by side. Rules that are built otherwise are given the whole stack.
    """
    if not isinstance(rule, Chain):
        return None, None
    whole = [stage for stage in rule.stages if not stage.separable]
    sparsify = [stage for stage in rule.stages if stage.phase == "sparsify"]
    if len(whole) != 1 or sparsify[:1] != whole or not isinstance(whole[0], KeepLargest):
        return None, None
    return whole[0], Chain(tuple(stage for stage in rule.stages if stage.separable))


def _kept(trim: KeepLargest, source: Source, client: int, context: Context) -> Tensor:
    """What the trim leaves of one client, bool `(coordinates,)`."""
    values = source.whole(client).to(context.device, source.dtype).unsqueeze(0)
    one = torch.ones(1, 1, dtype=torch.float64, device=context.device)
    return trim(Stack(values, one), context.draw(source.name, source.shape)).values[0] != 0


def stepped(received: Tensor | None, values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The next tensor and its delta, both on the CPU in the adapter's dtype.

    The delta is rounded first and then added, so that next = received + delta holds bit for bit.
    """
    delta = rounded(values, dtype).cpu()
    return (delta if received is None else (received.detach().cpu() + delta).contiguous()), delta
