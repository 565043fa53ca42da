"""Do these adapters belong together? Asked before any arithmetic; every answer no is a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.pairs import A_SUFFIX, B_SUFFIX
from fedmerge.errors import AdapterMismatch, RuleError

RANK_AXES = {A_SUFFIX: 0, B_SUFFIX: 1}
"""Which axis of a LoRA factor is its rank."""


def check_together(
    received: Adapter | None,
    deltas: Mapping[str, Adapter],
    *,
    mixed_ranks: bool = False,
    finite: bool = False,
) -> None:
    """Raise unless the deltas have the same tensors as the received adapter, or as each other.

    Args:
        received: what the clients started from; None where each delta is an adapter of its own.
        deltas: what to call a client -> its delta.
        mixed_ranks: LoRA factors may differ in their rank (without `received` only).
        finite: the deltas are known to hold neither NaN nor Inf.

    Raises:
        AdapterMismatch: missing or extra tensors, another shape or dtype, NaN or Inf.
    """
    first = next(iter(deltas))
    what, model = ("the received adapter", received) if received is not None else (first, deltas[first])
    if not model.tensors:
        raise AdapterMismatch(f"{what} has no tensors, expected at least one")
    if received is not None:
        check_finite(what, received.tensors)
    for label, delta in deltas.items():
        check_names(label, delta.tensors, what, model.tensors)
        for name in sorted(delta.tensors):
            given, expected = delta.tensors[name], model.tensors[name]
            free_axis = RANK_AXES.get(name[-len(A_SUFFIX) :]) if mixed_ranks and received is None else None
            problem = _difference(given, expected, what, free_axis)
            if problem:
                raise AdapterMismatch(f"{label}: {name!r} {problem}")
        if not finite:
            check_finite(label, delta.tensors)


def check_names(label: str, given: Mapping[str, Tensor], what: str, expected: Mapping[str, Tensor]) -> None:
    """Raise unless the same tensors are there.

    Example:
        >>> check_names("silo 'a'", {"x": torch.zeros(1)}, "the broadcast", {"y": torch.zeros(1)})
        Traceback (most recent call last):
        fedmerge.errors.AdapterMismatch: silo 'a' lacks 'y' of the broadcast and has 'x' besides
    """
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    parts = []
    if missing:
        parts.append(f"lacks {_some(missing)} of {what}")
    if extra:
        parts.append(
            f"has {_some(extra)} besides" if missing else f"has {_some(extra)}, which {what} has not"
        )
    if parts:
        raise AdapterMismatch(f"{label} {' and '.join(parts)}")


def _some(names: Sequence[str]) -> str:
    """The first names; a hostile reply may hold thousands, each of them long."""
    shown = ", ".join(repr(name if len(name) <= 120 else name[:117] + "...") for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


def _difference(given: Tensor, expected: Tensor, what: str, free_axis: int | None) -> str:
    """The end of a sentence that says why a tensor does not fit, or nothing; one axis may differ in size."""
    if given.shape != expected.shape and _sizes(given, free_axis) != _sizes(expected, free_axis):
        return f"has shape {tuple(given.shape)}, {what} has {tuple(expected.shape)}"
    if given.dtype != expected.dtype:
        return f"is {given.dtype}, {what} has {expected.dtype}"
    if given.layout != torch.strided or given.is_meta:
        return "is no dense tensor with values"
    return ""


def _sizes(tensor: Tensor, free_axis: int | None) -> list[int]:
    return [-1 if axis == free_axis else size for axis, size in enumerate(tensor.shape)]


def check_finite(label: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise where a tensor holds NaN or Inf, with its name and how many.

    Example:
        >>> check_finite("silo 'a'", {"x": torch.tensor([1.0, float("nan")])})
        Traceback (most recent call last):
        fedmerge.errors.AdapterMismatch: silo 'a': 'x' holds 1 NaN and 0 Inf among its 2 values
    """
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if _surely_finite(tensor):
            continue
        nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nan or inf:
            raise AdapterMismatch(
                f"{label}: {name!r} holds {nan} NaN and {inf} Inf among its {tensor.numel()} values"
            )


def are_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no tensor holds NaN or Inf, by one sum of each: True is certain, False is not."""
    return all(_surely_finite(tensor.detach()) for tensor in tensors.values())


def _surely_finite(tensor: Tensor) -> bool:
    """False where a closer look is needed.

    A sum is one read and no copy, and NaN or Inf always spoil it.
    """
    return not tensor.is_floating_point() or math.isfinite(tensor.sum().item())


def check_no_overflow(tensors: Mapping[str, Tensor]) -> None:
    """Raise where a merge of finite inputs is not finite.

    Raises:
        AdapterMismatch: the tensor's name, how many, and its dtype.
    """
    for name in sorted(tensors):
        tensor = tensors[name]
        if _surely_finite(tensor):
            continue
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise AdapterMismatch(
                f"the merge overflows: {bad} of {tensor.numel()} values of {name!r} are beyond "
                f"{tensor.dtype}, although all inputs are finite"
            )


def agreed_lora(adapters: Iterable[tuple[str, Adapter]], why: str) -> Lora | None:
    """The one LoRA setting that all adapters with a known one share; None where none is known.

    Raises:
        AdapterMismatch: they differ in rank, alpha or rsLoRA; `why` ends the sentence.
    """
    known = [(label, adapter.lora) for label, adapter in adapters if adapter.lora is not None]
    for label, lora in known[1:]:
        first_label, first = known[0]
        if (lora.rank, lora.alpha, lora.rslora) != (first.rank, first.alpha, first.rslora):
            raise AdapterMismatch(f"{label} has {_setting(lora)}, {first_label} {_setting(first)}: {why}")
    return known[0][1] if known else None


def _setting(lora: Lora) -> str:
    return f"rank {lora.rank} and alpha {lora.alpha:g}" + (" (rsLoRA)" if lora.rslora else "")


def check_weights(weights: Sequence[float] | Tensor | None, count: int) -> tuple[float, ...]:
    """Raw weights as floats: any finite numbers from 0, one for each delta, not all 0.

    Args:
        weights: None stands for equal weights.
        count: number of deltas.

    Raises:
        RuleError: says which weight is wrong, and why.

    Example:
        >>> check_weights([120, 80.5], 2)
        (120.0, 80.5)
    """
    if weights is None:
        return (1.0,) * count
    if isinstance(weights, str | bytes | Mapping):
        raise RuleError(f"weights: a sequence of {count} numbers is expected, {weights!r} was given")
    values = weights.tolist() if isinstance(weights, Tensor) else list(weights)
    if len(values) != count:
        raise RuleError(f"weights: {len(values)} weights for {count} deltas, expected one for each")
    numbers = tuple(_weight(position, value) for position, value in enumerate(values))
    if not any(numbers):
        raise RuleError("weights: all are 0, expected at least one above 0")
    if not math.isfinite(sum(numbers)):
        raise RuleError("weights: their sum is beyond float64")
    return numbers


def _weight(position: int, value: object) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise RuleError(f"weights: weight {position} is {value!r}, expected a finite number from 0")
    return number
