"""Faults 1 to 6: what the numbers of a delta can be."""

from __future__ import annotations

import math

import pytest
import torch

from tests.server.world import FakeGrid, node_of

from .changes import A, element, full, sending
from .federation import BAD, NAMES, everyone, intact, left_out, run, without

SPACES = ["factors()", "product()"]
fault = pytest.mark.fault


@fault(1)
@pytest.mark.parametrize("space", SPACES)
def test_one_nan_is_refused(tmp_path, space):
    found = left_out(tmp_path, element(math.nan), space=space)
    assert found.refused == [(BAD, 1, f"'{A}' has 1 NaN and 0 infinite of 8 values")]


@fault(2)
@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("space", SPACES)
def test_an_infinite_value_is_refused(tmp_path, value, space):
    found = left_out(tmp_path, element(value), space=space)
    assert found.refused == [(BAD, 1, f"'{A}' has 0 NaN and 1 infinite of 8 values")]


@fault(3)
@pytest.mark.parametrize("rule", ["fedavg()", "uniform()", "median()"])
def test_a_sum_beyond_float32_whose_mean_is_not_is_merged(tmp_path, rule):
    """Four times 3e38 is no float32 number, their mean is: sums are kept in float64."""
    found = run(tmp_path / "run", node_of(everyone(full(3e38))), rule=rule)
    assert found.failure is None
    merged = found.strategy.broadcast.tensors[A]
    assert torch.allclose(merged, torch.full_like(merged, 3e38))


@fault(3)
@pytest.mark.parametrize("rule", ["task_arithmetic(scale=1.0)", "dare(density=0.5)"])
@pytest.mark.parametrize("space", SPACES)
def test_a_merge_beyond_float32_fails_the_round(tmp_path, rule, space):
    found = run(tmp_path / "run", node_of(everyone(full(3e38))), rule=rule, space=space)
    assert "the merge failed" in intact(found)


@fault(3)
def test_a_failure_in_a_later_round_leaves_the_rounds_before(tmp_path):
    def later(content):
        return full(3e38)(content) if content["fedmerge"]["round"] > 1 else content

    rule = "task_arithmetic(scale=1.0)"
    found = run(tmp_path / "run", node_of(everyone(later)), rule=rule, rounds=3)
    intact(found, rounds=1)
    assert found.broadcasts == run(tmp_path / "one", node_of(), rule=rule).broadcasts


@fault(4)
@pytest.mark.parametrize("rule", ["fedavg()", "ties(density=0.5)"])
@pytest.mark.parametrize("space", SPACES)
def test_a_million_fold_delta_is_refused_where_the_policy_says_so(tmp_path, caplog, rule, space):
    huge = sending(lambda good: {name: 1e6 * value for name, value in good.items()})
    found = left_out(tmp_path, huge, guard="refuse(times=10)", rule=rule, space=space)
    assert "its delta is" in found.refused[0][2]
    assert f"{BAD} is an outlier" in caplog.text


@fault(4)
def test_a_million_fold_delta_is_shortened_where_the_policy_says_so(tmp_path, caplog):
    huge = sending(lambda good: {name: 1e6 * value for name, value in good.items()})
    found = run(tmp_path / "run", node_of({BAD: huge}), guard="clip(times=10)")
    [line] = found.lines
    others = sorted(line["admitted"][silo]["norm"] for silo in NAMES if silo != BAD)
    assert line["admitted"][BAD]["norm"] <= 10 * others[-1] * 1.0001
    assert "shortened to" in line["flagged"][BAD]
    assert f"{BAD} is an outlier" in caplog.text


@fault(5)
@pytest.mark.parametrize("space", SPACES)
def test_an_all_zero_delta_is_accepted_counted_and_flagged(tmp_path, space):
    found = run(tmp_path / "run", node_of({BAD: full(0.0)}), rule="fedavg()", space=space)
    [line] = found.lines
    assert line["flagged"] == {BAD: "all zero"}
    assert found.refused == []
    assert line["admitted"][BAD]["norm"] == 0
    assert line["admitted"][BAD]["weight"] > 0
    assert found.broadcasts[1] != without(rule="fedavg()", space=space).broadcasts[1]


@fault(6)
@pytest.mark.parametrize("rule", ["fedavg()", "ties(density=0.5)", "dare(density=0.5)", "median()"])
def test_denormals_and_negative_zeros_give_the_same_bits_in_any_order(tmp_path, rule):
    odd = {"a": element(1e-45), "b": full(-0.0), "c": element(-1e-40), BAD: full(-1e-45)}
    orders = [
        lambda replies: replies,
        lambda replies: replies[::-1],
        lambda replies: replies[2:] + replies[:2],
    ]
    seen = {
        run(
            tmp_path / str(place), node_of(odd), rule=rule, grid=lambda node, o=order: FakeGrid(node, order=o)
        ).broadcasts[1]
        for place, order in enumerate(orders)
    }
    assert len(seen) == 1
