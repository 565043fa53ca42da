"""Many modules' weighted updates truncated at once: for a GPU, which a single small core leaves idle.

The same mathematics as lowrank.py with a batch in front. In place of the core's full SVD the eigenvectors of
its square, which GPUs find in batches, and then the SVD in the subspace they span, so that no singular value
is the root of a rounded square. Modules where that or the Cholesky factor would lose digits are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.adapters.batches import in_batches, lacks_memory
from fedmerge.adapters.lowrank import SMALLEST_SQUARE, WORST_CONDITION, LowRank
from fedmerge.adapters.updates import Updates

GROUP_BYTES = 1 << 30
"""Of the modules' float64 factors that are worked on at once; the copies beside them are of that size too."""

STEEPEST = 0.1
"""Smallest diagonal entry of the Cholesky factor of columns that should be orthonormal already."""


@dataclass(frozen=True, eq=False)
class Weighted:
    """One module's received product plus `sum c_i tau_i`, truncated, and the squared norm of that sum."""

    low: LowRank
    step: float


def weighted_together(
    names: Iterable[str],
    updates: Callable[[str], Updates],
    coefficients: Mapping[str, Tensor],
    rank: int,
    precision: Callable[[str], float],
) -> dict[str, Weighted]:
    """Truncate many modules, those of one shape at once; fewer where the device has no room for all.

    Args:
        names: of the modules.
        updates: gives those of a module; asked once for each.
        coefficients: of each module's clients, `(clients,)`.
        rank: the k of the truncation.
        precision: singular values below this share of a module's largest are rounding.

    Returns:
        By name; modules that must be treated by themselves are left out.
    """
    found: dict[str, Weighted] = {}
    for group in _groups(names, updates):

        def work(batch: Sequence[str], group: dict[str, Updates] = group) -> list[Weighted | None]:
            modules, shares = [group[name] for name in batch], [coefficients[name] for name in batch]
            return truncate_together(modules, shares, rank, [precision(name) for name in batch])

        results = in_batches(list(group), lambda name: 0, 0.0, work)
        found |= {name: result for name, result in zip(group, results, strict=True) if result is not None}
        del group, work  # or they would lie beside the next ones
    return found


def _groups(names: Iterable[str], updates: Callable[[str], Updates]) -> Iterator[dict[str, Updates]]:
    """Modules of one shape and the same ranks, so many that they fit."""
    open_groups: dict[object, dict[str, Updates]] = {}
    for name in names:
        own = _made(updates, name)
        if own is None:
            while open_groups:  # what is open makes room
                yield open_groups.popitem()[1]
            own = _made(updates, name)
        if own is None:
            continue
        key = (own.shape, tuple(own.ranks))
        group = open_groups.setdefault(key, {})
        group[name] = own
        if len(group) * sum(part.nbytes for part in own.stacked) >= GROUP_BYTES:
            yield open_groups.pop(key)
    yield from open_groups.values()


def _made(updates: Callable[[str], Updates], name: str) -> Updates | None:
    """A module's updates; None where the device has no room for them."""
    try:
        return updates(name)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        return None


def truncate_together(
    updates: Sequence[Updates], coefficients: Sequence[Tensor], rank: int, precisions: Sequence[float]
) -> list[Weighted | None]:
    """Best rank-k approximations of received plus `sum c_i tau_i`, for modules of one shape and equal ranks.

    Args:
        updates: of each module.
        coefficients: of its clients, each `(clients,)`.
        rank: the k, at least 1.
        precisions: singular values below this share of a module's largest are rounding, and left out.

    Returns:
        For each module the same as `lowrank.truncate_between` to some 1e-10; None where that takes a
        factorisation that keeps more digits.
    """
    left = torch.stack([own.stacked[0] for own in updates])
    right = torch.stack([own.stacked[1].T for own in updates])
    (tall, sound), (wide, sound_too) = _triangles(left), _triangles(right)
    cores = _cores(updates, coefficients)
    inner = tall @ cores @ wide.mT
    sound = sound & sound_too & inner.isfinite().flatten(1).all(dim=1)
    u, values, v, tail, steady = _leading(torch.where(sound[:, None, None], inner, 0.0), rank)
    left = left @ torch.linalg.solve_triangular(tall, u, upper=True)
    right = (right @ torch.linalg.solve_triangular(wide, v, upper=True)).mT
    top = left.abs().argmax(dim=1, keepdim=True)
    signs = torch.where(left.gather(1, top) < 0, -1.0, 1.0).to(left.dtype)
    left, right = left * signs, right * signs.mT
    shares = torch.tensor(precisions, dtype=values.dtype, device=values.device)
    kept = values > shares[:, None] * values[:, :1]
    discarded = torch.where(kept, 0.0, values).square().sum(dim=1) + tail
    energy = values.square().sum(dim=1) + tail
    start = updates[0].ranks[0]
    cores[:, :start, :start] = 0  # of received times received there is nothing in the updates
    step = (tall @ cores @ wide.mT).square().sum(dim=(1, 2)) if start else energy
    told = torch.stack([sound & steady, kept.sum(dim=1), energy, discarded, step], dim=1).tolist()
    return [
        _weighted(left[place], values[place], right[place], row) if row[0] else None
        for place, row in enumerate(told)
    ]


def _weighted(left: Tensor, values: Tensor, right: Tensor, told: Sequence[float]) -> Weighted:
    """One module of a batch: a copy, so that it does not hold the whole batch."""
    count = int(told[1])
    low = LowRank(left[:, :count].clone(), values[:count].clone(), right[:count].clone(), told[2], told[3])
    return Weighted(low, told[4])


def _cores(updates: Sequence[Updates], coefficients: Sequence[Tensor]) -> Tensor:
    """The modules' cores `(modules, p, p)`; made once where they are the same, as for linear rules."""
    made: dict[object, Tensor] = {}
    cores = []
    for own, factors in zip(updates, coefficients, strict=True):
        numbers = tuple(factors.tolist())
        key = (numbers, own.scalings)
        if key not in made:
            made[key] = own.core(numbers)
        cores.append(made[key])
    return torch.stack(cores)


def _triangles(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Upper `(modules, p, p)` whose inverse makes the columns orthonormal, and which of them are sound."""
    gram = matrices.mT @ matrices
    squares = gram.diagonal(dim1=1, dim2=2)
    sound = ((squares > SMALLEST_SQUARE) & (squares < 1 / SMALLEST_SQUARE)).all(dim=1)
    norms = torch.where(sound[:, None], squares, 1.0).sqrt()
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    scaled = torch.where(sound[:, None, None], gram / norms[:, None] / norms[:, :, None], identity)
    upper, failed = torch.linalg.cholesky_ex(scaled, upper=True)
    sound = sound & (failed == 0)
    upper = torch.where(sound[:, None, None], upper, identity)
    inverse = torch.cholesky_inverse(upper, upper=True)
    condition = torch.linalg.matrix_norm(scaled, 1) * torch.linalg.matrix_norm(inverse, 1)
    return upper * norms[:, None], sound & (condition < WORST_CONDITION)


def _leading(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The leading singular triples of each matrix `(modules, p, p)`, k = min(rank, p) of them.

    Returns:
        Left vectors `(modules, p, k)`, values falling `(modules, k)`, right vectors `(modules, p, k)`, the
        energy of the rest `(modules,)`, and whether the digits held.
    """
    count = min(rank, matrices.shape[-1])
    squares, vectors = torch.linalg.eigh(matrices @ matrices.mT)
    spanning = vectors[..., -count:].flip(-1)
    images = matrices.mT @ spanning
    norms = torch.linalg.vector_norm(images, dim=1)
    steady = (norms > 0).all(dim=1)
    norms = torch.where(norms > 0, norms, 1.0)
    images = images / norms[:, None]
    upper, failed = torch.linalg.cholesky_ex(images.mT @ images, upper=True)
    steady &= (failed == 0) & (upper.diagonal(dim1=1, dim2=2) > STEEPEST).all(dim=1)
    identity = torch.eye(count, dtype=upper.dtype, device=upper.device)
    upper = torch.where(steady[:, None, None], upper, identity)
    right = torch.linalg.solve_triangular(upper, images, upper=True, left=False)
    u, values, vh = torch.linalg.svd((upper * norms[:, None]).mT)
    tail = squares[..., :-count].clamp(min=0).sum(dim=1)
    return spanning @ u, values, right @ vh.mT, tail, steady
