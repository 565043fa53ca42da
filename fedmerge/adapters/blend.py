"""Points between adapters, in the space of true updates: an exact adapter of higher rank for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter, Lora, rounded, working_dtype
from fedmerge.adapters.pairs import split_names
from fedmerge.adapters.updates import lora_settings
from fedmerge.errors import AdapterMismatch


def blend(adapters: Sequence[Adapter], coefficients: Sequence[float], lora: Lora | None = None) -> Adapter:
    """`sum_i c_i s_i B_i A_i` as one pair `[c_1 s_1 B_1, c_2 s_2 B_2, ...] [A_1; A_2; ...] / s`.

    Nothing is approximated: the rank is the sum of the ranks of those with a coefficient that is not 0.
    Tensors that are no LoRA pair are summed as they are. One adapter at coefficient 1 is that adapter.

    Args:
        adapters: whole adapters (no deltas) with the same tensors; their ranks and scalings may differ.
        coefficients: one for each; all 0 is the adapter that changes nothing.
        lora: whose scaling `s` the result has; None: the first adapter's.

    Raises:
        AdapterMismatch: no adapter, or LoRA pairs without LoRA settings.

    Example:
        >>> a, b = torch.ones(1, 2), torch.ones(3, 1)
        >>> one = Adapter({"q.lora_A.weight": a, "q.lora_B.weight": b}, Lora(1, 2))
        >>> middle = blend([one, one], [0.5, 0.25])
        >>> middle.lora.rank, middle.lora.scaling, middle.tensors["q.lora_B.weight"][0].tolist()
        (2, 2.0, [0.5, 0.25])
    """
    if not adapters:
        raise AdapterMismatch("blend() was given no adapter, expected at least one")
    counted = [(adapter, c) for adapter, c in zip(adapters, coefficients, strict=True) if c]
    counted = counted or [(adapters[0], 0.0)]
    pairs, others = split_names(adapters[0].tensors)
    tensors = {
        name: _total(
            [c * adapter.tensors[name].to(torch.float64) for adapter, c in counted], adapters[0], name
        )
        for name in others
    }
    if not pairs:
        return Adapter(tensors, adapters[0].lora)
    lora = lora or lora_settings(adapters[0])
    factors = [c * lora_settings(adapter).scaling / lora.scaling for adapter, c in counted]
    for pair in pairs:
        each = [pair.factors(adapter.tensors) for adapter, _ in counted]
        tensors[pair.a] = torch.cat([_wide(a) for a, _ in each])
        tensors[pair.b] = torch.cat(
            [_wide(factor * b.to(torch.float64)) for factor, (_, b) in zip(factors, each, strict=True)], dim=1
        )
    rank = sum(lora_settings(adapter).rank for adapter, _ in counted)
    return Adapter({name: tensors[name] for name in sorted(tensors)}, lora.of_rank(rank))


def _total(terms: Sequence[Tensor], model: Adapter, name: str) -> Tensor:
    return rounded(torch.stack(list(terms)).sum(dim=0), working_dtype(model.tensors[name].dtype))


def _wide(factor: Tensor) -> Tensor:
    """A factor in float32: what is stored in less would lose the coefficient's digits."""
    return factor.detach().to(torch.float32)
