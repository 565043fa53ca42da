"""Where an elementwise rule meets a layer's updates: dense and tile by tile, or as small cores."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from fedmerge.adapters.apply import Source
from fedmerge.adapters.lowrank import truncate_dense
from fedmerge.adapters.spaces.layers import Layers, Step, naming
from fedmerge.rules.spectral import Layer


class Place(Protocol):
    """A way from modules to what a rule can merge, and back."""

    def source(self, name: str) -> Source:
        """A module's updates as a rule sees them."""
        ...

    def back(self, name: str, values: Tensor, rank: int) -> Step:
        """The module's next product from the merged values."""
        ...


class Dense:
    """The updates themselves, made where they are asked for: one dense result at a time, never N."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def source(self, name: str) -> Source:
        """Values `(outputs, inputs)`, in the adapter's working dtype."""
        return self.layers.product(name)

    def back(self, name: str, values: Tensor, rank: int) -> Step:
        """Truncate received plus merged."""
        updates, whole = self.layers.updates(name), values.to(torch.float64, copy=True)
        step = float(torch.linalg.vector_norm(whole)) ** 2
        updates.add_before(whole)
        with naming(name):
            low = truncate_dense(whole, rank, self.layers.precision(name), updates.bases()[1])
        return Step(low, step)


class Cores:
    """The updates between bases that all clients share, `(R, R')` with R at most the sum of the ranks.

    Args:
        layers: of the merge.
        align: module -> its layer, always the same.
    """

    def __init__(self, layers: Layers, align: Callable[[str], Layer]) -> None:
        self.layers = layers
        self.align = lru_cache(maxsize=1)(align)

    def source(self, name: str) -> Source:
        """Values `(R, R')`, float64; of all that is aligned only they are kept."""
        cores = self.align(name).cores
        flat = cores.reshape(len(cores), -1)
        return Source(
            name,
            tuple(cores.shape[1:]),
            cores.dtype,
            lambda client, start, stop: flat[client, start:stop],
            stored=True,
        )

    def back(self, name: str, values: Tensor, rank: int) -> Step:
        """Map the merged core back and add it to the received product."""
        return self.layers.following(name, self.align(name).placed(values), rank)
