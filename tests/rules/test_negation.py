"""Task negation: named clients count against the merge."""

from __future__ import annotations

import pytest
import torch

from fedmerge.errors import RuleError
from fedmerge.kernels.plan import fused
from fedmerge.rules import Draw, Negate, Stack, by_name, fedavg, parse_rule, task_arithmetic
from fedmerge.rules.negation import for_silos, negated_by

SILOS = ("a", "b", "c")
VALUES = torch.tensor([[1.0, -2.0], [3.0, 4.0], [-0.5, 8.0]])


def merged(rule: str, values: torch.Tensor = VALUES, weights: tuple[float, ...] = (1, 1, 1)) -> torch.Tensor:
    stack = Stack(values, torch.tensor(weights, dtype=torch.float64)[:, None])
    return parse_rule(rule)(stack, Draw(0, 0, SILOS, "x", (values.shape[1],)))


def test_the_named_silos_are_subtracted() -> None:
    assert merged("task_arithmetic(scale=0.5, negate='b')").tolist() == [-1.25, 1.0]
    assert merged("task_arithmetic(negate='c, a')").tolist() == [2.5, -2.0]
    assert merged("chain(negate(silos='b'), median())").tolist() == [-0.5, -2.0]


@pytest.mark.parametrize("like", ["peft", "mergekit", "paper"])
def test_presets_subtract_too(like: str) -> None:
    assert merged(f"task_arithmetic(negate='b', like='{like}')").tolist() == [-2.5, 2.0]


def test_a_name_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(RuleError, match=r"'hospitol-b' is not among the clients; did you mean 'hospital-b'"):
        for_silos(task_arithmetic(negate="hospitol-b"), ("hospital-a", "hospital-b"))
    with pytest.raises(RuleError, match="silo 'x' is not among the clients"):
        merged("task_arithmetic(negate='a, x')")


@pytest.mark.parametrize("silos", ["", " , ", "a, a", "a,,b", (), ("a", 1), 3])
def test_what_names_nobody_is_refused(silos: object) -> None:
    with pytest.raises(RuleError, match="negate"):
        Negate(silos)  # type: ignore[arg-type]


def test_a_tuple_takes_names_with_commas() -> None:
    assert Negate(("b, c",)).names == ("b, c",)
    assert parse_rule(str(task_arithmetic(negate=("b, c",)))) == task_arithmetic(negate=("b, c",))


def test_among_known_clients_it_has_coefficients() -> None:
    weights = torch.tensor([1.0, 1.0, 2.0])
    rule = task_arithmetic(scale=0.5, negate="b")
    assert rule.linear(weights) is None
    placed = for_silos(rule, SILOS)
    assert str(placed) == str(rule)
    assert placed.linear(weights).tolist() == [0.375, -0.375, 0.75]
    with pytest.raises(RuleError, match="3 clients, 2 were given"):
        placed.linear(weights[:2])


def test_inner_products_are_those_of_the_negated_deltas() -> None:
    values, weights = VALUES.double(), torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    rule = parse_rule("chain(negate(silos='b'), clip_norm(limit=2.0), model_stock())")
    assert rule.kind == "coefficients"
    with pytest.raises(RuleError, match="for_silos"):
        rule.coefficients(values @ values.T, weights)
    by_gram = for_silos(rule, SILOS).coefficients(values @ values.T, weights) @ values
    called = rule(Stack(values, weights[:, None]), Draw(0, 0, SILOS, "x", (2,)))
    assert torch.allclose(by_gram, called, rtol=1e-12)


def test_signs_are_exact_in_sixteen_bits() -> None:
    values = VALUES.to(torch.bfloat16)
    stack = Negate("a")(Stack(values, torch.ones(3, 1, dtype=torch.float64)), Draw(0, 0, SILOS, "x", (2,)))
    assert stack.values.dtype == torch.bfloat16
    assert torch.equal(stack.values[0], -values[0])
    assert torch.equal(stack.values[1:], values[1:])
    assert bool((stack.weights == 1).all())


def test_who_is_negated_is_told_of_every_kind_of_rule() -> None:
    assert negated_by(fedavg()) == frozenset()
    assert negated_by(task_arithmetic(negate="a, b")) == {"a", "b"}
    assert negated_by(by_name({"head.*": fedavg()}, default=task_arithmetic(negate="c"))) == {"c"}


def test_no_kernel_stands_for_it_and_no_stream_takes_it() -> None:
    rule = task_arithmetic(negate="a")
    assert fused(rule) is None
    assert fused(for_silos(rule, SILOS)) is None
    assert not rule.streams


def test_a_matrix_rule_refuses_it_inside() -> None:
    with pytest.raises(RuleError, match=r"knots: .* negates a"):
        parse_rule("knots(rule=chain(negate(silos='a'), mean()))")
