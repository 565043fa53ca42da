"""merge_stream: the bits of merge, the memory of one delta."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import pytest
import torch

import fedmerge
from fedmerge import merge_stream
from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.merge import merge
from fedmerge.errors import AdapterMismatch, RuleError
from fedmerge.rules import Draw, by_name, chain, fedavg, parse_rule, streaming
from fedmerge.rules.stages import DropRandom

STREAMING = [
    "fedavg()",
    "uniform()",
    "task_arithmetic(scale=0.3)",
    "dare(density=0.4, scale=2.0)",
    "della_linear(density=0.5, epsilon=0.2)",
    "breadcrumbs(density=0.5, gamma=0.1)",
    "chain(equal_weights(), keep_largest(density=0.3), drop_random(density=0.5), total(), scale(factor=0.5))",
]
NAMES, WEIGHTS = ["silo-a", "silo-b", "silo-c", "silo-d"], [3.0, 0.1, 0.7, 11.0]


def triples(deltas, weights=WEIGHTS, names=NAMES):
    return zip(names, weights, deltas, strict=True)


@pytest.mark.parametrize("rule", STREAMING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_stream_has_the_bits_of_the_merge(make, same_bits, rule, dtype):
    received = make(0, dtype=dtype)
    deltas = [make(seed, scale=0.1, dtype=dtype) for seed in (1, 2, 3, 4)]
    knobs = {"received": received, "rule": rule, "seed": 5, "round": 7}
    streamed = merge_stream(triples(deltas), **knobs)
    merged = merge(deltas, WEIGHTS, names=NAMES, **knobs)
    assert same_bits(streamed.adapter, merged.adapter) and same_bits(streamed.delta, merged.delta)
    assert streamed.adapter.lora == merged.adapter.lora
    known = ("rule", "space", "silos", "weights", "left_out", "device")
    assert [getattr(streamed.report, name) for name in known] == [
        getattr(merged.report, name) for name in known
    ]
    assert streamed.report.seconds > 0


@pytest.mark.parametrize("rule", STREAMING)
def test_chunks_do_not_show(make, same_bits, monkeypatch, rule):
    deltas = [make(seed) for seed in (1, 2, 3, 4)]
    whole = merge_stream(triples(deltas), rule=rule)
    monkeypatch.setattr(streaming, "CHUNK", 7)
    assert same_bits(merge_stream(triples(deltas), rule=rule).adapter, whole.adapter)


def test_without_a_received_adapter_the_deltas_agree_among_themselves(make, same_bits):
    deltas = [make(seed) for seed in (1, 2)]
    for number, delta in enumerate(deltas):
        delta.metadata.update({"base": "tiny", "silo": str(number)})
    merged = merge(deltas, names=["a", "b"])
    streamed = merge_stream([("a", 1, deltas[0]), ("b", 1, deltas[1])])
    assert same_bits(streamed.adapter, merged.adapter) and same_bits(streamed.delta, merged.delta)
    assert streamed.adapter.metadata == merged.adapter.metadata == {"base": "tiny"}
    assert streamed.adapter.lora == Lora(3, 6)


def test_a_client_of_weight_zero_is_not_looked_at(make, same_bits):
    deltas = [make(1), make(2)]
    broken = {"something": torch.full((1,), math.nan)}
    streamed = merge_stream([("a", 2, deltas[0]), ("b", 0, broken), ("c", 3, deltas[1])])
    assert same_bits(streamed.adapter, merge(deltas, [2, 3], names=["a", "c"]).adapter)
    assert (streamed.report.left_out, streamed.report.silos) == (1, ("a", "c"))


def test_another_order_is_as_near_as_a_sum_can_be(make):
    deltas = [make(seed) for seed in (1, 2, 3, 4)]
    forward = merge_stream(triples(deltas), rule="dare(density=0.5)").adapter
    order = [2, 0, 3, 1]
    shuffled = merge_stream(
        [(NAMES[at], WEIGHTS[at], deltas[at]) for at in order], rule="dare(density=0.5)"
    ).adapter
    for name, tensor in forward.tensors.items():
        torch.testing.assert_close(shuffled.tensors[name], tensor, rtol=2e-7, atol=1e-7)


def test_rules_by_name_stream_too(make, same_bits):
    deltas = [make(seed) for seed in (1, 2, 3, 4)]
    rule = by_name({"*lora_A*": "dare(density=0.5)"}, default="fedavg()")
    streamed = merge_stream(triples(deltas), rule=rule)
    assert same_bits(streamed.adapter, merge(deltas, WEIGHTS, names=NAMES, rule=rule).adapter)
    with pytest.raises(RuleError, match=r"median\(\) can't merge a stream"):
        merge_stream(triples(deltas), rule=by_name({"*lora_A*": "median()"}, default="fedavg()"))


def test_whole_numbers_scalars_and_empty_tensors_go_through():
    one = {"n": torch.tensor([1, 10]), "x": torch.tensor(1.0), "y": torch.zeros(0, 3)}
    two = {"n": torch.tensor([2, 13]), "x": torch.tensor(3.0), "y": torch.zeros(0, 3)}
    merged = merge_stream([("a", 1, one), ("b", 3, two)]).adapter.tensors
    assert merged["n"].tolist() == [2, 12]
    assert (merged["x"].item(), merged["x"].shape, merged["y"].shape) == (2.5, (), (0, 3))


def live_bytes() -> int:
    """Of all tensors that are alive, each storage counted once."""
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def test_memory_does_not_grow_with_the_clients():
    size, alive, seen = 50_000, weakref.WeakSet(), []

    def replies(clients: int) -> Iterator[tuple[str, float, Adapter]]:
        for client in range(clients):
            seen.append((live_bytes(), len(alive)))
            delta = Adapter({"x": torch.full((size,), float(client)), "y": torch.ones(5)})
            alive.add(delta)
            reply = (f"silo-{client:03d}", 1.0 + client, delta)
            del delta
            yield reply
            del reply

    before = live_bytes()
    merged = merge_stream(replies(20), rule="dare(density=0.5)")
    assert merged.report.silos[-1] == "silo-019"
    assert {count for _, count in seen} == {0}  # the delta before is gone when the next one is made
    sums = [taken - before for taken, _ in seen]
    assert sums[0] == 0
    assert len(set(sums[1:])) == 1  # after one client as after 19
    assert sums[-1] < 8 * (size + 5) + 1000  # one accumulator in float64, and the model's outline


@pytest.mark.parametrize(
    "rule", ["ties(density=0.5)", "median()", "dare_ties()", "sce()", "trimmed_mean(trim=0.1)", "magmax()",
             "dare(like='peft')", "chain(keep_largest(density=0.5, scope='adapter'), mean())"]
)  # fmt: skip
def test_a_rule_that_must_see_all_clients_is_refused_before_the_first_is_added(make, rule):
    with pytest.raises(RuleError, match="can't merge a stream"):
        merge_stream([("a", 1, make(1))], rule=rule)
    assert not parse_rule(rule).streams


def test_a_rule_that_is_no_chain_is_refused(make):
    with pytest.raises(RuleError, match=r"core_space.* can't merge a stream: it is no chain of stages"):
        merge_stream([("a", 1, make(1))], rule="core_space()")


def test_what_does_not_fit_is_refused_by_name(make):
    good, other = make(1), {"x": torch.ones(1)}
    cases = [
        ([("a", 1, good), ("a", 1, good)], RuleError, "silo 'a' is given twice"),
        ([(1, 1, good)], RuleError, "a silo's name is 1, expected a string"),
        ([("a", -1, good)], RuleError, "silo 'a': weights: .* is -1, expected a finite number from 0"),
        ([("a", "1", good)], RuleError, "silo 'a': .*'1'"),
        ([good], RuleError, "triples of name, weight and delta"),
        ([], RuleError, "no delta of weight above 0"),
        ([("a", 0, good)], RuleError, "no delta of weight above 0"),
        ([("a", 1, good), ("b", 1, other)], AdapterMismatch, "silo 'b' lacks .* of silo 'a'"),
        (
            [("a", 1, other), ("b", 1, {"x": torch.ones(2)})],
            AdapterMismatch,
            r"silo 'b': 'x' has shape \(2,\)",
        ),
        (
            [("a", 1, other), ("b", 1, {"x": torch.tensor([math.nan])})],
            AdapterMismatch,
            "silo 'b': 'x' holds 1 NaN",
        ),
        ([("a", 1, {"x": torch.tensor([math.inf])})], AdapterMismatch, "silo 'a': 'x' holds 0 NaN and 1 Inf"),
        (
            [("a", 1, good), ("b", 1, make(2, lora=Lora(3, 9)))],
            AdapterMismatch,
            "silo 'b' rank 3 and alpha 9",
        ),
    ]
    for given, error, sentence in cases:
        with pytest.raises(error, match=sentence):
            merge_stream(given)
    with pytest.raises(AdapterMismatch, match="silo 'a' lacks 'y' of the received adapter"):
        merge_stream([("a", 1, other)], received={"y": torch.ones(1)})
    with pytest.raises(AdapterMismatch, match="the merge overflows"):
        merge_stream([("a", 1, {"x": torch.tensor([3e38])})], rule="task_arithmetic(scale=10.0)")


def test_a_finite_caller_is_believed():
    given = [("a", 1, {"x": torch.ones(2)}), ("b", 1, {"x": torch.tensor([3.0, math.nan])})]
    with pytest.raises(AdapterMismatch, match="the merge overflows: 1 of 2"):  # and not: silo 'b' holds 1 NaN
        merge_stream(given, finite=True)


def test_a_tensor_s_stream_checks_what_it_is_given():
    stream = fedavg().begin(Draw(0, 0, (), "x", (2,)), torch.float32)
    with pytest.raises(
        RuleError, match=r"silo 'a': values of 'x' are torch.float64 \(2,\), expected torch.float32"
    ):
        stream.add("a", torch.ones(2, dtype=torch.float64), 1)
    with pytest.raises(RuleError, match="a weight is -1"):
        stream.add("a", torch.ones(2), -1)
    stream.add("a", torch.ones(2), 0)
    assert stream.finish().tolist() == [0, 0]


def test_a_stage_of_ones_own_streams_if_it_says_so():
    class Halve(DropRandom):
        per_client = True

        def __call__(self, stack, draw):
            return type(stack)(stack.values / 2, stack.weights)

    merged = merge_stream([("a", 1, {"x": torch.ones(1)})], rule=chain(Halve(0.5), fedavg()))
    assert merged.adapter.tensors["x"] == 0.5


def test_it_is_a_public_name():
    assert "merge_stream" in fedmerge.__all__
