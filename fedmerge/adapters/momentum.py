"""Momentum of true updates: kept as a product, so that it does not depend on the factors of any round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, rounded, working_dtype
from fedmerge.adapters.lowrank import LowRank, truncate_product
from fedmerge.adapters.merge import Merged
from fedmerge.adapters.pairs import Pair
from fedmerge.adapters.refactor import balanced_factors
from fedmerge.adapters.updates import lora_settings
from fedmerge.errors import AdapterMismatch

Product = tuple[Tensor, Tensor]
"""A matrix as (outputs, p) and (p, inputs)."""


def product_momentum(
    pair: Pair,
    received: Adapter,
    merged: Merged,
    state: Mapping[str, Tensor] | None,
    rate_and_beta: tuple[float, float],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One LoRA pair's next factors, and its next state.

    V = beta V + s (B' A' - B_0 A_0), truncated to twice the rank; next = s B_0 A_0 + rate V, truncated to the
    merge's rank. Both products stay in low-rank form.

    Returns:
        The next A and B by name, and the state's `left` (outputs, at most 2 rank) and `right`.

    Raises:
        AdapterMismatch: a state that is not of this adapter.
    """
    rate, beta = rate_and_beta
    lora, a = lora_settings(merged.adapter), merged.adapter.tensors[pair.a]
    precision = torch.finfo(working_dtype(a.dtype)).eps
    after, before = _product(pair, merged.adapter), _product(pair, received)
    parts = [after, (-before[0], before[1])]
    if state is not None:
        old = _velocity(pair, state, before)
        parts.append((beta * old[0], old[1]))
    velocity = _split(_sum(parts, 2 * lora.rank, precision))
    low = _sum([before, (rate * velocity[0], velocity[1])], merged.rank or lora.rank, precision)
    next_a, next_b = balanced_factors(low, lora.scaling, lora.rank, a.to(torch.float64))
    factors = {
        pair.a: rounded(next_a, a.dtype),
        pair.b: rounded(next_b, merged.adapter.tensors[pair.b].dtype),
    }
    kept = dict(zip(_keys(pair), (half.to(working_dtype(a.dtype)) for half in velocity), strict=True))
    return factors, kept


def _product(pair: Pair, adapter: Adapter) -> Product:
    a, b = pair.factors(adapter.tensors)
    scaling = lora_settings(adapter).scaling
    return scaling * b.detach().cpu().to(torch.float64), a.detach().cpu().to(torch.float64)


def _sum(parts: list[Product], rank: int, precision: float) -> LowRank:
    left = torch.cat([part[0] for part in parts], dim=1)
    right = torch.cat([part[1] for part in parts])
    return truncate_product(left, torch.eye(len(right), dtype=torch.float64), right, rank, precision)


def _split(low: LowRank) -> Product:
    root = low.values.sqrt()
    return (low.left * root).contiguous(), (root.unsqueeze(1) * low.right).contiguous()


def _keys(pair: Pair) -> tuple[str, str]:
    return f"momentum/{pair.module}.left", f"momentum/{pair.module}.right"


def _velocity(pair: Pair, state: Mapping[str, Tensor], like: Product) -> Product:
    keys = _keys(pair)
    missing = [key for key in keys if key not in state]
    if missing:
        raise AdapterMismatch(f"server optimizer state lacks {missing[0]!r}")
    left, right = (state[key].to(torch.float64) for key in keys)
    fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]
    if not fits or left.shape[0] != like[0].shape[0] or right.shape[1] != like[1].shape[1]:
        raise AdapterMismatch(
            f"server optimizer state: {pair.module!r} is a product {tuple(left.shape)} {tuple(right.shape)}, "
            f"expected ({like[0].shape[0]}, k) (k, {like[1].shape[1]})"
        )
    return left, right
