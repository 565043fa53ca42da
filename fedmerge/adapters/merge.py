"""Many deltas to one adapter: the line of mathematics that everything else carries tensors to and from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, as_adapter
from fedmerge.adapters.checks import (
    agreed_lora,
    are_finite,
    check_finite,
    check_no_overflow,
    check_together,
    check_weights,
)
from fedmerge.adapters.context import Context
from fedmerge.adapters.fused import KERNELS
from fedmerge.adapters.identity import content_names
from fedmerge.adapters.room import merge_with_room
from fedmerge.adapters.spaces import Energy, Factors, Space, parse_space
from fedmerge.adapters.statistics import Statistics, check_given, check_needs, check_statistics
from fedmerge.errors import AdapterMismatch, RuleError, nearest
from fedmerge.rules import Chain, Rule, parse_rule
from fedmerge.rules.negation import check_there, negated_by


@dataclass(frozen=True)
class MergeReport:
    """What happened in a merge, in plain values.

    Args:
        rule: its text.
        space: its text.
        silos: names of the merged deltas, in the order of the arithmetic; content names where none were
            given.
        weights: their raw weights.
        left_out: how many deltas of weight 0 were dropped.
        device: where it was computed, "cpu", "cuda:0"; the CPU, too, where the device had no room.
        kernel: what ran: "plain", or the kernels that took the place of the stages, "numba".
        discarded: by module, the share of the merged product's energy that the truncation left out, in [0,
            1].
        discarded_total: the same over all modules.
        aggregation_error: by module, how far the step as broadcast is from the merged update, relative
            Frobenius; 0 where nothing was left out. In spaces that know the merged update of a module.
        aggregation_error_total: the same over all modules.
        effective_rank: by module, over how many directions the next adapter's product spreads.
        seconds: wall clock.
    """

    rule: str
    space: str
    silos: tuple[str, ...]
    weights: tuple[float, ...]
    left_out: int
    device: str
    kernel: str
    discarded: dict[str, float] = field(default_factory=dict)
    discarded_total: float = 0.0
    aggregation_error: dict[str, float] = field(default_factory=dict)
    aggregation_error_total: float = 0.0
    effective_rank: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Merged:
    """A merge's result.

    Args:
        adapter: the next adapter, on the CPU.
        delta: next minus received, in `factors()`; None in spaces where the step is no difference of factors.
        report: what happened.
        rank: what LoRA products were truncated to, in spaces that truncate.
    """

    adapter: Adapter
    delta: Adapter | None
    report: MergeReport
    rank: int | None = None


def merge(
    deltas: Sequence[Adapter | Mapping[str, Tensor]],
    weights: Sequence[float] | Tensor | None = None,
    *,
    received: Adapter | Mapping[str, Tensor] | None = None,
    rule: Rule | str = "fedavg()",
    space: Space | str = "factors()",
    names: Sequence[str] | None = None,
    seed: int = 0,
    round: int = 0,
    device: torch.device | str = "auto",
    kernel: str = "auto",
    finite: bool = False,
    statistics: Sequence[Statistics] | None = None,
    step: bool = True,
) -> Merged:
    """Merge deltas by a rule in a space: the same bits in whatever order they are given.

    Args:
        deltas: what each silo trained minus what it received; adapters of their own where nothing was
            received.
        weights: raw weights, any finite numbers from 0 (examples, say); None: all alike. Weight 0 drops a
            delta before anything else looks at it.
        received: the adapter that the silos started from; None stands for zero.
        rule: how to merge, as an object or as text.
        space: where to compare, as an object or as text.
        names: the silos' names, which random masks depend on; None: names out of the contents.
        seed: of random masks.
        round: random masks differ from round to round.
        device: "auto" is CUDA where there is any; the result is on the CPU. Where its memory runs out the
            merge goes on in smaller pieces, at last on the CPU.
        kernel: "plain" for the composition of a rule's stages; "numba" or "triton" for a fused kernel; "auto"
            for the fastest there is. The bits are the same.
        finite: the caller has seen to it that no delta holds NaN or Inf, and that statistics can be what they
            say: they are not read once more for it.
        statistics: what each silo measured, a mapping for each delta, for rules that need it: "fisher" ->
            {tensor name: its diagonal Fisher, of the tensor's shape}, "gram" -> {module: Gram matrix of A x,
            (rank, rank)}.
        step: False leaves the delta of the result out, which takes as much memory as the adapter.

    Returns:
        The next adapter in the received dtype, its delta, and a report.

    Raises:
        RuleError: rule, space, weights, names or kernel can't be used.
        AdapterMismatch: deltas that do not belong together, that hold NaN or Inf, or whose merge overflows;
            statistics that do not fit them.

    Example:
        >>> one, two = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([5.0, 2.0])}
        >>> merge([one, two], weights=[3, 1]).adapter.tensors["x"].tolist()
        [2.0, 2.0]
    """
    began = time.perf_counter()
    rule = parse_rule(rule) if isinstance(rule, str) else rule
    space = parse_space(space) if isinstance(space, str) else space
    if kernel not in KERNELS:
        raise RuleError(f"unknown kernel {kernel!r}: {nearest(str(kernel), KERNELS)}")
    check_needs(rule, space)
    given = _given(deltas)
    besides = check_given(rule, statistics, len(given))
    clients = _clients(given, check_weights(weights, len(given)), names, besides)
    check_there(sorted(negated_by(rule)), [client.name for client in clients])
    start = None if received is None else as_adapter(received)
    told = finite or _shows_in_the_result(rule, space, len(clients))
    start, admitted = _together(start, clients, space, told)
    measured = {client.label: client.statistics for client in clients}
    check_statistics(rule, admitted[0], measured, finite=finite)
    context = Context(
        weights=torch.tensor([client.weight for client in clients], dtype=torch.float64),
        silos=tuple(client.name for client in clients),
        seed=seed,
        round=round,
        device=as_device(device),
        kernel=kernel,
        statistics=tuple(client.statistics for client in clients),
        step=step,
    )
    with torch.no_grad():
        placed, context = merge_with_room(space, start, admitted, rule, context)
    if not are_finite(placed.adapter.tensors):
        for client in clients if told and not finite else ():
            check_finite(client.label, client.delta.tensors)
        check_no_overflow(placed.adapter.tensors)
    report = _report(rule, space, context, placed.energies)
    report = replace(report, left_out=len(given) - len(clients), seconds=time.perf_counter() - began)
    adapter = replace(placed.adapter, metadata=_metadata(start, admitted))
    return Merged(adapter, placed.delta, report, placed.rank)


@dataclass(frozen=True, eq=False)
class _Client:
    name: str
    label: str
    weight: float
    delta: Adapter
    statistics: Statistics


def _given(deltas: Iterable[Adapter | Mapping[str, Tensor]]) -> list[Adapter]:
    if isinstance(deltas, Adapter | Mapping):
        raise AdapterMismatch("merge() takes a sequence of deltas; a single one was given, write [delta]")
    given = [as_adapter(delta) for delta in deltas]
    if not given:
        raise AdapterMismatch("merge() was given no delta, expected at least one")
    return given


def _clients(
    given: list[Adapter],
    weights: Sequence[float],
    names: Sequence[str] | None,
    statistics: Sequence[Statistics],
) -> list[_Client]:
    """Those of weight above 0, sorted by name; where contents and so names are equal, by weight."""
    if names is not None:
        names = _checked_names(names, len(given))
    counted = [position for position, weight in enumerate(weights) if weight > 0]
    deltas = [given[position] for position in counted]
    labels = [f"delta {position}" if names is None else f"silo {names[position]!r}" for position in counted]
    called = content_names(deltas) if names is None else [names[position] for position in counted]
    clients = [
        _Client(name, label, weights[position], delta, statistics[position])
        for name, label, position, delta in zip(called, labels, counted, deltas, strict=True)
    ]
    return sorted(clients, key=lambda client: (client.name, client.weight))


def _checked_names(names: Sequence[str], count: int) -> list[str]:
    names = list(names)
    if len(names) != count:
        raise RuleError(f"names: {len(names)} names for {count} deltas, expected one for each")
    for name in names:
        if not isinstance(name, str):
            raise RuleError(f"names: {name!r} is no string")
        if names.count(name) > 1:
            raise RuleError(f"names: {name!r} is given {names.count(name)} times, expected different names")
    return names


def _shows_in_the_result(rule: Rule, space: Space, clients: int) -> bool:
    """Whether NaN or Inf in a delta always ends in NaN or Inf, so that the inputs need no read of their own.

    So it is for weighted sums, whose every term counts, even with factor 0: a fifth of their time.
    """
    one = torch.ones(clients, dtype=torch.float64)
    sums = isinstance(rule, Chain) and rule.kind == "elementwise" and rule.linear(one) is not None
    return sums and isinstance(space, Factors)


def _together(
    received: Adapter | None, clients: Sequence[_Client], space: Space, finite: bool
) -> tuple[Adapter | None, list[Adapter]]:
    """Check that all belong together, and give each the LoRA settings that they share."""
    deltas = {client.label: client.delta for client in clients}
    apart = space.mixed_ranks and received is None
    if apart:
        check_together(None, deltas, mixed_ranks=True, finite=finite)
        return None, list(deltas.values())
    everyone = list(deltas.items()) + ([] if received is None else [("the received adapter", received)])
    why = "adapters of different settings merge offline, in product(), core() or stacked()"
    lora = agreed_lora(reversed(everyone), why)
    check_together(received, deltas, finite=finite)
    admitted = [replace(delta, lora=lora) for delta in deltas.values()]
    return (None if received is None else replace(received, lora=lora)), admitted


def as_device(device: torch.device | str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is any.

    Raises:
        RuleError: a name that torch does not know.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise RuleError(f"device {device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:1'") from error


def _report(rule: Rule, space: Space, context: Context, energies: Mapping[str, Energy]) -> MergeReport:
    total = Energy(
        sum(energy.whole for energy in energies.values()),
        sum(energy.discarded for energy in energies.values()),
        sum(energy.step for energy in energies.values()),
    )
    return MergeReport(
        rule=str(rule),
        space=str(space),
        silos=context.silos,
        weights=tuple(context.weights.tolist()),
        left_out=0,
        device=str(context.device),
        kernel=", ".join(sorted(context.ran)) or "plain",
        discarded={name: energy.share for name, energy in energies.items()},
        discarded_total=total.share,
        aggregation_error={name: energy.error for name, energy in energies.items()},
        aggregation_error_total=total.error,
        effective_rank={name: energy.effective_rank for name, energy in energies.items()},
    )


def _metadata(received: Adapter | None, deltas: Sequence[Adapter]) -> dict[str, str]:
    """The received adapter's; without one, what all deltas say alike (the base model, say)."""
    if received is not None:
        return dict(received.metadata)
    common = set.intersection(*(set(delta.metadata.items()) for delta in deltas))
    return dict(sorted(common))
