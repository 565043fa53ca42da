"""How much a delta points the way of the others: its cosine to their mean, itself left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from fedmerge.adapters.grams import gram_of_values

Pairs = Mapping[tuple[str, str], float]
"""The cosine of every pair of deltas, in both orders and each with itself."""


def pairs_of(deltas: Mapping[str, Mapping[str, Tensor]], norms: Mapping[str, float]) -> Callable[[], Pairs]:
    """The cosines of all pairs, over all floating tensors at once, computed in float64 when asked for.

    Silos are sorted before any arithmetic: the order of arrival has no part in the bits.

    Args:
        deltas: by silo, tensors by name.
        norms: their lengths.
    """
    silos = sorted(deltas)

    @cache
    def pairs() -> Pairs:
        total = torch.zeros(len(silos), len(silos), dtype=torch.float64)
        for name in sorted(deltas[silos[0]]) if silos else ():
            rows = [deltas[silo][name].detach().reshape(-1) for silo in silos]
            if rows[0].is_floating_point():
                total += _unit_products(rows, [norms[silo] for silo in silos])
        values = total.tolist()
        return {(a, b): values[i][j] for i, a in enumerate(silos) for j, b in enumerate(silos)}

    return pairs


def _unit_products(rows: list[Tensor], norms: list[float]) -> Tensor:
    """Inner products of a tensor's values, each silo's divided by the length of its delta: none overflows."""

    def values(client: int, start: int, stop: int) -> Tensor:
        stretch = rows[client][start:stop].double()
        return stretch / norms[client] if norms[client] > 0 else stretch

    return gram_of_values(values, len(rows), len(rows[0]))


def cosines(lengths: Mapping[str, float], pairs: Pairs) -> dict[str, float]:
    """The cosine of each delta to the mean of the others, every silo counting alike.

    Silos for which there is none are left out: a delta, or the mean of the others, that is all zero.

    Args:
        lengths: of the deltas by silo.
        pairs: their cosines.

    Example:
        >>> deltas = {"a": {"w": torch.tensor([3.0, 0.0])}, "b": {"w": torch.tensor([0.0, 1.0])},
        ...           "c": {"w": torch.tensor([-3.0, 0.0])}}
        >>> lengths = {"a": 3.0, "b": 1.0, "c": 3.0}
        >>> found = cosines(lengths, pairs_of(deltas, lengths)())
        >>> {silo: round(cosine, 3) for silo, cosine in found.items()}
        {'a': -0.949, 'c': -0.949}
    """
    largest = max(lengths.values(), default=0.0)
    if not 0 < largest < math.inf:
        return {}
    shares = {silo: lengths[silo] / largest for silo in sorted(lengths)}
    found = {}
    for silo, share in shares.items():
        others = [other for other in shares if other != silo]
        along = math.fsum(shares[other] * pairs[silo, other] for other in others)
        square = math.fsum(shares[a] * shares[b] * pairs[a, b] for a in others for b in others)
        if square > 0 and share > 0:
            found[silo] = max(-1.0, min(1.0, along / math.sqrt(square)))
    return found
