"""The table of rules that the laws run over. A new rule joins by a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fedmerge.rules import Draw, Rule, Stack, parse_rule
from fedmerge.rules.statistics import needs_of

from . import oracles, oracles_agreement, oracles_gram, oracles_informed, oracles_presets, oracles_sparse
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
    exact: bool = (
        True  # on the table's coarse values sums are exact, so that a drawn vote is drawn in any order
    )
    homogeneous: bool = True  # rule(c x) = c rule(x)
    named: tuple[str, ...] = ()  # clients that it names, who must be there
    fewest: int = 1  # clients of weight above 0 that it needs
    most: int = 1000  # and takes
    loss: float = 1e-13  # what its arithmetic may lose on the table's values

    def make(self) -> Rule:
        return parse_rule(self.rule)

    def suited(self, given: Case) -> Case:
        """The case with as many clients as the rule takes; off the grid and in at least float32 where a
        drawn vote would be decided by rounding.
        """
        given = self._present(self._peopled(given))
        if self.exact:
            return given
        spread = torch.rand(given.values.shape, generator=torch.Generator().manual_seed(0)).to(torch.float64)
        values = given.values.to(torch.float64) * (0.75 + spread / 2)
        dtype = torch.float64 if given.values.dtype == torch.float64 else torch.float32
        return Case(values.to(dtype), given.weights, given.silos)

    def _present(self, given: Case) -> Case:
        weights = given.weights.clone()
        for place, silo in enumerate(given.silos):
            if silo in self.named:
                weights[place] = weights[place].clamp(min=1)
        return Case(given.values, weights, given.silos)

    def _peopled(self, given: Case) -> Case:
        if self.fewest > 1:
            spread = torch.Generator().manual_seed(len(given.silos))
            more = torch.randint(-16, 17, (self.fewest, given.values.shape[1]), generator=spread) / 16
            return Case(
                torch.cat([given.values, more.to(given.values.dtype)]),
                torch.cat([given.weights, torch.ones(self.fewest, 1, dtype=torch.float64)]),
                given.silos + tuple(f"silo-{900 + client}" for client in range(self.fewest)),
            )
        return given.clients(list(range(min(self.most, len(given.silos)))))

    def takes(self, given: Case) -> bool:
        return self.fewest <= len(given.silos) <= self.most

    def slack(self, dtype: torch.dtype) -> float:
        """What sums of the table's values may lose: the peers' presets add in the values' own precision."""
        return max(64 * torch.finfo(dtype).eps if "like" in self.rule else 0.0, self.loss)


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
    Row(
        "task_arithmetic(scale=0.3, negate='silo-000')",
        lambda v, w, u: 0.3 * oracles.total(oracles.without(v, 0), w),
        copies=False,
        identity=False,
        named=("silo-000",),
    ),
    Row(
        "chain(negate(silos='silo-000'), keep_largest(density=0.5), elect_sign(), mean())",
        lambda v, w, u: oracles.elected_mean(oracles.keep_largest(oracles.without(v, 0), 0.5), w),
        identity=False,
        named=("silo-000",),
    ),
    Row(
        "chain(negate(silos=('silo-000',)), model_stock())",
        lambda v, w, u: oracles_gram.model_stock(oracles.without(v, 0), w),
        copies=False,
        identity=False,
        named=("silo-000",),
        loss=1e-12,
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
    Row("della(density=1.0, epsilon=0.0)", lambda v, w, u: oracles.elected_mean(v, w)),
    Row(
        "della(density=0.5, epsilon=0.25)",
        lambda v, w, u: oracles.elected_mean(oracles_sparse.drop_by_rank(v, u, 0.5, 0.25), w),
        identity=False,
        exact=False,
    ),
    Row(
        "della_linear(density=0.4, epsilon=0.05, scale=0.3)",
        lambda v, w, u: 0.3 * oracles.total(oracles_sparse.drop_by_rank(v, u, 0.4, 0.05), w),
        copies=False,  # a sum over the clients, so their number counts
        identity=False,
    ),
    Row(
        "breadcrumbs(density=0.9, gamma=0.01)",
        lambda v, w, u: oracles.total(oracles_sparse.keep_middle(v, 0.9, 0.01), w),
        copies=False,  # a sum, as all of task arithmetic
        identity=False,
    ),
    Row(
        "breadcrumbs(density=0.4, gamma=0.3, scale=0.5)",
        lambda v, w, u: 0.5 * oracles.total(oracles_sparse.keep_middle(v, 0.4, 0.3), w),
        copies=False,  # a sum
        identity=False,
    ),
    Row(
        "breadcrumbs_ties(density=0.5, gamma=0.2, scope='adapter')",
        lambda v, w, u: oracles_sparse.agreed_total(oracles_sparse.keep_middle(v, 0.5, 0.2), w),
        copies=False,  # a sum
        identity=False,
    ),
    Row("sce(density=1.0)", lambda v, w, u: oracles_agreement.sce(v, w, 1.0)),
    Row("sce(density=0.4)", lambda v, w, u: oracles_agreement.sce(v, w, 0.4)),
    Row(
        "consensus(clients=2, threshold=0.4)",
        lambda v, w, u: oracles_agreement.consensus(v, w, 2, 0.4),
        copies=False,  # it counts the clients that use a coordinate
    ),
    Row(
        "consensus(clients=1, threshold=1.0, scale=0.3)",
        lambda v, w, u: 0.3 * oracles_agreement.consensus(v, w, 1, 1.0),
        copies=False,
        identity=False,
    ),
    Row("magmax(scale=1.0)", lambda v, w, u: oracles_agreement.magmax(v, w)),
    Row("emr_unified(scale=1.0)", lambda v, w, u: oracles_agreement.emr_unified(v, w)),
    Row("ram(threshold=0.001, rate=0.0, limit=1.0)", lambda v, w, u: oracles_agreement.ram(v, w, 1e-3, 0, 1)),
    Row(
        "ram(threshold=1e-05, rate=0.5, limit=0.7)",
        lambda v, w, u: oracles_agreement.ram(v, w, 1e-5, 0.5, 0.7),
        copies=False,  # what one client of weight 2 changed alone, two of weight 1 changed together
    ),
    Row(
        "ram(threshold=0.0, rate=0.05, limit=1.0, scope='adapter')",
        lambda v, w, u: oracles_agreement.ram(v, w, 0.0, 0.05, 1.0),
        copies=False,
    ),
    Row(
        "fisher(floor=0.25)",
        lambda v, w, u: oracles_informed.fisher_mean(v, w, oracles_informed.fisher_of(u), 0.25),
    ),
    Row(
        "fisher(floor=0.0, scale=0.5)",
        lambda v, w, u: 0.5 * oracles_informed.fisher_mean(v, w, oracles_informed.fisher_of(u), 0.0),
        identity=False,
    ),
    *(
        Row(
            f"fisher(floor=0.25, normalize='{over}')",
            lambda v, w, u: oracles_informed.fisher_mean(v, w, oracles_informed.fisher_of(u), 0.25, True),
            identity=False,
        )
        for over in ("tensor", "adapter")
    ),
    Row(
        "chain(equal_weights(), fisher_weights(floor=0.5), keep_largest(density=0.5), mean())",
        lambda v, w, u: oracles_informed.fisher_mean(
            oracles.keep_largest(v, 0.5), _ones(w) * (w > 0), oracles_informed.fisher_of(u), 0.5
        ),
        copies=False,
        identity=False,
    ),
    # On a tensor that is no factor B; on factors: test_statistics.py.
    Row("regmean()", lambda v, w, u: oracles.mean(v, w)),
    Row("median()", lambda v, w, u: oracles.median(v, w)),
    Row("trimmed_mean(trim=0.0)", lambda v, w, u: oracles.mean(v, w)),
    Row("trimmed_mean(trim=0.25)", lambda v, w, u: oracles.trimmed_mean(v, w, 0.25)),
    Row("slerp()", lambda v, w, u: oracles_gram.slerp(v, w, None, 0.9995), copies=False, most=2),
    Row("nuslerp()", lambda v, w, u: oracles_gram.slerp(v, w, None, 1 - 5e-13), copies=False, most=2),
    Row("multislerp()", lambda v, w, u: oracles_gram.on_sphere(v, w, 0), exact=False, loss=1e-10),
    Row("karcher()", lambda v, w, u: oracles_gram.on_sphere(v, w, 100), exact=False, loss=1e-9),
    Row(
        "karcher(iterations=1, scope='adapter')",
        lambda v, w, u: oracles_gram.on_sphere(v, w, 1),
        exact=False,
        loss=1e-9,
    ),
    Row(  # two clients of one direction are no news of a third
        "model_stock()", lambda v, w, u: oracles_gram.model_stock(v, w), copies=False, loss=1e-12
    ),
    Row(
        "chain(equal_weights(), model_stock(scope='adapter'), scale(factor=0.5))",
        lambda v, w, u: 0.5 * oracles_gram.model_stock(v, _ones(w) * (w > 0)),
        copies=False,
        identity=False,
        loss=1e-12,
    ),
    Row(
        "chain(keep_largest(density=0.5), model_stock())",
        lambda v, w, u: oracles_gram.model_stock(oracles.keep_largest(v, 0.5), w),
        copies=False,
        identity=False,
        loss=1e-12,
    ),
    *(  # clients are counted, not weighed; what two alike clients send looks like a crowd
        Row(
            rule,
            lambda v, w, u, f=attackers, m=keep: oracles_gram.multi_krum(v, w, f, m),
            copies=False,
            identity=False,
            exact=False,
            fewest=2 * attackers + 3,
        )
        for rule, attackers, keep in (
            ("krum(attackers=0)", 0, 1),
            ("krum(attackers=1, scope='adapter')", 1, 1),
            ("multi_krum(attackers=1)", 1, None),
            ("multi_krum(attackers=1, keep=2, scope='tensor')", 1, 2),
        )
    ),
    Row(
        "geometric_median()",
        lambda v, w, u: oracles_gram.geometric_median(v, w, 100, 1e-6),
        exact=False,
        loss=1e-9,
    ),
    Row(
        "geometric_median(iterations=3, smoothing=0.1, scope='tensor')",
        lambda v, w, u: oracles_gram.geometric_median(v, w, 3, 0.1),
        exact=False,
        loss=1e-9,
    ),
    Row("norm_clipping()", lambda v, w, u: oracles.mean(oracles_gram.clip_norm(v, w, None), w)),
    Row(
        "norm_clipping(limit=0.5, scope='tensor')",
        lambda v, w, u: oracles.mean(oracles_gram.clip_norm(v, w, 0.5), w),
        identity=False,
        homogeneous=False,
    ),
    Row(
        "chain(clip_norm(scope='tensor'), ties(density=0.5))",
        lambda v, w, u: oracles.elected_mean(
            oracles.keep_largest(oracles_gram.clip_norm(v, w, None), 0.5), w
        ),
        identity=False,
        exact=False,
    ),
    *(  # on a tensor that is no matrix; on matrices: test_spectral.py
        Row(rule, lambda v, w, u: oracles.mean(v, w))
        for rule in (
            "core_space()",
            "core_space(rule=median())",
            "knots()",
            "tsv_merge()",
            "iso_c(scale=0.5)",
            "iso_cts()",
            "cart()",
        )
    ),
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
    Row(
        "ties(density=0.5, votes='frequency')",
        lambda v, w, u: oracles_presets.elected_by_heads(oracles.keep_largest(v, 0.5), w),
        identity=False,
    ),
    Row(
        "ties(density=0.5, like='peft', votes='frequency')",
        lambda v, w, u: oracles_presets.elected_by_heads(
            oracles.keep_largest(v, 0.5, minimum=0), w, divisor="count"
        ),
        copies=False,
        scale_free=False,
        odd=False,
        identity=False,
    ),
    Row(
        "dare_ties(density=0.5, votes='frequency')",
        lambda v, w, u: oracles_presets.elected_by_heads(v * (u < 0.5) / 0.5, w),
        identity=False,
    ),
    Row(
        "della(density=0.5, epsilon=0.25, like='mergekit')",
        lambda v, w, u: _peer(True, "weights")(oracles_presets.drop_by_rank_keep_norm(v, u, 0.5, 0.25), w),
        odd=False,
        identity=False,
        exact=False,
    ),
    Row(
        "della_linear(density=0.4, epsilon=0.15, like='mergekit')",
        lambda v, w, u: _sum(oracles_presets.drop_by_rank_keep_norm(v, u, 0.4, 0.15), w),
        scale_free=False,
        identity=False,
    ),
    Row(
        "breadcrumbs(density=0.4, gamma=0.3, like='mergekit')",
        lambda v, w, u: _sum(oracles_sparse.keep_middle(v, 0.4, 0.3), w),
        scale_free=False,
        identity=False,
    ),
    Row(
        "breadcrumbs_ties(density=0.4, gamma=0.3, like='mergekit')",
        lambda v, w, u: _peer(True, "one")(oracles_sparse.keep_middle(v, 0.4, 0.3), w),
        scale_free=False,
        odd=False,
        identity=False,
    ),
    Row(
        "sce(density=1.0, like='mergekit')",
        lambda v, w, u: oracles_presets.mergekit_sce(v, w),
        copies=False,
        odd=False,
        loss=1e-6,  # shares are float32, as everywhere in the presets
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

    def stack(self, rule: Rule) -> Stack:
        needs, uniform = needs_of(rule), self.draw.uniform(self.values.shape[1])
        fisher = torch.from_numpy(oracles_informed.fisher_of(uniform.numpy()))
        return Stack(self.values, self.weights, {"fisher": fisher} if "fisher" in needs else {})

    def merge(self, rule: Rule) -> Tensor:
        return rule(self.stack(rule), self.draw)

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
