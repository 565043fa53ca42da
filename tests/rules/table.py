"""The table of rules that the laws run over. A new rule joins by a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fedmerge.rules import Draw, Rule, Stack, parse_rule

from . import oracles
from .oracles import Array

Oracle = Callable[[Array, Array, "np.ndarray"], Array]


@dataclass(frozen=True)
class Row:
    """A rule, what it computes, and which laws it does *not* obey."""

    rule: str
    oracle: Oracle
    copies: bool = True  # a client of weight 2 equals two clients of weight 1
    scale_free: bool = True  # weights may be given at any scale
    odd: bool = True  # rule(-x) = -rule(x)
    identity: bool = True  # a single client of weight 1 is returned as it came

    def make(self) -> Rule:
        return parse_rule(self.rule)

    def slack(self, dtype: torch.dtype) -> float:
        """What sums of the table's values may lose: the peers' presets add in the values' own precision."""
        return 64 * torch.finfo(dtype).eps if "like" in self.rule else 1e-13


def _peer(weighted: bool, divisor: str, zero: str = "positive") -> Callable[[Array, Array], Array]:
    return lambda v, w: oracles.peer_elected(v, w, weighted=weighted, divisor=divisor, zero=zero)


def _sum(v: Array, w: Array) -> Array:
    return (w[:, None] * v).sum(axis=0)


_ones = np.ones_like

TABLE = [
    Row("fedavg()", lambda v, w, u: oracles.mean(v, w)),
    Row("uniform()", lambda v, w, u: oracles.mean(v, _ones(w)), copies=False),
    Row("task_arithmetic()", lambda v, w, u: oracles.total(v, w), copies=False),
    Row(
        "task_arithmetic(scale=0.3)", lambda v, w, u: 0.3 * oracles.total(v, w), copies=False, identity=False
    ),
    Row("ties(density=1.0)", lambda v, w, u: oracles.elected_mean(v, w)),
    Row(
        "ties(density=0.4)",
        lambda v, w, u: oracles.elected_mean(oracles.keep_largest(v, 0.4), w),
        identity=False,
    ),
    Row(
        "ties(density=0.5, scale=0.3, scope='adapter')",
        lambda v, w, u: 0.3 * oracles.elected_mean(oracles.keep_largest(v, 0.5), w),
        identity=False,
    ),
    Row("dare(density=1.0)", lambda v, w, u: oracles.mean(v, w)),
    Row("dare(density=0.5)", lambda v, w, u: oracles.mean(v * (u < 0.5) / 0.5, w), identity=False),
    Row("dare_ties(density=1.0)", lambda v, w, u: oracles.elected_mean(v, w)),
    Row(
        "dare_ties(density=0.5, scale=2.0)",
        lambda v, w, u: 2 * oracles.elected_mean(v * (u < 0.5) / 0.5, w),
        identity=False,
    ),
    Row("median()", lambda v, w, u: oracles.median(v, w)),
    Row("trimmed_mean(trim=0.0)", lambda v, w, u: oracles.mean(v, w)),
    Row("trimmed_mean(trim=0.25)", lambda v, w, u: oracles.trimmed_mean(v, w, 0.25)),
    Row(
        "chain(keep_largest(density=0.5), median())",
        lambda v, w, u: oracles.median(oracles.keep_largest(v, 0.5), w),
        identity=False,
    ),
    Row("chain(elect_sign(), median())", lambda v, w, u: _elected_median(v, w)),
    Row(
        "chain(drop_random(density=0.5), keep_largest(density=0.5), mean(), scale(-1))",
        lambda v, w, u: -oracles.mean(oracles.keep_largest(v * (u < 0.5) / 0.5, 0.5), w),
        identity=False,
    ),
    Row("task_arithmetic(like='peft')", lambda v, w, u: _sum(v, w), scale_free=False),
    Row("task_arithmetic(like='mergekit')", lambda v, w, u: _sum(v, w), scale_free=False),
    Row("task_arithmetic(like='paper')", lambda v, w, u: _sum(v, _ones(w)), copies=False),
    Row(
        "ties(density=0.5, like='peft')",
        lambda v, w, u: _peer(False, "count")(oracles.keep_largest(v, 0.5, minimum=0), w),
        copies=False,
        scale_free=False,
        odd=False,
        identity=False,
    ),
    Row(
        "ties(density=0.5, like='mergekit')",
        lambda v, w, u: _peer(True, "weights")(oracles.keep_largest(v, 0.5), w),
        odd=False,
        identity=False,
    ),
    Row(
        "ties(density=0.5, like='paper')",
        lambda v, w, u: _peer(False, "count", "majority")(oracles.keep_threshold(v, 0.5), _ones(w)),
        copies=False,
        identity=False,
    ),
    Row(
        "dare(density=0.5, like='peft')",
        lambda v, w, u: _sum(v * (u < 0.5) / 0.5, w),
        scale_free=False,
        identity=False,
    ),
    Row(
        "dare(density=0.5, like='mergekit')",
        lambda v, w, u: _sum(oracles.keep_norm(v, u < 0.5), w),
        scale_free=False,
        identity=False,
    ),
    Row(
        "dare(density=0.5, like='paper', scale=0.5)",
        lambda v, w, u: 0.5 * _sum(v * (u < 0.5) / 0.5, _ones(w)),
        copies=False,
        identity=False,
    ),
    Row(
        "dare_ties(density=0.5, like='peft')",
        lambda v, w, u: _peer(False, "count")(v * (u < 0.5) / 0.5, w),
        copies=False,
        scale_free=False,
        odd=False,
        identity=False,
    ),
    Row(
        "dare_ties(density=1.0, like='mergekit')",
        lambda v, w, u: _peer(True, "one")(v, w),
        scale_free=False,
        odd=False,
    ),
    Row(
        "dare_ties(density=0.5, like='paper')",
        lambda v, w, u: _peer(False, "count", "majority")(
            oracles.keep_threshold(v * (u < 0.5) / 0.5, 0.2), _ones(w)
        ),
        copies=False,
        identity=False,
    ),
]


def _elected_median(values: Array, weights: Array) -> Array:
    elected = np.sign(_sum(values, weights))
    result = np.zeros(values.shape[1])
    for column, sign in enumerate(elected):
        counted = np.where(oracles.agreeing(values[:, column], sign), weights, 0.0)
        if counted.any():
            result[column] = oracles.median(values[:, column : column + 1], counted)[0]
    return result


@dataclass(frozen=True)
class Case:
    """Values, weights and silo names; multiples of 1/16 and whole weights make the sums in laws exact."""

    values: Tensor
    weights: Tensor
    silos: tuple[str, ...]

    @property
    def draw(self) -> Draw:
        return Draw(0, 1, self.silos, "layer.weight", (self.values.shape[1],))

    def merge(self, rule: Rule) -> Tensor:
        return rule(Stack(self.values, self.weights), self.draw)

    def clients(self, order: list[int]) -> Case:
        return Case(self.values[order], self.weights[order], tuple(self.silos[client] for client in order))


def case(values: Tensor, weights: list[float] | None = None) -> Case:
    clients = len(values)
    weight = torch.tensor(weights or [1.0] * clients, dtype=torch.float64)[:, None]
    return Case(values, weight, tuple(f"silo-{client:03d}" for client in range(clients)))


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype | None = None, zero_weights: bool = False) -> Case:
    clients, coordinates = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    spread = draw(st.sampled_from([1, 4, 128]))  # small ones make ties, zeros and drawn votes
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = torch.from_numpy(random.integers(-spread, spread, (clients, coordinates), endpoint=True) / 16)
    weights = random.integers(0 if zero_weights else 1, 5, clients, endpoint=True).astype(float).tolist()
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    return case(values.to(dtype or draw(st.sampled_from(kinds))), weights)


def expected(row: Row, given: Case) -> Array:
    uniform = given.draw.uniform(given.values.shape[1]).numpy()
    return row.oracle(given.values.to(torch.float64).numpy(), given.weights[:, 0].numpy(), uniform)


def assert_near(result: Tensor, wanted: Array | Tensor, ulps: float = 1.0, slack: float = 1e-13) -> None:
    """Equal up to `ulps` units in the last place of the result's dtype, and `slack` for sums that cancel."""
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    kind = torch.finfo(result.dtype)
    allowed = ulps * torch.clamp(wanted.abs() * kind.eps, min=kind.smallest_normal * kind.eps) + slack
    far = (result.to(torch.float64) - wanted).abs() > allowed
    assert not far.any(), f"{result[far]} is not {wanted[far]}"
