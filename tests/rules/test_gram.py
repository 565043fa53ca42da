"""Rules of inner products: what they keep under rotations, under attack, and in their known cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmerge.errors import RuleError
from fedmerge.rules import ClipNorm, Draw, Krum, Mean, Stack, chain, krum, parse_rule
from fedmerge.rules.compose import Chain, CoefficientsRule
from fedmerge.rules.gram import gram_of

SPHERE = ["multislerp()", "karcher()", "karcher(iterations=2)"]
SHRINKING = ["model_stock()", "norm_clipping()", "norm_clipping(limit=0.7)", "geometric_median()"]
ROBUST = ["krum()", "multi_krum()", "multi_krum(keep=1)", "geometric_median()"]
MIXED = [
    "chain(equal_weights(), clip_norm(), krum(), scale(factor=2.0))",
    "chain(clip_norm(limit=0.5), karcher())",
]
RULES = [*SPHERE, *SHRINKING, *ROBUST, *MIXED]

few = settings(max_examples=10, deadline=None)


def rule_of(text: str) -> Chain:
    rule = parse_rule(text)
    assert isinstance(rule, Chain)
    return rule


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def merge(rule: Chain | str, values: Tensor, weights: list[float] | None = None) -> Tensor:
    rule = rule_of(rule) if isinstance(rule, str) else rule
    shares = torch.tensor(weights or [1.0] * len(values), dtype=torch.float64)[:, None]
    silos = tuple(f"silo-{client}" for client in range(len(values)))
    return rule(Stack(values, shares), Draw(0, 0, silos, "x", (values.shape[1],)))


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("text", RULES)
@few
@given(seed=st.integers(0, 10_000))
def test_turning_all_deltas_turns_the_merge(text, seed):
    values, weights = random(seed, 6, 9) + random(seed + 1, 9), [1.0, 2.0, 0.5, 3.0, 1.0, 1.5]
    turn = torch.linalg.qr(random(seed + 2, 9, 9))[0]
    rule, given_weights = rule_of(text), torch.tensor(weights)
    plain = rule.coefficients(gram_of(values), given_weights)
    torch.testing.assert_close(
        rule.coefficients(gram_of(values @ turn), given_weights), plain, rtol=0, atol=1e-9
    )
    turned = merge(rule, values @ turn, weights)
    torch.testing.assert_close(turned, merge(rule, values, weights) @ turn, rtol=0, atol=1e-8)


@pytest.mark.parametrize("text", RULES)
@few
@given(seed=st.integers(0, 10_000))
def test_coefficients_are_the_call(text, seed):
    values, weights = random(seed, 6, 9), [1.0, 2.0, 0.0, 3.0, 1.0, 1.5]
    rule = rule_of(text)
    coefficients = rule.coefficients(gram_of(values), torch.tensor(weights))
    assert coefficients.dtype == torch.float64
    assert coefficients[2] == 0
    torch.testing.assert_close(coefficients @ values, merge(rule, values, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("model_stock()", "coefficients"),
        ("norm_clipping()", "coefficients"),
        ("chain(equal_weights(), clip_norm(limit=1.0), total(), scale(factor=0.3))", "coefficients"),
        ("chain(keep_largest(density=1.0), model_stock())", "coefficients"),
        ("chain(keep_largest(density=0.5), model_stock())", "elementwise"),
        ("chain(clip_norm(), ties(density=0.2))", "elementwise"),
        ("fedavg()", "elementwise"),
        ("median()", "elementwise"),
    ],
)
def test_kind_says_whether_inner_products_are_enough(text, kind):
    rule = rule_of(text)
    assert rule.kind == kind
    assert isinstance(rule, CoefficientsRule)
    if kind == "elementwise":
        with pytest.raises(RuleError, match="no rule of inner products"):
            rule.coefficients(torch.eye(2), torch.ones(2))


ATTACKS = {
    "alike": lambda count, size: torch.ones(count, 8, dtype=torch.float64) * size,
    "apart": lambda count, size: random(3, count, 8) * size,
    "against": lambda count, size: -random(4, 1, 8).expand(count, 8) * size,
    "one near, others far": lambda count, size: torch.cat(
        [random(5, 1, 8), size * torch.ones(count - 1, 8, dtype=torch.float64)]
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("size", [1e2, 1e8])
@pytest.mark.parametrize(
    "text", ["krum(attackers=2)", "multi_krum(attackers=2)", "multi_krum(attackers=2, keep=2)"]
)
def test_krum_stays_among_the_honest(text, size, attack):
    honest = random(0, 1, 8) + 0.1 * random(1, 5, 8)
    values = torch.cat([ATTACKS[attack](2, size), honest])
    coefficients = rule_of(text).coefficients(gram_of(values), torch.tensor([100.0, 100, 1, 2, 3, 4, 5]))
    assert coefficients[:2].tolist() == [0, 0]
    assert coefficients.min() >= 0
    assert coefficients.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_geometric_median_moves_by_a_bounded_step(attack):
    honest = random(0, 1, 8) + 0.1 * random(1, 4, 8)
    spread = (honest - honest.mean(dim=0)).norm(dim=1).max().item()
    found = [
        merge("geometric_median()", torch.cat([ATTACKS[attack](3, size), honest])) for size in (1e2, 1e5, 1e8)
    ]
    # 3 of 7: at most 2 (1 - a) / (1 - 2 a) = 8 times the honest spread (Pillutla et al., 2019, lemma 2).
    for point in found:
        assert (point - honest.mean(dim=0)).norm().item() <= 8 * spread
    mean = merge("fedavg()", torch.cat([ATTACKS[attack](3, 1e8), honest]))
    assert (mean - honest.mean(dim=0)).norm().item() > 1e6


@pytest.mark.parametrize("attack", ATTACKS)
def test_norm_clipping_bounds_everyone(attack):
    honest = random(1, 4, 8)
    values = torch.cat([ATTACKS[attack](3, 1e8), honest])
    assert merge("norm_clipping()", values).norm() <= honest.norm(dim=1).max() * (1 + 1e-12)
    assert merge("norm_clipping(limit=0.5)", values).norm() <= 0.5 * (1 + 1e-12)


@pytest.mark.parametrize(
    "text, clients, message",
    [
        ("krum(attackers=1)", 4, r"krum\(.*\) needs N >= 2 \* attackers \+ 3 = 5 clients .*, 4 were given"),
        ("multi_krum(attackers=2)", 6, r"multi_krum\(.*\) needs N >= .* = 7 .* 6 were given"),
        ("multi_krum(attackers=1, keep=3)", 5, r"keeps 3 of 5 clients; .* N - attackers - 2 = 2 at most"),
        ("slerp()", 3, r"slerp\(\) lies between two clients, 3 of weight above 0 were given"),
        ("slerp(t=0.5)", 1, "1 of weight above 0 were given"),
        ("nuslerp()", 4, "4 of weight above 0 were given"),
    ],
)
def test_a_number_of_clients_that_does_not_fit_is_refused(text, clients, message):
    with pytest.raises(RuleError, match=message):
        merge(text, random(0, clients, 3))


def test_clients_of_weight_zero_are_not_counted():
    with pytest.raises(RuleError, match="4 were given"):
        merge("krum(attackers=1)", random(0, 6, 3), [1, 1, 0, 1, 0, 1])
    two = random(0, 2, 3)
    between = torch.stack([two[0], random(1, 3), two[1]])
    assert torch.equal(merge("slerp()", between, [1, 0, 2]), merge("slerp()", two, [1, 2]))


@pytest.mark.parametrize(
    "text, message",
    [
        ("slerp(t=1.5)", r"t=1.5 .* in \[0, 1\]"),
        ("slerp(t='a')", "no number"),
        ("slerp(scope='layer')", "scope"),
        ("nuslerp(scope='layer')", "scope"),
        ("multislerp(scope='layer')", "scope"),
        ("karcher(iterations=0)", "whole number from 1"),
        ("model_stock(scope='layer')", "scope"),
        ("krum(attackers=-1)", "whole number from 0"),
        ("krum(attackers=0.2)", "whole number from 0"),
        ("multi_krum(keep=0)", "whole number from 1"),
        ("geometric_median(smoothing=0.0)", "above 0"),
        ("norm_clipping(limit=0.0)", "above 0"),
        ("norm_clipping(limit=True)", "no number"),
        (
            "chain(elect_sign(), model_stock())",
            r"model_stock\(\) weighs whole deltas, .* after elect_sign\(\)",
        ),
    ],
)
def test_bad_knobs_are_refused_when_the_rule_is_made(text, message):
    with pytest.raises(RuleError, match=message):
        parse_rule(text)


def test_weights_by_coordinate_are_refused():
    stack = Stack(random(0, 3, 4), torch.ones(3, 4, dtype=torch.float64))
    with pytest.raises(RuleError, match="can't follow a stage that weighs each coordinate"):
        Krum(attackers=0)(stack, Draw(0, 0, ("a", "b", "c"), "x", (4,)))


def test_inner_products_beyond_float64_are_refused():
    with pytest.raises(RuleError, match="beyond float64"):
        merge("model_stock()", 1e200 * random(0, 3, 4))
    assert merge("model_stock()", 1e120 * (1 + 0.1 * random(0, 3, 4))).isfinite().all()


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("degrees", [30.0, 90.0, 150.0])
def test_slerp_moves_at_constant_speed_along_the_arc(t, degrees):
    angle = math.radians(degrees)
    point = merge(f"slerp(t={t})", rows([1, 0, 0], [math.cos(angle), math.sin(angle), 0]))
    torch.testing.assert_close(point, rows([math.cos(t * angle), math.sin(t * angle), 0])[0])


def test_slerp_takes_t_from_the_weights_and_keeps_the_order_of_the_names():
    values = random(0, 2, 5)
    assert torch.equal(merge("slerp()", values, [3, 1]), merge("slerp(t=0.25)", values))
    assert torch.equal(merge("slerp(t=0.0)", values), values[0])
    assert torch.equal(merge("nuslerp()", values, [3, 1]), merge("slerp(t=0.25)", values))


def test_slerp_is_linear_near_a_line_and_nuslerp_only_on_it():
    near, line = rows([1, 0], [2, 0.02]), rows([1, 0], [-3, 0])
    mean = torch.tensor([1.5, 0.01], dtype=torch.float64)
    torch.testing.assert_close(merge("slerp(t=0.5)", near), mean, rtol=0, atol=1e-15)
    assert (merge("nuslerp()", near) - mean).norm() > 1e-6
    for rule in ("slerp()", "nuslerp()"):
        torch.testing.assert_close(merge(rule, line), rows([-1, 0])[0])
        assert not merge(rule, torch.zeros(2, 3)).any()


def test_karcher_averages_angles_and_multislerp_vectors():
    angles = torch.tensor([0.0, 0.3, 1.5], dtype=torch.float64)
    values, weights = torch.stack([angles.cos(), angles.sin()], dim=1), [1.0, 2.0, 3.0]
    mean = (angles @ torch.tensor(weights, dtype=torch.float64) / 6).item()
    torch.testing.assert_close(merge("karcher()", values, weights), rows([math.cos(mean), math.sin(mean)])[0])
    straight = merge("fedavg()", values, weights)
    torch.testing.assert_close(merge("multislerp()", values, weights), straight / straight.norm())


def test_lengths_are_averaged_over_all_clients_directions_over_those_that_moved():
    values = rows([3, 0], [0, 0], [0, 3])
    for rule in ("karcher()", "multislerp()"):
        torch.testing.assert_close(merge(rule, values), rows([2**0.5, 2**0.5])[0])


@pytest.mark.parametrize("rule", ["karcher()", "multislerp()"])
def test_where_directions_cancel_out_it_is_the_mean(rule):
    torch.testing.assert_close(merge(rule, rows([4, 0], [-2, 0])), rows([1, 0])[0])
    third = rows([2, 0], [-1, 3**0.5], [-1, -(3**0.5)])
    torch.testing.assert_close(merge(rule, third), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-15)


def test_model_stock_is_the_paper_for_two():
    cosine = 0.6
    values = rows([1, 0], [cosine, 0.8])
    torch.testing.assert_close(merge("model_stock()", values), 2 * cosine / (1 + cosine) * values.mean(dim=0))


def test_model_stock_leaves_alone_what_nothing_agrees_on():
    for values in (
        rows([1, 0], [-1, 0.01]),
        rows([2, 0], [-1, 3**0.5], [-1, -(3**0.5)]),
        rows([1, 0], [0, 1]),
    ):
        assert not merge("model_stock()", values).any()


def test_krum_takes_the_first_of_equals():
    assert krum(attackers=0).coefficients(torch.eye(4), torch.ones(4)).tolist() == [1, 0, 0, 0]


def test_geometric_median_sits_on_more_than_half_of_the_weight_and_has_the_least_distance():
    values, weights = random(0, 4, 5), [1.0, 10.0, 2.0, 3.0]
    torch.testing.assert_close(merge("geometric_median()", values, weights), values[1], rtol=0, atol=1e-5)
    spread = random(1, 6, 3)
    found = merge("geometric_median()", spread)
    least = (spread - found).norm(dim=1).sum()
    for direction in torch.eye(3, dtype=torch.float64):
        for step in (1e-3, -1e-3):
            assert (spread - found - step * direction).norm(dim=1).sum() > least


def test_clip_norm_stands_before_or_behind_other_stages():
    values = rows([3, 4], [0.6, 0.8], [0.3, 0.4])
    before = merge("chain(clip_norm(limit=1.0), keep_largest(density=0.5), mean())", values)
    behind = merge("chain(keep_largest(density=0.5), clip_norm(limit=1.0), mean())", values)
    torch.testing.assert_close(before, rows([0, 0.8 + 0.8 + 0.4])[0] / 3)
    torch.testing.assert_close(behind, rows([0, 1 + 0.8 + 0.4])[0] / 3)
    assert chain(ClipNorm(), Mean()) == parse_rule("norm_clipping()")
    with pytest.raises(RuleError, match="can't come after"):
        parse_rule("chain(elect_sign(), clip_norm(), mean())")
