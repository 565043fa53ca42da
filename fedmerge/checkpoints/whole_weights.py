"""Tensors of an adapter that are no update but whole weights: PEFT's `modules_to_save`, a head say.

A LoRA pair is what was trained minus nothing; a module that PEFT saves whole is the weight itself. Only its
difference to the base is a delta. A rule with fixed coefficients that sum to 1 gives the same either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedmerge.adapters import Adapter
from fedmerge.adapters.adapter import rounded, working_dtype
from fedmerge.adapters.pairs import split_names
from fedmerge.errors import AdapterMismatch
from fedmerge.rules import Rule, resolve
from fedmerge.wire.checkpoint import Checkpoint
from fedmerge.wire.files import PREFIX


def whole_weights(adapter: Adapter) -> list[str]:
    """Names of an adapter's whole weights.

    What is no LoRA pair and has no name of PEFT's is a head of ours: it starts from zero, and is its delta.
    """
    return [name for name in split_names(adapter.tensors)[1] if name.startswith(PREFIX)]


def wanting_base(adapter: Adapter, rule: Rule, weights: Sequence[float]) -> list[str]:
    """Those whole weights that a rule can't merge without the base's.

    Args:
        adapter: any of those to be merged.
        rule: how.
        weights: raw weights, above 0.
    """
    return [name for name in whole_weights(adapter) if not _is_mean(rule, name, weights)]


def _is_mean(rule: Rule, name: str, weights: Sequence[float]) -> bool:
    """Whether a tensor's result is a weighted mean, whatever the values."""
    resolved = resolve(rule, name)
    resolved = getattr(resolved, "others", resolved)  # what a matrix rule has for tensors that are no pair
    coefficients = resolved.linear(torch.tensor(weights, dtype=torch.float64))
    return coefficients is not None and abs(float(coefficients.sum()) - 1) < 1e-9


def place_in(base: Checkpoint, module: str) -> str | None:
    """The base's name of a tensor that PEFT calls `module`; a prefix may be more or less.

    `AutoModel` leaves out the first part of the names in the files of a model with a head.
    """
    name = module.removeprefix(PREFIX)
    if name in base.entries:
        return name
    near = [own for own in base.entries if own.endswith(f".{name}") or name.endswith(f".{own}")]
    return near[0] if len(near) == 1 else None


def less_base(adapters: Sequence[Adapter], names: Sequence[str], base: Checkpoint) -> list[Adapter]:
    """Adapters whose whole weights are differences to the base.

    Raises:
        AdapterMismatch: a tensor that the base has not, or in another shape.
    """
    starts = {name: _start(name, base) for name in names}
    for adapter in adapters:
        for name, start in starts.items():
            if name in adapter.tensors and adapter.tensors[name].shape != start.shape:
                shapes = tuple(adapter.tensors[name].shape), tuple(start.shape)
                raise AdapterMismatch(f"{name!r} has shape {shapes[0]}, the base has {shapes[1]}")
    return [
        replace(
            adapter,
            tensors={
                name: _minus(tensor, starts[name]) if name in starts else tensor
                for name, tensor in adapter.tensors.items()
            },
        )
        for adapter in adapters
    ]


def plus_base(merged: Adapter, dtypes: Mapping[str, torch.dtype], base: Checkpoint) -> Adapter:
    """The merged differences as whole weights again, each value rounded once.

    Args:
        merged: of `less_base`.
        dtypes: of the whole weights, as they were stored.
        base: as before.
    """
    tensors = dict(merged.tensors)
    for name, dtype in dtypes.items():
        start = _start(name, base)
        tensors[name] = rounded(start.to(torch.float64) + tensors[name].to(torch.float64), dtype)
    return replace(merged, tensors=tensors)


def _start(name: str, base: Checkpoint) -> Tensor:
    place = place_in(base, name)
    if place is None:
        raise AdapterMismatch(
            f"{name!r} is a whole weight, and the base has no tensor of that name to take a difference from; "
            "a rule with fixed coefficients that sum to 1, such as fedavg(), needs none"
        )
    return base.read(place).reshape(base.entries[place].shape)


def _minus(tensor: Tensor, start: Tensor) -> Tensor:
    dtype = working_dtype(tensor.dtype, start.dtype)
    return tensor.detach().to(dtype) - start.to(dtype)
