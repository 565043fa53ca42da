"""What every rule obeys, over the table of all rules (table.py)."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.errors import RuleError
from fedmerge.rules import RULES, Chain, chain, parse_rule

from .table import TABLE, Case, Row, assert_near, case, cases, expected

few = settings(max_examples=10, deadline=None)


def over(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[row.rule for row in rows])


def test_every_rule_has_a_row() -> None:
    assert set(RULES) == {row.rule.partition("(")[0] for row in TABLE}


@over(TABLE)
@few
@given(given_case=cases())
def test_equals_its_oracle(row: Row, given_case: Case) -> None:
    given_case = row.suited(given_case)
    result = given_case.merge(row.make())
    assert result.dtype == given_case.values.dtype
    assert result.shape == given_case.values.shape[1:]
    if "like" in row.rule and result.dtype in (torch.float16, torch.bfloat16):
        return  # the peers' own rounding in 16 bits is no formula; float32 and float64 are checked
    assert_near(result, expected(row, given_case), slack=row.slack(result.dtype))


@over([row for row in TABLE if row.copies])
@few
@given(given_case=cases())
def test_client_of_weight_two_equals_two_of_weight_one(row: Row, given_case: Case) -> None:
    given_case = row.suited(given_case)
    whole = [client for client, weight in enumerate(given_case.weights) for _ in range(int(weight))]
    copied = given_case.clients(whole)
    ones = Case(copied.values, torch.ones_like(copied.weights), copied.silos)
    wanted = ones.merge(row.make())
    assert_near(given_case.merge(row.make()), wanted.to(torch.float64), slack=row.slack(wanted.dtype))


@over(TABLE)
@few
@given(given_case=cases(zero_weights=True))
def test_client_of_weight_zero_changes_nothing(row: Row, given_case: Case) -> None:
    given_case = row.suited(given_case)
    present = [client for client, weight in enumerate(given_case.weights) if weight > 0]
    rule = row.make()
    if not present:
        assert not given_case.merge(rule).any()
        return
    wanted = given_case.clients(present).merge(rule)
    assert_near(given_case.merge(rule), wanted.to(torch.float64), slack=row.slack(wanted.dtype))


@over([row for row in TABLE if row.scale_free])
@few
@given(given_case=cases(), factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_weights_come_at_any_scale(row: Row, given_case: Case, factor: float) -> None:
    given_case = row.suited(given_case)
    scaled = Case(given_case.values, given_case.weights * factor, given_case.silos)
    assert torch.equal(scaled.merge(row.make()), given_case.merge(row.make()))


@over([row for row in TABLE if row.homogeneous])
@few
@given(given_case=cases(), factor=st.sampled_from([0.5, 4.0]))
def test_scaled_deltas_give_the_scaled_merge(row: Row, given_case: Case, factor: float) -> None:
    given_case = row.suited(given_case)
    scaled = Case(given_case.values * factor, given_case.weights, given_case.silos)
    wanted = given_case.merge(row.make())
    slack = factor * row.slack(wanted.dtype)
    assert_near(scaled.merge(row.make()), wanted.to(torch.float64) * factor, slack=slack)


@over([row for row in TABLE if row.odd])
@few
@given(given_case=cases())
def test_negated_deltas_give_the_negated_merge(row: Row, given_case: Case) -> None:
    given_case = row.suited(given_case)
    negated = Case(-given_case.values, given_case.weights, given_case.silos)
    assert_near(negated.merge(row.make()), -given_case.merge(row.make()).to(torch.float64))


@over([row for row in TABLE if row.identity])
@few
@given(given_case=cases())
def test_a_single_client_is_returned_as_it_came(row: Row, given_case: Case) -> None:
    given_case = row.suited(given_case)
    values = given_case.values[:1]
    assert torch.equal(case(values).merge(row.make()), values[0])


@over(TABLE)
@few
@given(given_case=cases(), data=st.data())
def test_order_of_clients_does_not_matter(row: Row, given_case: Case, data: st.DataObject) -> None:
    given_case = row.suited(given_case)
    order = data.draw(st.permutations(range(len(given_case.silos))))
    shuffled = given_case.clients(order)
    by_name = shuffled.clients(sorted(range(len(order)), key=lambda client: shuffled.silos[client]))
    rule = row.make()
    assert torch.equal(by_name.merge(rule), given_case.merge(rule))
    wanted = given_case.merge(rule)
    assert_near(shuffled.merge(rule), wanted.to(torch.float64), slack=row.slack(wanted.dtype))


@over([row for row in TABLE if row.make().separable])
@few
@given(given_case=cases(), data=st.data())
def test_chunks_give_the_same_bits_as_the_whole(row: Row, given_case: Case, data: st.DataObject) -> None:
    given_case = row.suited(given_case)
    cut = data.draw(st.integers(0, given_case.values.shape[1]))
    rule, draw = row.make(), given_case.draw
    stack = given_case.stack(rule)
    parts = [
        rule(stack.columns(0, cut), draw),
        rule(stack.columns(cut, stack.coordinates), draw.at(cut)),
    ]
    assert torch.equal(torch.cat(parts), rule(stack, draw))


@over([row for row in TABLE if row.make().separable])
def test_small_inner_chunks_give_the_same_bits(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    given_case = case(torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)), [1, 2, 3.5, 0.1, 7])
    whole = given_case.merge(row.make())
    monkeypatch.setattr("fedmerge.rules.compose.CHUNK_ENTRIES", 37)
    assert torch.equal(given_case.merge(row.make()), whole)


@over(TABLE)
@few
@given(given_case=cases(dtype=torch.float32, zero_weights=True))
def test_linear_agrees_with_the_call(row: Row, given_case: Case) -> None:
    given_case = row.suited(given_case)
    rule = row.make()
    coefficients = rule.linear(given_case.weights[:, 0])
    if coefficients is not None:
        combined = (coefficients[:, None] * given_case.values.to(torch.float64)).sum(dim=0)
        assert coefficients.dtype == torch.float64
        assert_near(given_case.merge(rule), combined, ulps=4)


def test_which_rules_are_linear() -> None:
    weights = torch.tensor([1.0, 3.0])
    linear = [row.rule for row in TABLE if row.make().linear(weights) is not None]
    assert linear == [
        "fedavg()",
        "uniform()",
        "task_arithmetic()",
        "task_arithmetic(scale=0.3)",
        "dare(density=1.0)",
        "trimmed_mean(trim=0.0)",
        "task_arithmetic(like='peft')",
        "task_arithmetic(like='mergekit')",
        "task_arithmetic(like='paper')",
    ]
    assert parse_rule("task_arithmetic(scale=0.5)").linear(weights).tolist() == [0.25, 0.75]


@over(TABLE)
@few
@given(given_case=cases(zero_weights=True))
def test_arguments_are_left_alone(row: Row, given_case: Case) -> None:
    given_case = row.suited(given_case)
    values, weights = given_case.values.clone(), given_case.weights.clone()
    first = given_case.merge(row.make())
    first.add_(1)  # nor does the result share memory with them
    assert torch.equal(given_case.values, values)
    assert torch.equal(given_case.weights, weights)


@over(TABLE)
def test_text_pickle_and_hash_give_the_rule_back(row: Row) -> None:
    rule = row.make()
    assert parse_rule(str(rule)) == rule
    if isinstance(rule, Chain):
        assert parse_rule(str(chain(*rule.stages))) == rule
    assert str(parse_rule(str(rule))) == str(rule)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert hash(row.make()) == hash(rule)
    assert rule.kind in ("elementwise", "coefficients", "matrix", "factor")
    by_default = ("geometric_median", "krum", "multi_krum", "norm_clipping")
    whole_adapter = "adapter" in row.rule or ("ties" in row.rule and "paper" in row.rule)
    whole_adapter |= row.rule.startswith(by_default) and "tensor" not in row.rule
    assert rule.scope == ("adapter" if whole_adapter else "tensor")


UGLY = {
    "equal magnitudes": torch.tensor([[1.0, -1, 1, -1, 1], [1, 1, -1, -1, 1]]),
    "denormals": torch.tensor([[1e-45, -2e-45, 1e-40, 0, 3e-45], [1e-45, 1e-45, -1e-40, 1e-44, -3e-45]]),
    "negative zeros": torch.tensor([[-0.0, 0.0, -0.0], [-0.0, -0.0, 1.0]]),
    "single element": torch.tensor([[3.0], [-2.0]]),
    "all zeros": torch.zeros(3, 7),
    "one client": torch.tensor([[0.5, -3.0, 2.0, 0.0]]),
    "huge": torch.tensor([[3e38, -3e38, 3e38], [3e38, -3e38, -3e38]]),
    "no coordinates": torch.zeros(2, 0),
    "a thousand clients": torch.randint(-8, 9, (1000, 5), generator=torch.Generator().manual_seed(1)) / 16,
}


@over(TABLE)
@pytest.mark.parametrize("name", UGLY)
def test_ugly_inputs(row: Row, name: str) -> None:
    given_case = case(UGLY[name])
    if not row.takes(given_case):
        with pytest.raises(RuleError, match="clients"):
            given_case.merge(row.make())
        return
    result = given_case.merge(row.make())
    if name == "no coordinates":
        assert result.shape == (0,)
        return
    if name == "huge" and "like" in row.rule:
        return  # the peers' precision overflows where float64 does not
    wanted = expected(row, given_case)
    limit = torch.finfo(torch.float32).max
    ulps, slack = (
        (4, 1e-5) if "like" in row.rule and name != "denormals" else (1, row.loss if row.loss > 1e-13 else 0)
    )
    assert_near(result.clamp(-limit, limit), wanted.clip(-limit, limit), ulps, slack)
