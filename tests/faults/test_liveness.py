"""Faults 30 to 35 in one process; tests/deployment has them with real processes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from flwr.app import Context, Error, Message, RecordDict
from safetensors.torch import load_file

from fedmerge import client_app
from fedmerge.config import read_config
from fedmerge.engine.executors import Forked, InProcess, can_fork
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.errors import RoundFailed
from fedmerge.server.membership import Membership
from fedmerge.server.strategy import MergeStrategy
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server_app.conduct import conduct
from fedmerge.wire.protocol import Card, QueryReply, read_instruction

from ..server.world import ABC, EXAMPLES, FakeGrid, bits, initial, node_of, roster_of, run

GONE, EXPIRED, CRASHED = Error(5, "gone"), Error(3, "expired"), Error(8, "crashed")


@pytest.fixture(autouse=True)
def identity():
    with server_identity(run_id=1):
        yield


@dataclass
class Federation(FakeGrid):
    """Silos a, b and c at nodes 11, 12 and 13.

    `lives` says which nodes are connected at each look, the last for good, and `who` which silo lives at a
    node that nobody knows yet.
    """

    lives: list[tuple[int, ...]] = field(default_factory=lambda: [(11, 12, 13)])
    who: dict[int, QueryReply] = field(default_factory=dict)

    def __post_init__(self):
        serve = self.node
        self.node = lambda message: (
            self.who[message.metadata.dst_node_id].to_content()
            if message.metadata.message_type == "query"
            else serve(message)
        )

    def get_node_ids(self):
        return list(self.lives.pop(0) if len(self.lives) > 1 else self.lives[0])

    def get_nodes(self):
        return [SimpleNamespace(node_id=node, last_activated_at="then") for node in self.lives[0]]


def federated(node, *, rounds=1, lives=((11, 12, 13),), who=None, timeout=5.0, **arguments):
    """A deployment's rounds; `node` answers what it answers."""
    settings = {"quorum": 1.0, "wait_seconds": 1.0, "deadline_seconds": 5.0, "rule": "ties(density=0.5)"}
    settings |= {"roster": roster_of(*ABC, shared=False), **arguments}
    strategy = MergeStrategy(settings.pop("rule"), **settings)
    grid = Federation(node, lives=list(lives), who=who or {})
    strategy.start(StreamingGrid(grid), initial(), num_rounds=rounds, timeout=timeout)
    return strategy, grid


def sometimes(silo, *answers):
    """A silo's answers, one after the other, then honest ones; None is none."""
    left = list(answers)
    return node_of({silo: lambda content: left.pop(0) if left else content})


@pytest.fixture(scope="module")
def undisturbed():
    with server_identity(run_id=1):
        return bits(federated(node_of())[0].broadcast.tensors)


# 30: a straggler


@pytest.mark.fault(30)
@pytest.mark.parametrize("answer", [None, EXPIRED], ids=["silence", "Flower says that it came too late"])
def test_a_straggler_costs_one_round(answer):
    strategy, grid = federated(sometimes("b", answer), rounds=2, quorum=0.5, timeout=0.3)
    first, second = strategy.rounds
    assert first.missing == ["b"] and second.missing == []
    absence = first.missing_since["b"]
    assert (absence.round, absence.rounds, absence.why) == (1, 1, "no whole reply in time")
    assert "1 missing: b (no whole reply in time; since round 1" in first.sentence()
    assert sorted(second.admitted) == list(ABC)
    assert {message.metadata.ttl for message in grid.sent} == {5.0}  # as long as the round


@pytest.fixture(scope="module")
def without_b_tensors():
    with server_identity(run_id=1):
        return bits(federated(node_of({"b": lambda _: None}), quorum=0.5, timeout=0.1)[0].broadcast.tensors)


@pytest.mark.fault(30)
def test_the_round_without_the_straggler_is_that_of_a_run_without_it(without_b_tensors):
    strategy, _ = federated(node_of({"b": lambda _: EXPIRED}), quorum=0.5)
    assert bits(strategy.broadcast.tensors) == without_b_tensors


@pytest.mark.fault(30)
def test_a_silo_is_missing_since_the_first_round_that_it_missed():
    strategy, _ = federated(sometimes("b", EXPIRED, EXPIRED, GONE), rounds=4, quorum=0.5)
    since = [report.missing_since.get("b") for report in strategy.rounds]
    assert [(each.round, each.rounds) for each in since[:3]] == [(1, 1), (1, 2), (1, 3)] and since[3] is None
    assert len({each.time for each in since[:3]}) == 1
    assert "3 rounds in a row" in strategy.rounds[2].sentence()
    assert strategy.rounds[2].to_dict()["missing_since"]["b"]["why"] == "its node went away"


@pytest.mark.fault(30)
def test_nobody_trains_for_a_round_that_is_over():
    served = []

    def slow(message):
        instruction = read_instruction(message.content)
        served.append((instruction.round, instruction.silo))
        if served == [(1, "a")]:
            time.sleep(0.4)  # longer than the round
        return Message(node_of()(message), reply_to=message)

    grid = LocalGrid(InProcess(slow), [11], run_id=1)
    strategy = MergeStrategy(roster=roster_of(*ABC), quorum=0.3, deadline_seconds=0.3, wait_seconds=0)
    strategy.start(StreamingGrid(grid), initial(), num_rounds=1, timeout=0.3)
    assert strategy.rounds[0].missing == ["b", "c"]
    strategy = MergeStrategy(roster=roster_of(*ABC), quorum=1.0, deadline_seconds=60, wait_seconds=0)
    strategy.start(StreamingGrid(grid), initial(), num_rounds=1, timeout=60)
    assert served == [(1, "a"), (1, "a"), (1, "b"), (1, "c")]


# 31: an exception that names a patient's file


@pytest.mark.fault(31)
def test_of_an_exception_the_server_learns_the_class_only(tiny_flat, tiny_rows, caplog):
    secret = tiny_rows.parent / "jane-doe-hiv.jsonl"
    nodes = {7: {"silo": "a", "data": str(tiny_rows)}, 8: {"silo": "b", "data": str(secret)}}
    flat = tiny_flat(run__rounds=1, data__partition="", strategy__quorum=0.5, strategy__wait_seconds=0.1)
    result = conduct(read_config(flat), grid_of(flat, nodes))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("fedmerge.server")]
    assert result["silos"] == ["a"]
    assert any("node 8 is left out: failed with 'ConfigError'" in line for line in said)
    assert not any("jane" in line for line in said)


def grid_of(flat, nodes, spoil=lambda message, reply: reply):
    """Real ClientApps in this process."""

    def serve(message):
        node = message.metadata.dst_node_id
        return spoil(
            message, client_app.app(message, Context(1, node, dict(nodes[node]), RecordDict(), flat))
        )

    return StreamingGrid(LocalGrid(InProcess(serve), sorted(nodes), run_id=1))


# 32: a process that dies


@pytest.mark.fault(32)
@pytest.mark.skipif(not can_fork(), reason="another thread runs, or there is no fork")
def test_a_process_that_dies_costs_its_silo_the_round():
    def serve(message):
        if read_instruction(message.content).silo == "b":
            os._exit(1)
        return Message(node_of()(message), reply_to=message)

    executor = Forked(serve, workers=2)
    try:
        strategy = MergeStrategy("ties(density=0.5)", roster=roster_of(*ABC), quorum=0.6, wait_seconds=0)
        grid = StreamingGrid(LocalGrid(executor, [11], run_id=1))
        strategy.start(grid, initial(), num_rounds=1, timeout=30)
    finally:
        executor.close()
    assert [(each.silo, each.reason) for each in strategy.refused] == [
        ("b", "Flower error 8, the ClientApp crashed: the worker process died")
    ]
    assert bits(strategy.broadcast.tensors) == bits(
        run(node_of({"b": lambda _: None}), rule="ties(density=0.5)")[1].arrays
    )


# 33: a node that dies and comes back


@pytest.mark.fault(33)
def test_a_node_that_dies_in_a_round_is_asked_again_where_the_quorum_wants_it(undisturbed):
    lives = [(11, 12, 13), (11, 13), (11, 13), (11, 12, 13)]
    strategy, grid = federated(sometimes("b", GONE), lives=lives)
    asked = [read_instruction(message.content).silo for message in grid.sent]
    assert asked == ["a", "b", "c", "b"]
    assert strategy.rounds[0].missing == [] and strategy.rounds[0].refused == []
    assert bits(strategy.broadcast.tensors) == undisturbed
    assert grid.sent[-1].metadata.ttl < 5.0  # what is left of the round


@pytest.mark.fault(33)
def test_it_may_come_back_as_another_node(undisturbed):
    lives = [(11, 12, 13), (11, 13), (11, 13, 99)]
    who = {99: QueryReply((Card("b", EXAMPLES["b"]),))}
    strategy, grid = federated(sometimes("b", GONE), lives=lives, who=who)
    assert grid.sent[-1].metadata.dst_node_id == 99
    assert bits(strategy.broadcast.tensors) == undisturbed


@pytest.mark.fault(33)
def test_nobody_waits_for_a_node_that_the_quorum_can_do_without(without_b_tensors):
    strategy, grid = federated(sometimes("b", GONE), quorum=0.5, lives=[(11, 12, 13), (11, 13)])
    assert len(grid.sent) == 3 and strategy.rounds[0].missing == ["b"]
    assert bits(strategy.broadcast.tensors) == without_b_tensors


@pytest.mark.fault(33)
def test_a_silo_that_was_away_is_back_in_the_next_round():
    lives = [(11, 12, 13), (11, 13), (11, 12, 13)]
    strategy, _ = federated(node_of(), rounds=3, quorum=0.5, lives=lives)
    assert [report.missing for report in strategy.rounds] == [[], ["b"], []]
    assert strategy.rounds[1].missing_since["b"].why == "its node is not connected"


@pytest.mark.fault(33)
def test_a_stranger_with_another_base_is_not_the_silo_that_went_away():
    lives = [(11, 13, 99)]
    who = {99: QueryReply((Card("b", 30),), fingerprint="f" * 64)}
    strategy, grid = federated(
        node_of(), rounds=2, quorum=0.5, lives=lives, who=who, fingerprint="", wait_seconds=0.1,
        membership=Membership(fingerprint="e" * 64),
    )  # fmt: skip
    assert [m.metadata.message_type for m in grid.sent if m.metadata.dst_node_id == 99] == ["query"]  # once
    assert "its base has the fingerprint" in strategy.rounds[1].missing_since["b"].why


# 34 and 35: nobody, or too few


@pytest.mark.fault(34)
@pytest.mark.parametrize("answer", [CRASHED, GONE, EXPIRED, None], ids=["crash", "gone", "late", "silence"])
def test_all_fail_and_the_adapter_is_unchanged(answer):
    strategy = MergeStrategy(roster=roster_of(*ABC, shared=False), quorum=0.1, wait_seconds=0.05)
    grid = Federation(node_of(dict.fromkeys(ABC, lambda _: answer)), lives=[(11, 12, 13), ()])
    with pytest.raises(RoundFailed, match="0 of 3 silos gave a usable reply, the quorum wants 1"):
        strategy.start(StreamingGrid(grid), initial(), num_rounds=3, timeout=0.2)
    assert bits(strategy.broadcast.tensors) == bits(initial())


@pytest.mark.fault(34)
def test_a_run_that_fails_later_leaves_the_last_good_adapter(tiny_flat, tmp_path):
    flat = tiny_flat(run__baselines="", run__rounds=3)

    def fail(message, reply):
        training = message.metadata.message_type == "train"
        second = training and read_instruction(message.content).round == 2
        return Message(Error(8, "crashed"), reply_to=message) if second else reply

    with pytest.raises(RoundFailed) as caught:
        conduct(read_config(flat), grid_of(flat, {7: {}}, fail))
    told = json.loads((tmp_path / "run" / "failed.json").read_text())
    assert told["sentence"] == str(caught.value) and "The adapter of round 1 is intact" in told["sentence"]
    assert (told["rounds_closed"], told["adapter_of_round"]) == (1, 1)
    left = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    closed = load_file(tmp_path / "run" / "rounds" / "0001" / "broadcast.safetensors")
    assert {name: value.numpy().tobytes() for name, value in left.items()} == {
        name: value.numpy().tobytes() for name, value in closed.items()
    }
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.fault(34)
def test_a_first_round_that_fails_leaves_no_adapter(tiny_flat, tmp_path):
    flat = tiny_flat(run__baselines="", run__rounds=1)
    crash = lambda m, r: Message(Error(8, "x"), reply_to=m) if m.metadata.message_type == "train" else r  # noqa: E731
    with pytest.raises(RoundFailed, match="The adapter of round 0 is intact"):
        conduct(read_config(flat), grid_of(flat, {7: {}}, crash))
    assert json.loads((tmp_path / "run" / "failed.json").read_text())["adapter"] == ""
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.fault(35)
def test_below_the_quorum_the_round_ends_before_the_others_have_trained():
    node = node_of({"a": lambda _: CRASHED, "b": lambda _: None, "c": lambda _: None})
    with pytest.raises(RoundFailed, match=r"0 of 3 .* wants 3; refused: a .*; not waited for: b, c"):
        federated(node, timeout=3600, deadline_seconds=3600)


@pytest.mark.fault(35)
def test_too_few_nodes_end_the_run_after_the_wait():
    with pytest.raises(RoundFailed, match=r"serve 1 of 3 silos; the quorum of 0\.6 wants 2"):
        federated(node_of(), quorum=0.6, wait_seconds=0.05, lives=[(11,)])


@pytest.mark.fault(35)
def test_a_node_that_dies_each_time_ends_the_run():
    node = node_of({"b": lambda _: GONE})
    with pytest.raises(RoundFailed, match=r"missing: b \(its node went away"):
        federated(node, timeout=3600, deadline_seconds=3600)
