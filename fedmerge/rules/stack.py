"""What a rule is given: the values and weights of all clients, and what its random numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
        statistics: what the silos measured besides, for rules that need it: "fisher" `(clients,
            coordinates)`, or "gram" `(clients, rank, rank)`. Floating, on the device of the values.

    Raises:
        RuleError: where shapes, types or devices do not fit.

    Example:
        >>> Stack(torch.zeros(3, 8), torch.ones(3, 1, dtype=torch.float64)).clients
        3
    """

    values: Tensor
    weights: Tensor
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that values, weights and statistics fit each other."""
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
        for name, statistic in self.statistics.items():
            self._check_statistic(name, statistic)

    def _check_statistic(self, name: str, statistic: Tensor) -> None:
        """Of each coordinate where it has two axes; of the tensor as a whole where it has three."""
        clients, *rest = statistic.shape if statistic.ndim else (0,)
        fits = rest == [self.coordinates] or len(rest) == 2
        if clients != self.clients or not fits or not statistic.is_floating_point():
            raise RuleError(
                f"the statistic {name!r} is floating {tuple(self.values.shape)}, or ({self.clients}, rank, "
                f"rank), got {statistic.dtype} of shape {tuple(statistic.shape)}"
            )
        if statistic.device != self.values.device:
            raise RuleError(
                f"the statistic {name!r} is on {statistic.device}, the values on {self.values.device}"
            )

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
        statistics = {
            name: statistic[:, start:stop] if statistic.ndim == 2 else statistic
            for name, statistic in self.statistics.items()
        }
        return Stack(self.values[:, start:stop], weights, statistics)


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
