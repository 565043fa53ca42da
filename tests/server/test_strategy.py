"""Whole runs of MergeStrategy through Flower's own start(), over a grid in this process."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch
from flwr.app import ConfigRecord, Error, RecordDict

from fedmerge.adapters import Adapter, Lora
from fedmerge.adapters.merge import merge
from fedmerge.errors import ConfigError, RoundFailed, RuleError
from fedmerge.rules import ties
from fedmerge.server.folder import RunFolder
from fedmerge.server.observer import Silent
from fedmerge.server.strategy import MergeStrategy
from fedmerge.wire.protocol import Instruction, Sender, read_instruction, reply_content
from fedmerge.wire.records import from_record, to_record

from .world import (
    ABC,
    FakeGrid,
    bits,
    examples,
    initial,
    node_of,
    roster_of,
    run,
    streaming,
    tensors,
)

LORA = Lora(rank=2, alpha=4)
A = "base_model.model.q.lora_A.weight"


def test_a_round_is_the_line_of_mathematics():
    strategy, result = run(node_of())
    deltas = [tensors(1000 + ord(name), 0.1) for name in ABC]
    expected = merge(deltas, [10, 30, 20], received=Adapter(tensors(0)), names=ABC, round=1)
    assert bits(result.arrays) == bits(expected.adapter.tensors) == bits(strategy.broadcast.tensors)
    assert [reply.silo for reply in strategy.last_replies] == list(ABC)
    assert bits(strategy.last_replies[0].delta.tensors) == bits(deltas[0])


@pytest.mark.parametrize("rule", ["ties(density=0.5)", "dare(density=0.5)", "median()"])
def test_the_order_of_arrival_changes_no_bit(rule):
    results = set()
    for seed in range(4):
        shuffler = random.Random(seed)
        order = lambda replies, s=shuffler: s.sample(replies, len(replies))  # noqa: E731
        _, result = run(node_of(), rounds=2, rule=rule, order=order, nodes=(11, 12, 13)[: seed % 3 + 1])
        results.add(str(bits(result.arrays)))
    assert len(results) == 1


@pytest.mark.parametrize("quorum", [1.0, 0.7])
def test_below_quorum_the_round_fails_with_the_broadcast_intact(quorum):
    node = node_of({"b": lambda _: Error(8), "c": lambda _: None})
    strategy = MergeStrategy(roster=roster_of(*ABC), quorum=quorum)
    with pytest.raises(RoundFailed) as caught:
        strategy.start(streaming(node), initial(), num_rounds=3, timeout=0.2)
    assert str(caught.value) == (
        "round 1: 1 of 3 silos gave a usable reply, the quorum wants 3; "
        "refused: b (Flower error 8, the ClientApp crashed); not waited for: c. "
        "The adapter of round 0 is intact"
    )
    assert bits(strategy.broadcast.tensors) == bits(initial())
    assert strategy.rounds[0].failed == str(caught.value)


@pytest.mark.parametrize("answer", [lambda _: None, lambda _: Error(2, "x"), examples(0)])
def test_no_usable_reply_fails_the_round(answer):
    with pytest.raises(RoundFailed, match="0 of 3 silos gave a usable reply, the quorum wants 1"):
        strategy = MergeStrategy(roster=roster_of(*ABC), quorum=0.01)
        strategy.start(streaming(node_of(dict.fromkeys(ABC, answer))), initial(), num_rounds=1, timeout=0.1)


def test_a_failure_in_round_two_keeps_round_one():
    calls = itertools.count()
    node = node_of({"a": lambda content: content if next(calls) == 0 else Error(8)})
    strategy = MergeStrategy(roster=roster_of(*ABC))
    with pytest.raises(RoundFailed, match="The adapter of round 1 is intact"):
        strategy.start(streaming(node), initial(), num_rounds=2, timeout=1)
    assert bits(strategy.broadcast.tensors) == bits(run(node_of())[1].arrays)


def test_too_few_nodes_fail_at_once_with_both_numbers():
    strategy = MergeStrategy(
        roster=roster_of("a", "b", "c", "d", shared=False), quorum=0.75, wait_seconds=0.05
    )
    with pytest.raises(RoundFailed) as caught:
        strategy.start(streaming(node_of(), nodes=(11, 13)), initial(), num_rounds=1)
    assert str(caught.value) == (
        "round 1: 2 nodes are connected after 0.05 seconds and serve 2 of 4 silos; the quorum of 0.75 wants "
        "3. Not there: b (its node is not connected), d (its node is not connected). Nothing was changed"
    )
    with pytest.raises(RoundFailed, match="0 nodes are connected"):
        run(node_of(), nodes=())


def test_a_silo_whose_node_is_gone_is_missing_and_the_round_goes_on():
    roster = roster_of(*ABC, shared=False)
    strategy, result = run(node_of(), roster=roster, nodes=(11, 13), wait_seconds=0.05)
    assert strategy.rounds[0].missing == ["b"]
    assert bits(result.arrays) == bits(run(node_of({"b": lambda _: None}))[1].arrays)


def test_a_deployed_silo_gets_its_message_at_its_node():
    strategy = MergeStrategy(roster=roster_of(*ABC, shared=False))
    grid = FakeGrid(node_of(), nodes=(13, 12, 11))
    strategy.start(grid, initial(), num_rounds=1)
    sent = {read_instruction(message.content).silo: message.metadata.dst_node_id for message in grid.sent}
    assert sent == {"a": 11, "b": 12, "c": 13}


def test_what_a_train_message_says():
    order = Instruction(epochs=2, splits=("validation",), labels=("x", "y"))
    strategy = MergeStrategy(roster=roster_of("a"), seed=5, instruction=order, deadline_seconds=100)
    grid = FakeGrid(node_of())
    strategy.start(grid, initial(), num_rounds=1, train_config=ConfigRecord({"lr": 0.5}))
    [message] = grid.sent
    assert read_instruction(message.content) == Instruction(
        1, "a", 5, "", 90.0, 2, splits=("validation",), labels=("x", "y"), asked=1
    )
    assert message.content["config"]["lr"] == 0.5
    assert message.metadata.ttl == 100


def test_a_share_of_the_silos_is_drawn_by_seed():
    def asked(seed):
        strategy, _ = run(node_of(), rounds=4, names=("a", "b", "c", "d"), fraction=0.5, seed=seed)
        return [report.asked for report in strategy.rounds]

    assert asked(0) == asked(0) != asked(1)
    assert all(len(names) == 2 for names in asked(0))


def test_weights():
    strategy, _ = run(node_of(), weighting="uniform")
    assert [entry["weight"] for entry in strategy.rounds[0].admitted.values()] == [1, 1, 1]
    strategy, _ = run(node_of(), weight_cap=0.4)
    weights = [entry["weight"] for entry in strategy.rounds[0].admitted.values()]
    assert weights == pytest.approx([0.6, 1.2, 1.2])


def test_a_zero_delta_is_counted_and_flagged():
    zero = {name: torch.zeros_like(value) for name, value in tensors(0).items()}
    strategy, _ = run(node_of({"b": lambda _: reply_content(zero, 30, sender=Sender("b", 1))}))
    assert strategy.rounds[0].flagged == {"b": "all zero"}
    assert strategy.rounds[0].admitted["b"]["norm"] == 0


def huge(content: RecordDict) -> RecordDict:
    content["arrays"] = to_record(
        {name: 1e6 * value for name, value in from_record(content["arrays"]).items()}
    )
    return content


def test_a_million_fold_delta_is_refused_or_shortened_where_that_is_wanted(without_b):
    strategy, result = run(node_of({"b": huge}), guard="refuse(times=10)", rule="ties(density=0.5)")
    assert bits(result.arrays) == without_b
    assert strategy.refused[0].reason.startswith("its delta is far longer than the others': 8e+05 medians")
    assert strategy.rounds[0].refusals == {"reply/outlier": 1}
    strategy, _ = run(node_of({"b": huge}), guard="clip(times=10)")
    norms = [entry["norm"] for entry in strategy.rounds[0].admitted.values()]
    assert norms[1] == pytest.approx(
        10 * sorted(norms)[1] if norms[1] < norms[0] else 10 * sorted(norms[:1] + norms[2:])[1]
    )
    assert "shortened to" in strategy.rounds[0].flagged["b"]


def test_a_sum_that_overflows_fails_the_round():
    most = {name: torch.full_like(value, 3e38) for name, value in tensors(0).items()}
    node = node_of(
        dict.fromkeys(ABC, lambda c: reply_content(most, 10, sender=Sender(c["fedmerge"]["silo"], 1)))
    )
    with pytest.raises(RoundFailed, match=r"round 1: the merge failed: .*The adapter of round 0 is intact"):
        run(node, rule="task_arithmetic()")


@pytest.mark.parametrize(("encoding", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_deltas_come_back_in_the_adapters_dtype(encoding, dtype):
    strategy, result = run(node_of(encoding=encoding), encoding=encoding)
    exact, _ = run(node_of())
    for name, value in from_record(result.arrays).items():
        assert value.dtype == torch.float32
        assert torch.allclose(value, exact.broadcast.tensors[name], atol=2e-3)
    delta = strategy.last_replies[0].delta.tensors[A]
    assert torch.equal(delta, tensors(1000 + ord("a"), 0.1)[A].to(dtype).float())
    assert strategy.rounds[0].bytes_up < exact.rounds[0].bytes_up


def test_an_undeclared_encoding_is_refused():
    with pytest.raises(RoundFailed, match="is 'float32', expected bfloat16"):
        run(node_of(), encoding="bf16")


def test_scores_belong_to_the_broadcast_before():
    strategy, _ = run(node_of(), rounds=3)
    assert [report.received.mean for report in strategy.rounds] == pytest.approx([2.88, 2.78, 2.68])
    assert strategy.best.round == 2
    assert bits(strategy.best.adapter.tensors) == bits(run(node_of(), rounds=2)[1].arrays)
    final = strategy.rounds[-1].received
    strategy.standing.score(3, strategy.broadcast, type(final)(final.metric, {}, 1.0, 1.0, 1.0))
    assert strategy.best.round == 3


def test_the_report_of_a_round():
    seen = []

    class Watcher(Silent):
        def round_closed(self, report):
            seen.append(report)

        def reply(self, round, silo, outcome, metrics):
            seen.append((round, silo, outcome))

    run(node_of({"b": examples(0)}), observer=Watcher())
    report = seen.pop()
    assert sorted(seen) == [
        (1, "a", "admitted"),
        (1, "b", "'num-examples' is 0, expected a number above 0 and at most 1e+12"),
        (1, "c", "admitted"),
    ]
    json.dumps(report)
    assert report["asked"] == ["a", "b", "c"]
    assert report["refused"] == [{"silo": "b", "reason": seen[1][2]}]
    assert set(report["seconds"]) == {"wait", "train", "merge", "write"}
    assert report["bytes_up"] > 3 * 4 * 20 and report["bytes_down"] > 3 * 4 * 20
    assert report["received"]["silos"] == pytest.approx({"a": 2.87, "c": 2.89})
    assert report["admitted"]["a"]["metrics"]["train_loss"] == 1.0
    assert report["merge"]["rule"] == "fedavg()"


def test_shadows_merge_the_last_rounds_replies():
    strategy, _ = run(node_of(), rounds=2, lora=LORA, shadows="ties(density=0.5); fedavg() @ product()")
    assert list(strategy.shadow_adapters) == ["ties(density=0.5) @ factors()", "fedavg() @ product()"]
    received = run(node_of(), rounds=1, lora=LORA)[0].broadcast
    deltas = [Adapter(tensors(2000 + ord(name), 0.1), LORA) for name in ABC]
    expected = merge(deltas, [10, 30, 20], received=received, rule="ties(density=0.5)", names=ABC, round=2)
    assert bits(strategy.shadow_adapters["ties(density=0.5) @ factors()"].tensors) == bits(
        expected.adapter.tensors
    )
    assert bits(strategy.broadcast.tensors) == bits(run(node_of(), rounds=2)[1].arrays)


def test_the_server_optimizer_remembers():
    plain, momentum = (
        run(node_of(), rounds=2, server_optimizer=text)[0]
        for text in ("none()", "momentum(rate=1.0, beta=0.9)")
    )
    first = run(node_of(), rounds=1)[0].broadcast.tensors
    for name, value in momentum.broadcast.tensors.items():
        step = first[name] - tensors(0)[name]
        assert torch.allclose(value, plain.broadcast.tensors[name] + 0.9 * step, atol=1e-6)


def test_a_simulation_on_the_cpu_beside_a_gpu_is_stopped():
    with pytest.raises(RoundFailed, match=r'Add --federation-config "client-resources-num-gpus=0\.25"'):
        run(node_of(), expects_gpu=True)
    run(node_of(), expects_gpu=True, roster=roster_of(*ABC, shared=False), nodes=(11, 12, 13))


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"rule": "tise()"}, RuleError, "did you mean 'ties'"),
        ({"space": "product"}, ConfigError, "needs the LoRA settings"),
        ({"shadows": "fedavg() @ product()"}, ConfigError, "needs the LoRA settings"),
        ({"server_optimizer": "momentum(beta=2)"}, RuleError, "beta"),
        ({"server_optimizer": "adam()", "space": "product()", "lora": LORA}, RuleError, "factors"),
        ({"replies": "deltas"}, ConfigError, "did you mean 'delta'"),
        ({"encoding": "int8"}, ConfigError, "encoding is 'int8'"),
        ({"quorum": 0}, ConfigError, "strategy.quorum is 0"),
        ({"guard": "clip(time=3)"}, ConfigError, "did you mean 'times'|has no knob 'time'"),
    ],
)
def test_a_bad_argument_is_found_before_a_round_is_spent(arguments, error, reason):
    with pytest.raises(error, match=reason):
        MergeStrategy(**arguments)


def test_a_rule_built_in_python():
    _, result = run(node_of(), rule=ties(density=0.5))
    assert bits(result.arrays) == bits(run(node_of(), rule="ties(density=0.5)")[1].arrays)


def test_the_folder_of_a_run(tmp_path):
    folder = RunFolder(tmp_path / "run", {"run.seed": 0})
    folder.start({"torch": torch.__version__})
    _, result = run(
        node_of(), rounds=2, folder=folder, observer=folder, record=True, server_optimizer="momentum()"
    )
    folder.close()
    from safetensors.torch import load_file

    rounds = tmp_path / "run" / "rounds"
    assert bits(load_file(rounds / "0000" / "broadcast.safetensors")) == bits(initial())
    assert bits(load_file(rounds / "0002" / "broadcast.safetensors")) == bits(result.arrays)
    assert bits(load_file(rounds / "0002" / "deltas" / "b.safetensors")) == bits(
        tensors(2000 + ord("b"), 0.1)
    )
    assert (rounds / "0001" / "optimizer.safetensors").is_file()
    state = json.loads((rounds / "0002" / "state.json").read_text())
    assert state["silos"] == {"a": 0.5, "b": 1.5, "c": 1.0}
    assert set(state["sha256"]) == {
        "broadcast.safetensors",
        "optimizer.safetensors",
        *(f"deltas/{name}.safetensors" for name in ABC),
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
