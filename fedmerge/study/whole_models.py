"""Whole fine-tunes compared with their base, tensor by tensor from disk: lengths and angles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedmerge.adapters.angles import geometry_of
from fedmerge.adapters.figures import Figures
from fedmerge.adapters.lengths import relative_length, relative_lengths
from fedmerge.checkpoints.deltas import Client, Deltas, spans
from fedmerge.checkpoints.together import Policy, check_fit
from fedmerge.errors import AdapterMismatch
from fedmerge.study.inspection import Inspection
from fedmerge.wire.checkpoint import Checkpoint

TILE_VALUES = 1 << 22
"""Of all fine-tunes, read at once."""


def inspect_models(
    models: Mapping[str, Checkpoint], base: Checkpoint, tracked: Callable[[str], None] = lambda name: None
) -> Inspection:
    """Compare fine-tunes with a base; one that is not theirs shows by its distance.

    Two initialisations of one shape lie about 1.4 lengths of the weights apart (uncorrelated vectors of equal
    length), a fine-tune some hundredths.

    Args:
        models: by name.
        base: what they are said to be trained from.
        tracked: told each tensor's name when it was read.

    Raises:
        AdapterMismatch: other tensors or shapes than the base's, NaN or Inf, or no tensor of real numbers.
        WireError: a file can't be read.
    """
    for name, model in models.items():
        check_fit(name, model, base, Policy())
    deltas = Deltas(base, tuple(Client(name, name, 1.0, model) for name, model in models.items()))
    grams: dict[str, Tensor] = {}
    norms: dict[str, float] = {}
    for name, entry in base.entries.items():
        if entry.dtype.is_floating_point:
            grams[name], norm = _measured(deltas, name)
            norms |= {name: norm} if norm else {}
            tracked(name)
    if not grams:
        raise AdapterMismatch(
            f"{base.folder} holds no tensor of real numbers, so there is nothing to compare"
        )
    shares = torch.full((len(models),), 1 / len(models), dtype=torch.float64)
    shape = geometry_of(grams, shares, None, in_products=False)
    # By the matrices: norms' weights are near 1 in every model, and would make strangers look like kin.
    matrices = {name: norm for name, norm in norms.items() if len(base.entries[name].shape) > 1} or norms
    figures = Figures(tuple(models), shape, relative_length(shape.layers, matrices), whole=True)
    return Inspection(figures, relative_lengths(shape.layers, norms))


def _measured(deltas: Deltas, name: str) -> tuple[Tensor, float]:
    """Inner products of one tensor's deltas, and the length of the base's."""
    clients = len(deltas.clients)
    gram, square = torch.zeros(clients, clients, dtype=torch.float64), 0.0
    for start, stop in spans(deltas.base.entries[name].coordinates, TILE_VALUES // (clients + 1) + 1):
        tile = deltas.tile(name, start, stop)
        rows, base = tile.rows.to(torch.float64), tile.base.to(torch.float64)
        gram += rows @ rows.T
        square += float(base @ base)
    return gram, math.sqrt(square)
