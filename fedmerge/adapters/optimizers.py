"""Server optimizers: what is done with the merged step, from round to round.

Each is a frozen dataclass with one pure method, `step(received, merged, state) -> (next adapter, next
state)`. The state is a dict of tensors, so that it can be written into a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from fedmerge.adapters.adapter import Adapter, working_dtype
from fedmerge.adapters.apply import stepped
from fedmerge.adapters.merge import Merged
from fedmerge.adapters.momentum import product_momentum
from fedmerge.adapters.pairs import split_names
from fedmerge.adapters.spaces import Factors, Space
from fedmerge.errors import AdapterMismatch, RuleError
from fedmerge.text import build, parse_call, render

OptimizerState = dict[str, Tensor]


class ServerOptimizer(Protocol):
    """What the server does with a merged step."""

    def check_space(self, space: Space) -> None:
        """Raise RuleError where the optimizer does not work in a space; ask before a round is spent."""
        ...

    def step(
        self, received: Adapter, merged: Merged, state: Mapping[str, Tensor] | None
    ) -> tuple[Adapter, OptimizerState]:
        """The next adapter and state; state None in the first round."""
        ...


@dataclass(frozen=True)
class Unchanged:
    """`none()`: the merged adapter is the next one."""

    name: ClassVar[str] = "none"

    def check_space(self, space: Space) -> None:
        """Every space will do."""

    def step(
        self, received: Adapter, merged: Merged, state: Mapping[str, Tensor] | None
    ) -> tuple[Adapter, OptimizerState]:
        """The merged adapter, and no state."""
        return merged.adapter, {}

    def __str__(self) -> str:
        return _text(self)


@dataclass(frozen=True)
class Momentum:
    """`momentum(rate=1.0, beta=0.9)`: v = beta v + step; next = received + rate v.

    In `factors()` a step and its v are differences of factors. In `product()` they are differences of the
    true updates, and v is kept as the best approximation of twice the adapter's rank: each round's new
    factors would otherwise leave a v of factors behind, pointing nowhere. With rate 1 and beta 0 it is
    `none()`.

    Args:
        rate: step size, above 0.
        beta: share of v that is kept, in [0, 1).

    Raises:
        RuleError: a knob out of range.

    Example:
        >>> str(Momentum(beta=0.5))
        'momentum(beta=0.5)'

    Reference:
        Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution, 2019, arXiv 1909.06335.
    """

    rate: float = 1.0
    beta: float = 0.9

    name: ClassVar[str] = "momentum"

    def __post_init__(self) -> None:
        _check_knobs(self, above_zero=("rate",), below_one=("beta",))

    def check_space(self, space: Space) -> None:
        """Every space will do."""

    def step(
        self, received: Adapter, merged: Merged, state: Mapping[str, Tensor] | None
    ) -> tuple[Adapter, OptimizerState]:
        """Follow the running sum of steps.

        Raises:
            AdapterMismatch: a state that is not of this adapter.
        """
        if self.rate == 1 and self.beta == 0:
            return merged.adapter, {}
        tensors, kept = {}, {}
        for name, step in _steps(received, merged).items():
            key = f"momentum/{name}"
            kept[key] = step if state is None else self.beta * _old(state, key, step) + step
            tensors[name], _ = stepped(
                received.tensors[name], self.rate * kept[key], received.tensors[name].dtype
            )
        if merged.delta is None:
            for pair in split_names(received.tensors)[0]:
                factors, velocity = product_momentum(pair, received, merged, state, (self.rate, self.beta))
                tensors |= factors
                kept |= velocity
        return _like(merged.adapter, tensors), kept

    def __str__(self) -> str:
        return _text(self)


@dataclass(frozen=True)
class Adam:
    """`adam(rate=0.001, beta1=0.9, beta2=0.99, epsilon=0.001)`, in `factors()` only.

    m = beta1 m + (1 - beta1) step; v = beta2 v + (1 - beta2) step^2; next = received + rate m / (sqrt(v) +
    epsilon), from m = 0 and v = epsilon^2, without bias correction, as published.

    Args:
        rate: how far a coordinate moves at most in about one round, above 0.
        beta1: share of m that is kept, in [0, 1).
        beta2: share of v that is kept, in [0, 1).
        epsilon: steps well below it are not blown up, above 0.

    Raises:
        RuleError: a knob out of range.

    Example:
        >>> str(Adam(rate=0.01))
        'adam(rate=0.01)'

    Reference:
        Reddi et al., Adaptive Federated Optimization, 2020, arXiv 2003.00295, algorithm 2 (FedAdam).
    """

    rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 0.001

    name: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        _check_knobs(self, above_zero=("rate", "epsilon"), below_one=("beta1", "beta2"))

    def check_space(self, space: Space) -> None:
        """Coordinates of an update that is factored anew each round have no history to adapt to.

        Raises:
            RuleError: a space other than `factors()`.
        """
        if not isinstance(space, Factors):
            raise RuleError(
                f"{self} works on coordinates that stay the same, in factors() only; not in {space}"
            )

    def step(
        self, received: Adapter, merged: Merged, state: Mapping[str, Tensor] | None
    ) -> tuple[Adapter, OptimizerState]:
        """Follow the mean of steps, each coordinate at its own rate.

        Raises:
            RuleError: a merge in a space other than `factors()`.
            AdapterMismatch: a state that is not of this adapter.
        """
        if merged.delta is None:
            raise RuleError(f"{self} works in factors() only; this merge was made in {merged.report.space}")
        tensors, kept = {}, {}
        for name, step in _steps(received, merged).items():
            first, second = f"adam/first/{name}", f"adam/second/{name}"
            mean = step * 0 if state is None else _old(state, first, step)
            square = step * 0 + self.epsilon**2 if state is None else _old(state, second, step)
            kept[first] = self.beta1 * mean + (1 - self.beta1) * step
            kept[second] = self.beta2 * square + (1 - self.beta2) * step.square()
            move = self.rate * kept[first] / (kept[second].sqrt() + self.epsilon)
            tensors[name], _ = stepped(received.tensors[name], move, received.tensors[name].dtype)
        return _like(merged.adapter, tensors), kept

    def __str__(self) -> str:
        return _text(self)


OPTIMIZERS: dict[str, Callable[..., ServerOptimizer]] = {
    "none": Unchanged,
    "momentum": Momentum,
    "adam": Adam,
}


def parse_optimizer(text: str) -> ServerOptimizer:
    """The server optimizer that a text names; `str(optimizer)` gives the text back.

    Raises:
        RuleError: an unknown name or knob, with the nearest one, or a knob out of range.

    Example:
        >>> parse_optimizer("momentum(beta=0.5)")
        Momentum(rate=1.0, beta=0.5)
    """
    optimizer: ServerOptimizer = build(parse_call(text, "server optimizer"), OPTIMIZERS, "server optimizer")
    return optimizer


def _steps(received: Adapter, merged: Merged) -> dict[str, Tensor]:
    """What each tensor moves by, in float32 or float64; LoRA pairs only where the step is one of factors."""
    if merged.delta is not None:
        return {name: _working(tensor) for name, tensor in sorted(merged.delta.tensors.items())}
    others = split_names(received.tensors)[1]
    return {
        name: _working(merged.adapter.tensors[name]) - _working(received.tensors[name]) for name in others
    }


def _working(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().to(working_dtype(tensor.dtype))


def _old(state: Mapping[str, Tensor], key: str, like: Tensor) -> Tensor:
    """A tensor of the state.

    Raises:
        AdapterMismatch: it is missing or has another shape.
    """
    if key not in state or state[key].shape != like.shape:
        found = f"shape {tuple(state[key].shape)}" if key in state else "nothing"
        raise AdapterMismatch(
            f"server optimizer state: {key!r} is {found}, expected shape {tuple(like.shape)}"
        )
    return state[key]


def _like(adapter: Adapter, tensors: Mapping[str, Tensor]) -> Adapter:
    return replace(adapter, tensors={name: tensors[name] for name in sorted(tensors)})


def _check_knobs(optimizer: Any, above_zero: tuple[str, ...], below_one: tuple[str, ...]) -> None:
    for knob in above_zero + below_one:
        value = getattr(optimizer, knob)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if (
            not number
            or value < 0
            or (value == 0 and knob in above_zero)
            or (value >= 1 and knob in below_one)
        ):
            expected = "a number above 0" if knob in above_zero else "a number in [0, 1)"
            raise RuleError(f"{optimizer.name}(): {knob} is {value!r}, expected {expected}")


def _text(optimizer: Any) -> str:
    knobs = {knob.name: getattr(optimizer, knob.name) for knob in fields(optimizer)}
    return render(optimizer.name, knobs, {knob.name: knob.default for knob in fields(optimizer)})
