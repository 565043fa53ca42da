"""How far updates lead, measured by the weights that they move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Callable[[str], Tensor | None] | Mapping[str, Tensor]
"""A base's weight by the name of its module in the adapter; None, or no entry, where it has none."""


def weight_norms(names: Iterable[str], base: Weights) -> dict[str, float]:
    """The length (Frobenius norm, in float64) of each weight that the base has; zero weights are left out.

    Args:
        names: of modules or tensors of an adapter.
        base: the weights.

    Example:
        >>> weight_norms(["q", "head"], {"q": torch.tensor([[3.0, 4.0]])})
        {'q': 5.0}
    """
    found: dict[str, float] = {}
    for name in names:
        weight = base.get(name) if isinstance(base, Mapping) else base(name)
        norm = 0.0 if weight is None else float(torch.linalg.vector_norm(weight.to(torch.float64)))
        if norm:
            found[name] = norm
    return found


def relative_lengths(
    layers: Mapping[str, Sequence[float]], norms: Mapping[str, float]
) -> dict[str, tuple[float, ...] | None]:
    """Each update's length divided by that of the weight it is added to.

    Args:
        layers: by module, each silo's norm there: `Geometry.layers`.
        norms: of the base's weights: `weight_norms`.

    Returns:
        By module, a ratio for each silo; None where the base has no such weight.

    Example:
        >>> relative_lengths({"q": (1.0, 0.5), "head": (2.0, 2.0)}, {"q": 5.0})
        {'q': (0.2, 0.1), 'head': None}
    """
    return {
        name: tuple(length / norms[name] for length in lengths) if name in norms else None
        for name, lengths in layers.items()
    }


def relative_length(
    layers: Mapping[str, Sequence[float]], norms: Mapping[str, float]
) -> tuple[float, ...] | None:
    """The same over all modules of which the base has the weight: one ratio for each silo, None without any.

    Example:
        >>> relative_length({"q": (3.0,), "k": (4.0,), "head": (9.0,)}, {"q": 3.0, "k": 4.0})
        (1.0,)
    """
    shared = [name for name in layers if name in norms]
    if not shared:
        return None
    whole = math.hypot(*(norms[name] for name in shared))
    return tuple(math.hypot(*each) / whole for each in zip(*(layers[name] for name in shared), strict=True))
