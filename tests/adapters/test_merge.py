"""What holds for merges in every space: checks, order, weights, dtypes."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.adapters import apply
from fedmerge.adapters.adapter import Lora
from fedmerge.adapters.merge import merge
from fedmerge.errors import AdapterMismatch, RuleError
from fedmerge.rules import Mean, Stack, Stage, chain

SPACES = ["factors()", "product()"]
RULES = ["fedavg()", "task_arithmetic(scale=0.5)", "ties(density=0.4)", "dare(density=0.5)", "median()"]
A = "base_model.model.layers.0.q_proj.lora_A.weight"


def with_tensor(adapter, name, tensor):
    return replace(adapter, tensors={**adapter.tensors, name: tensor})


def test_factors_fedavg_is_the_weighted_mean_in_float64(make):
    received, deltas, weights = make(0), [make(seed, scale=0.1) for seed in (1, 2, 3)], [5, 0.5, 2]
    merged = merge(deltas, weights, received=received)
    for name, tensor in merged.delta.tensors.items():
        stacked = np.stack([delta.tensors[name].double().numpy() for delta in deltas])
        np.testing.assert_allclose(tensor, np.average(stacked, axis=0, weights=weights), rtol=1e-6)
        assert torch.equal(merged.adapter.tensors[name], received.tensors[name] + tensor)


def test_offline_the_next_adapter_is_the_merged_delta(make, same_bits):
    merged = merge([make(1), make(2)])
    assert same_bits(merged.adapter, merged.delta)
    assert merged.adapter.lora == Lora(3, 6)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("names", [None, ["c", "a", "b"]])
def test_any_order_gives_the_same_bits(make, same_bits, space, rule, names):
    received, deltas, weights = make(0), [make(seed, scale=0.1) for seed in (1, 2, 3)], [5, 0.3, 2]
    results = []
    for order in itertools.permutations(range(3)):
        merged = merge(
            [deltas[i] for i in order],
            [weights[i] for i in order],
            received=received,
            rule=rule,
            space=space,
            names=names and [names[i] for i in order],
        )
        results.append(merged.adapter)
    assert all(same_bits(results[0], result) for result in results)


def test_equal_deltas_of_different_weight_can_be_permuted(make, same_bits):
    one, two = make(1), make(2)
    first = merge([one, one, two], [0.1, 0.7, 0.3])
    second = merge([one, two, one], [0.7, 0.3, 0.1])
    assert same_bits(first.adapter, second.adapter)


def test_deltas_that_differ_between_samples_have_different_names(make):
    one, two = torch.zeros(5000), torch.zeros(5000)
    two[1] = 1.0
    report = merge([{"x": one}, {"x": two}]).report
    assert len(set(report.silos)) == 2


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("rule", RULES)
def test_a_client_of_weight_zero_changes_nothing_even_if_it_is_broken(make, same_bits, space, rule):
    deltas = [make(1, scale=0.1), make(2, scale=0.1)]
    broken = {"something": torch.full((1,), math.nan)}
    knobs = {"received": make(0), "rule": rule, "space": space}
    with_it = merge([deltas[0], broken, deltas[1]], [2, 0, 3], names=["a", "b", "c"], **knobs)
    without = merge(deltas, [2, 3], names=["a", "c"], **knobs)
    assert same_bits(with_it.adapter, without.adapter)
    assert with_it.report.left_out == 1


@pytest.mark.parametrize("space", SPACES)
def test_weight_two_equals_two_of_weight_one(make, space):
    received, one, two = make(0), make(1, scale=0.1), make(2, scale=0.1)
    twice = merge([one, one, two], received=received, space=space).adapter
    weighed = merge([one, two], [2, 1], received=received, space=space).adapter
    for name in twice.tensors:
        torch.testing.assert_close(twice.tensors[name], weighed.tensors[name])


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_result_has_the_received_dtype(make, space, dtype):
    merged = merge([make(1, dtype=dtype), make(2, dtype=dtype)], received=make(0, dtype=dtype), space=space)
    assert {tensor.dtype for tensor in merged.adapter.tensors.values()} == {dtype}


def test_bfloat16_is_averaged_in_more_than_bfloat16():
    values = [torch.full((8,), value, dtype=torch.bfloat16) for value in (1.0, 2**-7, 2**-7, 2**-7)]
    merged = merge([{"x": value} for value in values])
    assert merged.adapter.tensors["x"][0] == torch.tensor((1 + 3 * 2**-7) / 4).to(torch.bfloat16)


def test_whole_numbers_are_averaged_and_rounded():
    merged = merge([{"x": torch.tensor([1, 10])}, {"x": torch.tensor([2, 13])}], [1, 3])
    assert merged.adapter.tensors["x"].tolist() == [2, 12]
    assert merged.adapter.tensors["x"].dtype == torch.int64


def test_scalars_and_empty_tensors_go_through():
    merged = merge(
        [{"x": torch.tensor(1.0), "y": torch.zeros(0, 3)}, {"x": torch.tensor(3.0), "y": torch.zeros(0, 3)}]
    )
    assert merged.adapter.tensors["x"].shape == ()
    assert merged.adapter.tensors["x"] == 2.0
    assert merged.adapter.tensors["y"].shape == (0, 3)


def test_arguments_are_not_written_into(make, same_bits):
    received, delta = make(0), make(1)
    merge([delta, make(2)], received=received, rule="ties(density=0.2)", space="product()")
    assert same_bits(received, make(0))
    assert same_bits(delta, make(1))


@pytest.mark.parametrize("rule", ["fedavg()", "dare(density=0.5)", "ties(density=0.3)", "median()"])
@pytest.mark.parametrize("space", SPACES)
def test_tiles_give_the_same_bits_as_the_whole(make, same_bits, monkeypatch, rule, space):
    knobs = {"received": make(0), "rule": rule, "space": space, "names": ["a", "b"]}
    whole = merge([make(1), make(2)], **knobs)
    monkeypatch.setitem(apply.TILE_VALUES, "cpu", 26)
    tiles = merge([make(1), make(2)], **knobs)
    if space == "factors()":
        assert same_bits(whole.adapter, tiles.adapter)
    for name, tensor in tiles.adapter.tensors.items():
        torch.testing.assert_close(tensor, whole.adapter.tensors[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [*RULES, "trimmed_mean(trim=0.2)"])
def test_tensors_merged_together_have_the_bits_of_tensors_merged_apart(make, same_bits, monkeypatch, rule):
    received, deltas = make(0), [make(seed, scale=0.1) for seed in (1, 2, 3, 4)]
    together = merge(deltas, [3, 1, 0.5, 2], received=received, rule=rule)
    monkeypatch.setattr(apply, "COORDINATEWISE", frozenset())
    apart = merge(deltas, [3, 1, 0.5, 2], received=received, rule=rule)
    assert same_bits(together.adapter, apart.adapter) and same_bits(together.delta, apart.delta)
    owned = [*together.adapter.tensors.values(), *together.delta.tensors.values()]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in owned)


@pytest.mark.parametrize("tile", [26, 1 << 22])
def test_an_adapter_wide_trim_sees_all_coordinates_at_once(make, monkeypatch, tile):
    monkeypatch.setitem(apply.TILE_VALUES, "cpu", tile)
    delta = make(1)
    merged = merge([delta], rule="ties(density=0.25, scope='adapter')").adapter
    flat = torch.cat([delta.tensors[name].reshape(-1) for name in sorted(delta.tensors)])
    kept = torch.cat([merged.tensors[name].reshape(-1) for name in sorted(delta.tensors)])
    count = int(0.25 * len(flat))
    assert torch.equal(kept != 0, flat.abs() >= flat.abs().sort().values[-count])


def test_mixed_dtypes_in_an_adapter_wide_rule_each_come_back_in_their_own():
    delta = {"x": torch.tensor([1.0, 4.0]), "y": torch.tensor([3.0, 2.0], dtype=torch.float64)}
    merged = merge([delta], rule="ties(density=0.5, scope='adapter')").adapter.tensors
    assert merged["x"].dtype == torch.float32
    assert merged["y"].dtype == torch.float64
    assert (merged["x"].tolist(), merged["y"].tolist()) == ([0.0, 4.0], [3.0, 0.0])


@pytest.mark.parametrize(
    "weights",
    [
        [1],
        [1, 2, 3],
        [-1, 2],
        [math.nan, 1],
        [math.inf, 1],
        [0, 0],
        ["1", 2],
        "12",
        [None, 1],
        [True, 1],
        {"a": 1, "b": 2},
        [1e308, 1e308],
        [[1], [2]],
    ],
)
def test_weights_that_can_not_be_used_are_refused(weights):
    with pytest.raises(RuleError, match="weights"):
        merge([{"x": torch.ones(1)}, {"x": torch.ones(1)}], weights)


@pytest.mark.parametrize(
    "weights", [torch.tensor([1, 3]), np.array([1.0, 3.0]), (2**62, 3 * 2**62), [np.int64(1), 3.0]]
)
def test_weights_of_many_kinds_are_taken(weights):
    assert merge([{"x": torch.zeros(1)}, {"x": torch.full((1,), 4.0)}], weights).adapter.tensors["x"] == 3.0


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", 1]])
def test_names_that_can_not_be_used_are_refused(names):
    with pytest.raises(RuleError, match="names"):
        merge([{"x": torch.ones(1)}, {"x": torch.ones(1)}], names=names)


def broken(kind, good):
    changes = {
        "missing": lambda: {name: tensor for name, tensor in good.tensors.items() if name != A},
        "extra": lambda: {**good.tensors, "extra": torch.zeros(1)},
        "renamed": lambda: {name.replace("layers.0", "layers.7"): t for name, t in good.tensors.items()},
        "transposed": lambda: {**good.tensors, A: good.tensors[A].T},
        "broadcastable": lambda: {**good.tensors, A: good.tensors[A][:1]},
        "scalar": lambda: {**good.tensors, A: torch.tensor(1.0)},
        "dtype": lambda: {**good.tensors, A: good.tensors[A].double()},
        "nan": lambda: {**good.tensors, A: good.tensors[A].clone().fill_(math.nan)},
        "inf": lambda: {**good.tensors, A: good.tensors[A].clone().fill_(-math.inf)},
        "sparse": lambda: {**good.tensors, A: good.tensors[A].to_sparse()},
        "empty": dict,
    }
    return replace(good, tensors=changes[kind]())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("with_received", [False, True])
@pytest.mark.parametrize(
    "kind, says",
    [
        ("missing", "silo 'bad' lacks 'base_model.model.layers.0.q_proj.lora_A.weight' of"),
        ("extra", "silo 'bad' has 'extra', which"),
        ("renamed", "lacks .* and has .*layers.7.* besides"),
        ("transposed", r"has shape \(12, 3\), .* has \(3, 12\)"),
        ("scalar", r"has shape \(\), .* has \(3, 12\)"),
        ("dtype", "is torch.float64, .* has torch.float32"),
        ("nan", "silo 'bad': .* holds 36 NaN and 0 Inf among its 36 values"),
        ("inf", "holds 0 NaN and 36 Inf"),
        ("sparse", "no dense tensor"),
        ("empty", "lacks"),
    ],
)
def test_a_delta_that_does_not_belong_is_refused_in_a_sentence(make, space, with_received, kind, says):
    good = make(1)
    received = make(0) if with_received else None
    with pytest.raises(AdapterMismatch, match=says):
        merge([good, broken(kind, make(2))], received=received, space=space, names=["a-good", "bad"])


@pytest.mark.parametrize("space", SPACES)
def test_a_broadcastable_shape_is_refused(make, space):
    with pytest.raises(AdapterMismatch, match=r"shape \(1, 12\)"):
        merge([make(1), broken("broadcastable", make(2))], received=make(0), space=space)


def test_a_broken_received_adapter_is_refused(make):
    with pytest.raises(AdapterMismatch, match=r"the received adapter: .* 36 NaN"):
        merge([make(1)], received=broken("nan", make(0)))
    with pytest.raises(AdapterMismatch, match="the received adapter has no tensors"):
        merge([make(1)], received=broken("empty", make(0)))


def test_thousands_of_hostile_names_make_a_short_sentence():
    hostile = {"x" * 10_000 + str(number): torch.zeros(1) for number in range(1000)}
    with pytest.raises(AdapterMismatch) as caught:
        merge([{"y": torch.zeros(1)}, hostile])
    assert len(str(caught.value)) < 1000
    assert "997 more tensors" in str(caught.value)


@pytest.mark.parametrize("space", SPACES)
def test_a_finite_merge_beyond_the_dtype_is_an_error(make, space):
    big = make(1, dtype=torch.float16, head=False)
    big = replace(big, tensors={name: torch.full_like(t, 6e4) for name, t in big.tensors.items()})
    with pytest.raises(AdapterMismatch, match="overflows"):
        merge([big, big], received=big, rule="task_arithmetic(scale=1e6)", space=space)


def test_a_sum_that_overflows_only_in_the_check_is_no_error():
    big = torch.full((4,), 3e38)
    assert merge([{"x": big}, {"x": big}]).adapter.tensors["x"].isfinite().all()


@pytest.mark.parametrize("lora", [Lora(3, 12), Lora(3, 6, rslora=True)])
def test_other_lora_settings_than_received_are_refused(make, lora):
    with pytest.raises(AdapterMismatch, match=r"delta 0 has rank 3 and alpha .* the received adapter rank 3"):
        merge([make(1, lora=lora)], received=make(0), space="product()")


def test_mixed_ranks_in_factors_are_refused_naming_the_ranks(make):
    with pytest.raises(AdapterMismatch, match=r"rank 2 .* rank 3 .*product\(\)"):
        merge([make(1), make(2, lora=Lora(2, 6))])


@pytest.mark.parametrize(
    "arguments",
    [
        {"rule": "fedavgg()"},
        {"space": "product(rnk=2)"},
        {"kernel": "fast"},
        {"device": "gpu0"},
        {"space": "product(rank=0)"},
    ],
)
def test_what_is_misspelt_is_a_rule_error(arguments):
    with pytest.raises(RuleError):
        merge([{"x": torch.ones(1)}], **arguments)


def test_a_rule_of_a_kind_that_nobody_knows_is_refused():
    class Oracle:
        kind, scope, separable, needs = "oracular", "tensor", False, frozenset()

        def linear(self, weights):
            return None

    with pytest.raises(RuleError, match="oracular"):
        merge([{"x": torch.ones(1)}], rule=Oracle())


@pytest.mark.parametrize(
    "rule",
    [
        "chain(drop_random(density=0.9), keep_largest(density=0.3), elect_sign(), mean())",
        "chain(keep_largest(density=0.8), keep_largest(density=0.3), mean())",
    ],
)
def test_rules_that_do_not_begin_with_their_trim_see_the_whole_stack(make, same_bits, monkeypatch, rule):
    deltas = [make(1), make(2)]
    whole = merge(deltas, rule=rule).adapter
    monkeypatch.setitem(apply.TILE_VALUES, "cpu", 26)
    assert same_bits(whole, merge(deltas, rule=rule).adapter)


def test_a_stage_of_another_phase_may_need_the_whole_tensor(make, same_bits, monkeypatch):
    @dataclass(frozen=True)
    class WeighByNorm(Stage):
        phase: ClassVar[str] = "weigh"
        separable: ClassVar[bool] = False

        def __call__(self, stack, draw):
            return Stack(stack.values, stack.values.double().norm(dim=1, keepdim=True))

    rule, deltas = chain(WeighByNorm(), Mean()), [make(1), make(2)]
    whole = merge(deltas, rule=rule).adapter
    monkeypatch.setitem(apply.TILE_VALUES, "cpu", 26)
    assert same_bits(whole, merge(deltas, rule=rule).adapter)


def test_a_rule_of_ones_own_that_needs_the_whole_tensor_gets_it(monkeypatch):
    class Longest:
        kind, scope, separable = "elementwise", "tensor", False

        def __call__(self, stack, draw):
            return stack.values[stack.values.norm(dim=1).argmax()]

        def linear(self, weights):
            return None

    monkeypatch.setitem(apply.TILE_VALUES, "cpu", 2)
    deltas = [{"x": torch.tensor([9.0, 0.0, 0.0])}, {"x": torch.tensor([8.0, 8.0, 8.0])}]
    assert merge(deltas, rule=Longest()).adapter.tensors["x"].tolist() == [8.0, 8.0, 8.0]


def test_one_delta_alone_and_none_at_all_are_refused(make):
    with pytest.raises(AdapterMismatch, match=r"write \[delta\]"):
        merge(make(1))
    with pytest.raises(AdapterMismatch, match="no delta"):
        merge([])


def test_metadata_are_the_received_or_what_all_say(make):
    one = replace(make(1), metadata={"base_model": "m", "trained": "x"})
    two = replace(make(2), metadata={"base_model": "m", "trained": "y"})
    assert merge([one, two]).adapter.metadata == {"base_model": "m"}
    assert merge([one], received=replace(make(0), metadata={"k": "v"})).adapter.metadata == {"k": "v"}


def test_the_report_is_plain_values(make):
    merged = merge([make(1), make(2)], [1, 2], received=make(0), space="product(rank=1)", names=["b", "a"])
    report = asdict(merged.report)
    assert report["silos"] == ("a", "b")
    assert report["weights"] == (2.0, 1.0)
    assert report["space"] == "product(rank=1)"
    assert 0 < report["discarded_total"] < 1
    assert report["seconds"] > 0
    assert report["kernel"] == "plain"


def test_gradients_are_not_followed():
    delta = {"x": torch.ones(2, requires_grad=True)}
    assert not merge([delta, delta], received=delta).adapter.tensors["x"].requires_grad


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(
            st.lists(
                st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6), min_size=n, max_size=n
            ),
            st.lists(st.floats(0.001, 1e6), min_size=n, max_size=n),
        )
    )
)
def test_property_fedavg_equals_numpy(case):
    values, weights = np.array(case[0], dtype=np.float32), np.array(case[1])
    merged = merge([{"x": torch.from_numpy(row.copy())} for row in values], weights).adapter.tensors["x"]
    expected = np.average(values.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-6 * np.abs(values).max())
