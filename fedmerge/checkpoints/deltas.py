"""What fine-tunes changed in a base: fine-tune minus base, read tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmerge.adapters.adapter import working_dtype
from fedmerge.errors import AdapterMismatch
from fedmerge.wire.checkpoint import Checkpoint

COUNTED = 1 << 18
"""Values looked at together where NaN and Inf are counted."""


@dataclass(frozen=True, eq=False)
class Client:
    """One fine-tune.

    Args:
        name: random masks depend on it.
        label: what the user called it: a folder or a Hub id.
        weight: raw, above 0.
        checkpoint: its headers.
    """

    name: str
    label: str
    weight: float
    checkpoint: Checkpoint


@dataclass(frozen=True, eq=False)
class Tile:
    """A stretch of one tensor: the base `(coordinates,)` and the deltas `(clients, coordinates)`."""

    base: Tensor
    rows: Tensor


class Deltas:
    """All fine-tunes' deltas of one base; nothing is kept in memory.

    Args:
        base: what they were trained from.
        clients: the fine-tunes; a tensor that one of them lacks is one that it did not change.
    """

    def __init__(self, base: Checkpoint, clients: tuple[Client, ...]) -> None:
        self.base, self.clients = base, clients

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor's deltas are computed in: float32, or float64 where that loses bits."""
        holders = [self.base, *(client.checkpoint for client in self.clients)]
        stored = [holder.entries[name].dtype for holder in holders if name in holder.entries]
        return working_dtype(*stored)

    def tile(self, name: str, start: int, stop: int) -> Tile:
        """Coordinates `start` to `stop` of a tensor.

        Raises:
            AdapterMismatch: the base or a fine-tune holds NaN or Inf.
            WireError: a file can't be read.
        """
        dtype = self.dtype(name)
        base = self.base.read(name, start, stop).to(dtype)
        rows = torch.zeros(len(self.clients), stop - start, dtype=dtype)
        for client, row in zip(self.clients, rows, strict=True):
            if name in client.checkpoint.entries:
                torch.sub(client.checkpoint.read(name, start, stop).to(dtype), base, out=row)
                # A sum is one read; NaN and Inf always spoil it, a large sum of finite values may.
                if not math.isfinite(row.sum().item()):
                    self._check_finite(name, client)
        return Tile(base, rows)

    def _check_finite(self, name: str, client: Client) -> None:
        """Count the NaN and Inf of a whole tensor, in the base first."""
        for label, checkpoint in (("the base", self.base), (client.label, client.checkpoint)):
            nan = inf = 0
            for start, stop in spans(checkpoint.entries[name].coordinates, COUNTED):
                values = checkpoint.read(name, start, stop)
                nan, inf = nan + int(values.isnan().sum()), inf + int(values.isinf().sum())
            if nan or inf:
                total = checkpoint.entries[name].coordinates
                raise AdapterMismatch(
                    f"{label}: {name!r} holds {nan} NaN and {inf} Inf among its {total} values"
                )


def spans(coordinates: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last coordinate of each tile.

    Example:
        >>> list(spans(5, 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, coordinates, width):
        yield start, min(start + width, coordinates)
