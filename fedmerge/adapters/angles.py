"""How the silos' updates lie to each other: how long, how alike, and who leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.checks import check_weights
from fedmerge.adapters.compared import compared
from fedmerge.rules.gram import cosines_of, norms_of


@dataclass(frozen=True)
class Geometry:
    """What `compare` found, in plain values; clients in the order given.

    LoRA pairs count as the true updates of their weights where the LoRA settings are known
    (`in_products`); else A and B count as tensors of their own.

    Args:
        norms: Frobenius norm of each client's whole update.
        cosines: `(clients, clients)`; 0 for a client whose update is zero.
        layers: by module or tensor, each client's norm there.
        influence: each client's part of the weighted mean update, signed, with sum 1: its projection
            on the mean, times its share of the weights. All 0 where the mean is zero.
        leader: position of the client of largest influence; None where the mean is zero.
        sign_conflict: share of the sent coordinates (of the factors, not their products) in which clients
            move in opposite directions, of those in which any moves; None where no tensor has one shape for
            all.
        in_products: whether LoRA pairs were compared as products.
    """

    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    layers: dict[str, tuple[float, ...]]
    influence: tuple[float, ...]
    leader: int | None
    sign_conflict: float | None
    in_products: bool


def compare(
    deltas: Sequence[Adapter | Mapping[str, Tensor]],
    weights: Sequence[float] | Tensor | None = None,
    received: Adapter | Mapping[str, Tensor] | None = None,
) -> Geometry:
    """Compare deltas without merging them.

    Inner products of LoRA products come from the Gram matrices of the factors, `tr((B_i' B_j)(A_j A_i'))`:
    nothing of the layer's size is formed.

    Args:
        deltas: as for `merge`.
        weights: raw weights, for `influence` alone; None: all alike.
        received: what the clients started from.

    Returns:
        Norms, cosines, influence and conflict.

    Raises:
        AdapterMismatch: deltas that do not belong together, or none.
        RuleError: weights that can't be used.

    Example:
        >>> one, two = {"x": torch.tensor([3.0, 4.0])}, {"x": torch.tensor([3.0, -4.0])}
        >>> found = compare([one, two])
        >>> found.norms, round(found.cosines[0][1], 2), found.sign_conflict
        ((5.0, 5.0), -0.28, 0.5)
    """
    together = compared(deltas, received)
    shares = torch.tensor(check_weights(weights, len(together.deltas)), dtype=torch.float64)
    with torch.no_grad():
        conflict = _sign_conflict(together.deltas)
        return geometry_of(together.grams(), shares / shares.sum(), conflict, together.in_products)


def geometry_of(
    grams: Mapping[str, Tensor], shares: Tensor, sign_conflict: float | None, in_products: bool
) -> Geometry:
    """What inner products tell.

    Args:
        grams: by module or tensor, float64 `(clients, clients)`.
        shares: of the weights, `(clients,)`, with sum 1.
        sign_conflict: goes along as it is.
        in_products: likewise.
    """
    gram = torch.stack(list(grams.values())).sum(dim=0)
    norms, cosines = norms_of(gram), cosines_of(gram)
    onto_mean = gram @ shares
    mean_square = float(shares @ onto_mean)
    influence = shares * onto_mean / mean_square if mean_square > 0 else torch.zeros_like(shares)
    return Geometry(
        norms=tuple(norms.tolist()),
        cosines=tuple(tuple(row) for row in cosines.tolist()),
        layers={name: tuple(norms_of(layer).tolist()) for name, layer in grams.items()},
        influence=tuple(influence.tolist()),
        leader=int(influence.argmax()) if mean_square > 0 else None,
        sign_conflict=sign_conflict,
        in_products=in_products,
    )


def _sign_conflict(clients: Sequence[Adapter]) -> float | None:
    moved, against, compared = 0, 0, False
    for name in sorted(clients[0].tensors):
        tensors = [client.tensors[name].detach().cpu() for client in clients]
        if len({tensor.shape for tensor in tensors}) > 1:
            continue
        compared = True
        up, down = (
            torch.zeros_like(tensors[0], dtype=torch.bool),
            torch.zeros_like(tensors[0], dtype=torch.bool),
        )
        for tensor in tensors:
            up |= tensor > 0
            down |= tensor < 0
        moved += int((up | down).sum())
        against += int((up & down).sum())
    return (against / moved if moved else 0.0) if compared else None
