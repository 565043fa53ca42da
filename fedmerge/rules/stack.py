"""What a rule is given: the values and weights of all clients, and what its random numbers depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules.randomness import stream_key, uniform_stream


@dataclass(frozen=True, eq=False)
class Stack:
    """One tensor of every client, flattened, with the clients' weights.

    Args:
        values: `(clients, coordinates)`, floating.
        weights: `(clients, 1)`, or `(clients, coordinates)` once a stage has edited them; float64, on the
            device of the values, not negative. Raw: any scale (numbers of examples, say).

    Raises:
        RuleError: where shapes, types or devices do not fit.

    Example:
        >>> Stack(torch.zeros(3, 8), torch.ones(3, 1, dtype=torch.float64)).clients
        3
    """

    values: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        """Check that values and weights fit each other."""
        values, weights = self.values, self.weights
        if len(values.shape[1:]) != 1 or values.shape[0] == 0 or not values.is_floating_point():
            raise RuleError(
                f"values are floating (clients, coordinates) with at least one client, got {values.dtype} "
                f"of shape {tuple(values.shape)}"
            )
        fits = tuple(weights.shape) in {(self.clients, 1), tuple(values.shape)}
        if not fits or weights.dtype != torch.float64:
            raise RuleError(
                f"weights are float64 ({self.clients}, 1) or {tuple(values.shape)}, got {weights.dtype} "
                f"of shape {tuple(weights.shape)}"
            )
        if weights.device != values.device:
            raise RuleError(f"weights are on {weights.device}, the values on {values.device}")

    @property
    def clients(self) -> int:
        """Number of clients."""
        return self.values.shape[0]

    @property
    def coordinates(self) -> int:
        """Number of coordinates."""
        return self.values.shape[1]

    def columns(self, start: int, stop: int) -> Stack:
        """The coordinates `start` to `stop`, without a copy."""
        weights = self.weights if self.weights.shape[1] == 1 else self.weights[:, start:stop]
        return Stack(self.values[:, start:stop], weights)


@dataclass(frozen=True)
class Draw:
    """What random numbers are drawn for: they depend on this, and on nothing else.

    Args:
        seed: the run's seed.
        round: the round's number.
        silos: the name behind each row of the stack.
        tensor: the tensor's name.
        shape: the whole tensor's shape.
        offset: first coordinate of this chunk in the flattened tensor.

    Example:
        >>> draw = Draw(seed=0, round=1, silos=("a", "b"), tensor="head.weight", shape=(2, 3))
        >>> draw.uniform(6).shape
        torch.Size([2, 6])
        >>> bool((draw.at(4).uniform(2) == draw.uniform(6)[:, 4:]).all())
        True
    """

    seed: int
    round: int
    silos: tuple[str, ...]
    tensor: str
    shape: tuple[int, ...]
    offset: int = 0

    def at(self, offset: int) -> Draw:
        """The same draw, beginning `offset` coordinates later."""
        return replace(self, offset=self.offset + offset)

    def uniform(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Numbers for the next `count` coordinates of every client: float64 `(clients, count)` in [0, 1)."""
        return torch.stack([self.uniform_row(client, count, device) for client in range(len(self.silos))])

    def uniform_row(self, client: int, count: int, device: torch.device | str = "cpu") -> Tensor:
        """One client's row of `uniform`: float64 `(count,)`."""
        key = stream_key(self.seed, self.round, self.silos[client], self.tensor)
        return uniform_stream(key, self.offset, count, device)
