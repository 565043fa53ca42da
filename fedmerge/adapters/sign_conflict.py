"""Where silos move one coordinate in opposite directions, before and after a trim: what elections decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.compared import Compared, compared
from fedmerge.adapters.updates import ROWS, Updates
from fedmerge.rules.checks import require_share
from fedmerge.rules.stages import largest

TILE_VALUES = 1 << 22
"""Of all clients, at once: 16 MB in float32."""


@dataclass(frozen=True)
class Conflict:
    """How often, and by how much, silos disagree about a sign; shares in [0, 1].

    A silo moves a coordinate where its value is not 0. A coordinate is shared where two silos or more move
    it, and in conflict where one of them moves it up and another down.

    Args:
        density: share of the entries of each tensor that each silo kept; 1 is untrimmed.
        moved: number of coordinates that any silo moves.
        shared: share of these that two or more move.
        against: share of the shared ones that are in conflict.
        chance: what `against` would be if every silo threw a coin for each sign: `1 - 2^(1 - k)` where k
            silos move a coordinate, averaged over the shared ones.
        minority: share of all magnitude that lies on the lighter side of its coordinate, which an election
            by mass drops.
    """

    density: float
    moved: int
    shared: float
    against: float
    chance: float
    minority: float


def sign_conflict(
    deltas: Sequence[Adapter | Mapping[str, Tensor]],
    received: Adapter | Mapping[str, Tensor] | None = None,
    density: float = 1.0,
) -> Conflict:
    """Count the signs on which silos disagree.

    LoRA pairs count by their true updates, formed some rows at a time, where the LoRA settings are known; to
    count on the factors A and B instead give plain dicts of tensors. The trim is that of TIES: each silo
    keeps the `density` largest magnitudes of each tensor (and what is as large as the smallest of them).

    Args:
        deltas: as for `merge`.
        received: what the silos started from.
        density: share kept, in (0, 1].

    Raises:
        AdapterMismatch: deltas that do not belong together, or none.
        RuleError: a density out of range.

    Example:
        >>> one, two = {"x": torch.tensor([3.0, 4.0, 1.0, 0.0])}, {"x": torch.tensor([5.0, -1.0, -2.0, 3.0])}
        >>> found = sign_conflict([one, two])
        >>> round(found.shared, 2), round(found.against, 2), found.chance
        (0.75, 0.67, 0.5)
        >>> sign_conflict([one, two], density=0.5).against
        0.0

    Reference:
        Yadav et al., TIES-Merging, 2023, arXiv 2306.01708, section 3 and figure 4 (sign conflicts by trim).
    """
    require_share("sign_conflict", "density", density)
    together = compared(deltas, received)
    counts = torch.zeros(6, dtype=torch.float64)
    with torch.no_grad():
        for source in _sources(together):
            counts += _counted(source, len(together.deltas), density)
    moved, shared, against, chance, minority, mass = counts.tolist()
    return Conflict(
        density=density,
        moved=int(moved),
        shared=_ratio(shared, moved),
        against=_ratio(against, shared),
        chance=_ratio(chance, shared),
        minority=_ratio(minority, mass),
    )


@dataclass(frozen=True)
class _Source:
    """One tensor: `(client, start, stop) -> (stop - start,)` float32, and how wide a row is."""

    values: Callable[[int, int, int], Tensor]
    coordinates: int
    inputs: int


def _sources(together: Compared) -> Iterator[_Source]:
    for pair in together.pairs:
        updates = together.updates(pair)
        outputs, inputs = updates.shape
        yield _Source(_formed(updates), outputs * inputs, inputs)
    for name in together.others:
        rows = [tensor.reshape(-1) for tensor in together.tensors(name)]
        yield _Source(_looked_up(rows), len(rows[0]), 1)


def _formed(updates: Updates) -> Callable[[int, int, int], Tensor]:
    return lambda client, start, stop: updates.values(client, start, stop, torch.float32)


def _looked_up(rows: Sequence[Tensor]) -> Callable[[int, int, int], Tensor]:
    return lambda client, start, stop: rows[client][start:stop].float()


def _counted(source: _Source, clients: int, density: float) -> Tensor:
    """Moved, shared, in conflict, expected in conflict; minority and whole magnitude: `(6,)`."""
    least = [_threshold(source, client, density) for client in range(clients)]
    # Whole blocks of rows, as they were formed for the thresholds: the same bits both times.
    step = ROWS * source.inputs
    width = max(1, TILE_VALUES // (clients * step)) * step
    counts = torch.zeros(6, dtype=torch.float64)
    for start in range(0, source.coordinates, width):
        stop = min(start + width, source.coordinates)
        rows = torch.stack([source.values(client, start, stop) for client in range(clients)])
        for row, threshold in zip(rows, least, strict=True):
            row[row.abs() < threshold] = 0
        counts += _tile(rows)
    return counts


def _threshold(source: _Source, client: int, density: float) -> float:
    """The smallest magnitude that a client keeps of a tensor."""
    if density == 1 or source.coordinates == 0:
        return 0.0
    magnitudes = source.values(client, 0, source.coordinates).abs()
    kept = magnitudes[largest(magnitudes, max(1, int(density * source.coordinates)))]
    return float(kept.min())


def _tile(rows: Tensor) -> Tensor:
    up, down = (rows > 0).sum(dim=0), (rows < 0).sum(dim=0)
    moving = up + down
    shared = moving >= 2
    coins = (1 - 2.0 ** (1 - moving[shared].to(torch.float64))).sum()
    magnitude, net = rows.abs().sum(dim=0, dtype=torch.float64), rows.sum(dim=0, dtype=torch.float64).abs()
    figures = [
        (moving > 0).sum(), shared.sum(), ((up > 0) & (down > 0)).sum(), coins,
        ((magnitude - net) / 2).sum(), magnitude.sum(),
    ]  # fmt: skip
    return torch.stack([figure.to(torch.float64) for figure in figures])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
