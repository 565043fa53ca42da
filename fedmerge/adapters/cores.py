"""One module's LoRA updates as a layer: small cores between orthonormal bases, no dense matrix formed."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmerge.adapters.lowrank import orthonormal
from fedmerge.adapters.updates import Updates
from fedmerge.rules.spectral import Layer, shares, singular


def layer_of(updates: Updates, precision: float) -> Layer:
    """The clients' updates between orthonormal bases of all their factors.

    Args:
        updates: of one module.
        precision: singular values below this share of the largest are rounding of the adapter's dtype.
    """
    left, right = updates.bases()
    tall, wide = orthonormal(left), orthonormal(right.T)
    return Layer(updates.cores(tall.triangle, wide.triangle), tall.formed(), wide.formed().T, precision)


def published(updates: Updates, weights: Tensor, precision: float) -> Layer:
    """The clients' updates between the singular vectors of their stacked factors, as they came.

    The bases of Core Space as published: another factorisation of the same updates gives others.

    Args:
        updates: of one module.
        weights: raw, `(clients,)`; equal weights are the paper.
        precision: directions below this share of the largest are rounding.
    """
    clients = range(len(updates.deltas))
    roots = (shares(weights) * len(weights)).sqrt()
    lefts, rights = (
        [updates.left(client) for client in clients],
        [updates.right(client) for client in clients],
    )
    columns = _singular_columns(
        torch.cat([root * left for root, left in zip(roots, lefts, strict=True)], dim=1), precision
    )
    rows = _singular_columns(
        torch.cat([root * right for root, right in zip(roots, rights, strict=True)]).T, precision
    ).T
    cores = [(columns.T @ left) @ (right @ rows.T) for left, right in zip(lefts, rights, strict=True)]
    identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    layer = Layer(torch.stack(cores), columns, rows, precision)
    return layer.turned(torch.eye(columns.shape[1]).to(identity), identity)  # fixes the signs


def _singular_columns(matrix: Tensor, precision: float) -> Tensor:
    """The left singular vectors of a tall matrix that are no rounding."""
    basis = orthonormal(matrix)
    return basis.lift(singular(basis.triangle, precision).left)
