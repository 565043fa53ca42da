"""Many deltas to one adapter, one after the other: memory for one of them, and for the sums."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, as_adapter, working_dtype
from fedmerge.adapters.apply import stepped
from fedmerge.adapters.checks import (
    agreed_lora,
    check_finite,
    check_no_overflow,
    check_together,
    check_weights,
)
from fedmerge.adapters.merge import Merged, MergeReport, as_device
from fedmerge.adapters.statistics import Statistics, check_given, check_statistics, statistics_of
from fedmerge.errors import RuleError
from fedmerge.rules import Chain, Draw, Rule, parse_rule, resolve
from fedmerge.rules.streaming import Stream


def merge_stream(
    deltas: Iterable[
        tuple[str, float, Adapter | Mapping[str, Tensor]]
        | tuple[str, float, Adapter | Mapping[str, Tensor], Statistics]
    ],
    *,
    received: Adapter | Mapping[str, Tensor] | None = None,
    rule: Rule | str = "fedavg()",
    seed: int = 0,
    round: int = 0,
    device: torch.device | str = "auto",
    finite: bool = False,
) -> Merged:
    """Merge deltas as they come, in `factors()`, by a rule that needs no more than sums over them.

    Each delta is added and let go: memory is that of the adapter in float64 plus one delta, however many
    come. Where they come in the order of their names the result has the bits of `merge`; in another order a
    sum may differ in its last bit before it is rounded.

    Args:
        deltas: name of the silo, raw weight from 0, delta; all of these as in `merge`. An iterator, so that a
            delta need not be made before the one before it is merged. Weight 0 drops a delta before anything
            else looks at it. A fourth entry are the silo's statistics, for rules that need them.
        received: the adapter that the silos started from; None stands for zero.
        rule: fedavg, uniform, task_arithmetic, dare, della_linear, breadcrumbs, fisher, a chain of stages
            that look at one client each before `mean()` or `total()`, or such rules by name.
        seed: of random masks.
        round: random masks differ from round to round.
        device: where deltas are added up; "auto" is CUDA where there is any; the result is on the CPU.
        finite: the caller has seen to it that no delta holds NaN or Inf.

    Returns:
        The next adapter, its delta and a report, as `merge` gives them.

    Raises:
        RuleError: a rule that must see all clients at once, a name or weight that can't be used, no delta of
            weight above 0.
        AdapterMismatch: a delta that does not belong to the others, or holds NaN or Inf; a merge that
            overflows.

    Example:
        >>> def replies():
        ...     yield "silo-a", 3, {"x": torch.tensor([1.0, 2.0])}
        ...     yield "silo-b", 1, {"x": torch.tensor([5.0, 2.0])}
        >>> merge_stream(replies()).adapter.tensors["x"].tolist()
        [2.0, 2.0]
    """
    began = time.perf_counter()
    rule = parse_rule(rule) if isinstance(rule, str) else rule
    start = None if received is None else as_adapter(received)
    draw = Draw(seed=seed, round=round, silos=(), tensor="", shape=())
    sums = _Sums(rule, start, draw, as_device(device), finite)
    for given in deltas:
        sums.add(*_entries(given))
        del given  # or two deltas would be alive while the next one is made
    merged = sums.finish()
    return replace(merged, report=replace(merged.report, seconds=time.perf_counter() - began))


def _entries(given: object) -> tuple[object, object, Adapter | Mapping[str, Tensor], Statistics]:
    if not isinstance(given, tuple) or len(given) not in (3, 4):
        raise RuleError("merge_stream() takes triples of name, weight and delta; something else was given")
    return given if len(given) == 4 else (*given, {})


class _Sums:
    """What is kept of the deltas so far."""

    def __init__(
        self,
        rule: Rule,
        received: Adapter | None,
        draw: Draw,
        device: torch.device,
        finite: bool,
    ) -> None:
        self.rule, self.received, self.device, self.finite = rule, received, device, finite
        self.draw = draw
        self.model, self.what = received, "the received adapter"
        self.outline = Adapter({})
        self.streams: dict[str, Stream] = {}
        self.silos: dict[str, float] = {}
        self.left_out = 0
        self.metadata: set[tuple[str, str]] = set()
        if received is not None:
            check_together(None, {self.what: received}, finite=False)
            self._begin(received)

    def add(
        self,
        name: object,
        weight: object,
        given: Adapter | Mapping[str, Tensor],
        statistics: Statistics,
    ) -> None:
        """Check a delta and add it."""
        number = self._weight(name, weight)
        if number == 0:
            self.left_out += 1
            return
        name, label = str(name), f"silo {name!r}"
        delta = self._admitted(label, as_adapter(given))
        check_given(self.rule, [statistics], 1)
        check_statistics(self.rule, delta, {label: statistics}, finite=self.finite)
        for tensor, stream in self.streams.items():
            values = delta.tensors[tensor].detach().reshape(-1)
            look_ups = statistics_of(self.rule, tensor, [statistics])
            measured = {key: look_up(0, 0, len(values)) for key, look_up in look_ups.items()}
            stream.add(name, values.to(working_dtype(values.dtype)), number, measured)
        self.silos[name] = number

    def _weight(self, name: object, weight: object) -> float:
        if not isinstance(name, str):
            raise RuleError(f"merge_stream(): a silo's name is {name!r}, expected a string")
        if name in self.silos:
            raise RuleError(f"merge_stream(): silo {name!r} is given twice, expected different names")
        try:
            return check_weights([weight, 1.0], 2)[0]  # type: ignore[list-item]
        except RuleError as problem:
            raise RuleError(f"silo {name!r}: {problem}") from None

    def _admitted(self, label: str, delta: Adapter) -> Adapter:
        """The delta, where it belongs to those before it; the first one without a received adapter begins."""
        if self.model is None:
            check_together(None, {label: delta}, finite=self.finite)
            self.model, self.what, self.metadata = _outline(delta), label, set(delta.metadata.items())
            self._begin(self.model)
        else:
            check_together(None, {self.what: self.outline, label: delta}, finite=True)
            if not self.finite:
                check_finite(label, delta.tensors)
            self.metadata &= set(delta.metadata.items())
        lora = agreed_lora(
            [(label, delta), (self.what, self.model)],
            "adapters of different settings merge in product() only",
        )
        known = None if self.received is None else self.received.lora
        self.model = replace(self.model, lora=known or lora)
        return delta

    def _begin(self, model: Adapter) -> None:
        self.outline = _outline(model)
        for name in sorted(model.tensors):
            tensor, rule = model.tensors[name], resolve(self.rule, name)
            if not isinstance(rule, Chain):
                raise RuleError(f"{rule} can't merge a stream: it is no chain of stages")
            draw = replace(self.draw, tensor=name, shape=tuple(tensor.shape))
            self.streams[name] = rule.begin(draw, working_dtype(tensor.dtype), self.device)

    def finish(self) -> Merged:
        """The merge."""
        if self.model is None or not self.silos:
            raise RuleError("merge_stream() was given no delta of weight above 0, expected at least one")
        adapter, delta = {}, {}
        for name in list(self.streams):
            tensor = self.model.tensors[name]
            values = self.streams.pop(name).finish().reshape(tensor.shape)
            start = None if self.received is None else self.received.tensors[name]
            adapter[name], delta[name] = stepped(start, values, tensor.dtype)
        check_no_overflow(adapter)
        common = dict(sorted(self.metadata)) if self.received is None else dict(self.received.metadata)
        made = Adapter(adapter, self.model.lora, common)
        return Merged(made, replace(made, tensors=delta), self._report())

    def _report(self) -> MergeReport:
        return MergeReport(
            rule=str(self.rule),
            space="factors()",
            silos=tuple(self.silos),
            weights=tuple(self.silos.values()),
            left_out=self.left_out,
            device=str(self.device),
            kernel="plain",
        )


def _outline(model: Adapter) -> Adapter:
    """Names, shapes and dtypes of an adapter, as tensors that hold a single number each."""
    tensors = {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in model.tensors.items()}
    return replace(model, tensors=tensors)
