"""From a product back to factors A and B that a silo can train on."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmerge.adapters.lowrank import LowRank


def balanced_factors(low: LowRank, scaling: float, rank: int, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """`scaling * B @ A` is the product; each singular value is shared out evenly between A and B.

    Where the product has a lower rank than the adapter, the columns of B that are left over are 0, and the
    rows of A opposite them are not: zeros on both sides would be a saddle point that no gradient leaves, and
    the adapter would have lost those ranks for good. They are taken from the candidates, less what the
    product already spans: so a left-over rank starts as a fresh LoRA rank does, B zero, A of the size it
    had, in a direction that is free. Where nothing is left of the product at all, A stays as it was.

    Args:
        low: the product, of rank up to `rank`.
        scaling: lora_scaling, above 0.
        rank: rank of the factors.
        candidates: rows for the left-over ranks of A, (any, inputs): the received A.

    Returns:
        A (rank, inputs) and B (outputs, rank).
    """
    root = (low.values / scaling).sqrt()
    a, b = root.unsqueeze(1) * low.right, low.left * root
    free = rank - len(root)
    if free:
        a = torch.cat([a, _free_rows(low.right, free, candidates)])
        b = torch.cat([b, b.new_zeros(len(b), free)], dim=1)
    return a.contiguous(), b.contiguous()


def _free_rows(taken: Tensor, count: int, candidates: Tensor) -> Tensor:
    """The `count` strongest directions of the candidates, less the rows taken, at their size."""
    if len(taken) == 0 and len(candidates) == count:
        return candidates
    rest = candidates - candidates @ taken.T @ taken
    _, sizes, rows = torch.linalg.svd(rest, full_matrices=False)
    # What the rows taken span leaves rounding behind: no direction.
    sizes, rows = sizes[:count], rows[:count]
    sizes = torch.where(sizes > 1e-12 * torch.linalg.matrix_norm(candidates), sizes, 0.0)
    top = rows.abs().argmax(dim=1, keepdim=True)
    found = torch.where(rows.gather(1, top) < 0, -1.0, 1.0) * sizes.unsqueeze(1) * rows
    return torch.cat([found, rows.new_zeros(count - len(found), rows.shape[1])])
