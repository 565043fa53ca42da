"""Shadows in every round: scored at the server or at the silos, and never of any consequence."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from flwr.app import ConfigRecord, Error, MetricRecord, RecordDict

from fedmerge.errors import ConfigError
from fedmerge.server import storage
from fedmerge.server.evaluating import others
from fedmerge.server.observer import Silent
from fedmerge.server.strategy import MergeStrategy
from fedmerge.wire.protocol import Sender, failure_content, read_candidates, read_instruction, reply_content
from fedmerge.wire.records import count_bytes, from_record

from .test_gate import by_round, node_of
from .world import ABC, FakeGrid, bits, honest, initial, roster_of, streaming, tensors

TIES, MEDIAN = "ties(density=0.5) @ factors()", "median() @ factors()"
SHADOWS = "ties(density=0.5); median()"
FAILING = "task_arithmetic(scale=1e42)"
FAILS = "task_arithmetic(scale=1e+42) @ factors()"


def length(adapter):
    return sum(float(value.abs().sum()) for value in adapter.values())


def scorer(candidates):
    return {
        f"{name}/validation/{figure}": value
        for name, adapter in candidates.items()
        for figure, value in (("loss", length(adapter.tensors)), ("count", 4.0))
    }


def scoring(changes=None):
    """A node that trains honestly, and scores each adapter by its length plus the silo's own."""

    def answer(message):
        instruction = read_instruction(message.content)
        if message.metadata.message_type == "train":
            return honest(instruction, from_record(message.content["arrays"]))
        change = (changes or {}).get(instruction.silo)
        if change is not None:
            return change(message)
        metrics = {
            f"{name}/{split}/loss": length(from_record(record)) + ord(instruction.silo)
            for name, record in read_candidates(message.content).items()
            for split in instruction.splits
        }
        return reply_content(None, 3, metrics=metrics, sender=Sender(instruction.silo, instruction.round))

    return answer


def play(node=None, rounds=2, wrap=FakeGrid, roster=None, **arguments):
    strategy = MergeStrategy(
        roster=roster or roster_of(*ABC), wait_seconds=0.0, **{"shadows": SHADOWS, **arguments}
    )
    grid = wrap(node or scoring(), nodes=(11, 12, 13))
    result = strategy.start(grid, initial(), num_rounds=rounds, timeout=0.1)
    return strategy, grid, result


def asked(grid):
    return [message for message in grid.sent if message.metadata.message_type == "evaluate"]


MODES = ({}, {"shadow_scoring": "server", "scorer": scorer}, {"shadow_scoring": "silos"})


def test_no_mode_changes_a_bit_of_the_run():
    plain = bits(play(shadows="")[2].arrays)
    for mode, shadows in itertools.product(MODES, (SHADOWS, FAILING)):
        strategy, _, result = play(shadows=shadows, **mode)
        assert bits(result.arrays) == plain == bits(strategy.broadcast.tensors)
        assert [report.failed for report in strategy.rounds] == ["", ""]


def test_final_scores_nothing_in_rounds():
    strategy, grid, _ = play()
    assert [report.shadows for report in strategy.rounds] == [{}, {}]
    assert not asked(grid) and "shadows" not in strategy.rounds[0].seconds
    assert list(strategy.shadow_adapters) == [TIES, MEDIAN]


def test_the_server_scores_what_each_rule_would_have_made_of_the_round():
    strategy, grid, result = play(shadow_scoring="server", scorer=scorer)
    assert not asked(grid)
    for report in strategy.rounds:
        assert list(report.shadows) == ["merged", TIES, MEDIAN]
        assert report.seconds["shadows"] > 0 and report.shadow_bytes == {"down": 0, "up": 0}
        for row in report.shadows.values():
            assert row["metric"] == "loss" and row["mean"] == row["worst"] == row["server"]
    last = strategy.rounds[-1].shadows
    assert last["merged"]["server"] == length(from_record(result.arrays))
    assert last[TIES]["server"] == length(strategy.shadow_adapters[TIES].tensors)
    assert len({row["server"] for report in strategy.rounds for row in report.shadows.values()}) == 6
    json.dumps(strategy.rounds[0].to_dict())


def test_a_shadow_that_can_not_be_merged_is_reported_with_its_error():
    for mode in MODES[1:]:
        strategy, _, _ = play(shadows=f"{FAILING}; median()", **mode)
        row = strategy.rounds[0].shadows[FAILS]
        assert set(row) == {"error"} and "the merge overflows" in row["error"]
        assert "mean" in strategy.rounds[0].shadows[MEDIAN] and "mean" in strategy.rounds[0].shadows["merged"]


def test_a_scorer_that_raises_costs_one_shadow_its_score():
    def picky(candidates):
        if TIES in candidates:
            raise ValueError("no\nsuch  shape")
        return scorer(candidates)

    strategy, _, _ = play(shadow_scoring="server", scorer=picky)
    assert strategy.rounds[0].shadows[TIES] == {"error": "no such shape"}
    assert "mean" in strategy.rounds[0].shadows[MEDIAN]


def test_a_scorer_that_always_fails_ends_nothing():
    def broken(candidates):
        raise MemoryError

    strategy, _, result = play(shadow_scoring="server", scorer=broken)
    assert {row["error"] for row in strategy.rounds[1].shadows.values()} == {"MemoryError"}
    assert bits(result.arrays) == bits(play(shadows="")[2].arrays)


def test_nan_is_a_score_and_survives_as_null():
    strategy, _, _ = play(
        shadow_scoring="server",
        scorer=lambda candidates: {f"{name}/validation/loss": math.nan for name in candidates},
    )
    assert math.isnan(strategy.rounds[0].shadows[TIES]["mean"])
    assert json.loads(storage.to_json(strategy.rounds[0].to_dict()))["shadows"][TIES]["server"] is None


@pytest.mark.parametrize("shared", [True, False])
def test_the_silos_score_the_merged_adapter_and_the_shadows(shared):
    strategy, grid, result = play(roster=roster_of(*ABC, shared=shared), shadow_scoring="silos")
    messages = asked(grid)
    orders = [read_instruction(message.content) for message in messages]
    assert [(order.round, order.silo) for order in orders] == [(n, s) for n in (1, 2) for s in ABC]
    assert {order.splits for order in orders} == {("validation",)}
    assert {(order.epochs, order.steps, order.statistics) for order in orders} == {(0, 0, ())}
    assert set(read_candidates(messages[0].content)) == {"received", TIES, MEDIAN}
    if not shared:
        homes = {"a": 11, "b": 12, "c": 13}
        assert all(m.metadata.dst_node_id == homes[o.silo] for m, o in zip(messages, orders, strict=True))
    report = strategy.rounds[-1]
    shadow = length(strategy.shadow_adapters[TIES].tensors)
    assert report.shadows[TIES]["silos"] == pytest.approx({name: shadow + ord(name) for name in ABC})
    assert report.shadows[TIES]["mean"] == pytest.approx(shadow + ord("b"))
    assert report.shadows[TIES]["worst"] == pytest.approx(shadow + ord("c"))
    assert report.shadows["merged"]["mean"] == pytest.approx(length(from_record(result.arrays)) + ord("b"))
    assert report.shadow_bytes["down"] == count_bytes(*(message.content for message in messages[3:]))
    assert 0 < report.shadow_bytes["up"] < 2000 and report.seconds["shadows"] > 0
    assert report.bytes_down < report.shadow_bytes["down"]  # what training sent is counted by itself


def garbage(message):
    return RecordDict({"metrics": MetricRecord({"num-examples": 3, f"{TIES}/validation/loss": [1.0, 2.0]})})


@pytest.mark.parametrize(
    "change",
    [
        lambda _: Error(8),
        lambda _: None,
        lambda _: failure_content(Sender("b", failure="ValueError")),
        lambda _: RecordDict({}),
        lambda _: reply_content(None, 0),
        garbage,
    ],
)
def test_a_silo_that_does_not_score_is_left_out(change):
    strategy, _, _ = play(scoring({"b": change}), shadow_scoring="silos", wrap=streaming)
    assert set(strategy.rounds[0].shadows[TIES]["silos"]) == {"a", "c"}
    assert strategy.rounds[0].shadow_bytes["up"] > 0


def test_nobody_scores():
    node = scoring(dict.fromkeys(ABC, lambda _: None))
    strategy, _, result = play(node, shadow_scoring="silos", wrap=streaming)
    nothing = {"error": "nobody scored it"}
    assert strategy.rounds[0].shadows == {"merged": nothing, TIES: nothing, MEDIAN: nothing}
    assert bits(result.arrays) == bits(play(shadows="")[2].arrays)


def test_only_silos_whose_replies_were_merged_are_asked():
    def node(message):
        order = read_instruction(message.content)
        silent = message.metadata.message_type == "train" and order.silo == "b"
        return None if silent else scoring()(message)

    strategy, grid, _ = play(node, quorum=0.5, shadow_scoring="silos")
    assert {read_instruction(message.content).silo for message in asked(grid)} == {"a", "c"}
    assert set(strategy.rounds[0].shadows["merged"]["silos"]) == {"a", "c"}


def test_a_rejected_round_has_no_counterfactuals():
    hurts = node_of(by_round(2.0, 3.0, 2.0))
    node = lambda m: hurts(m) if m.metadata.message_type == "train" else scoring()(m)  # noqa: E731
    strategy, grid, _ = play(node, rounds=3, shadow_scoring="silos")
    assert {read_instruction(message.content).round for message in asked(grid)} == {1, 3}
    assert [bool(report.shadows) for report in strategy.rounds] == [True, False, True]
    assert [bool(report.rejected) for report in strategy.rounds] == [False, True, False]
    strategy, _, _ = play(node, rounds=3, shadow_scoring="server", scorer=scorer)
    assert [bool(report.shadows) for report in strategy.rounds] == [True, False, True]


class Watcher(Silent):
    def __init__(self):
        self.seen = []

    def phase(self, text):
        self.seen.append(text)

    def round_closed(self, report):
        self.seen.append((report["round"], bool(report["shadows"])))


def test_a_round_is_reported_once_when_its_silos_have_answered():
    watcher = Watcher()
    play(shadow_scoring="silos", observer=watcher)
    steps = ["waiting for nodes", "training", "merging", "scoring the shadows"]
    assert watcher.seen == [*steps, (1, True), *steps, (2, True)]


def test_a_loop_that_never_evaluates_gets_its_reports_a_round_later():
    watcher = Watcher()
    strategy = MergeStrategy(
        roster=roster_of(*ABC), shadows="median()", shadow_scoring="silos", observer=watcher
    )
    grid, arrays = FakeGrid(scoring()), initial()
    for number in (1, 2):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
    assert [seen for seen in watcher.seen if isinstance(seen, tuple)] == [(1, True)]
    assert strategy.rounds[0].shadows["merged"] == {"error": "nobody scored it"}


def test_in_a_flower_app_of_ones_own_every_node_evaluates_once():
    def node(message):
        here = message.metadata.dst_node_id
        if message.metadata.message_type == "train":
            return None if here == 13 else reply_content(tensors(here, 0.1), 5)
        metrics = {f"{name}/validation/loss": float(here) for name in read_candidates(message.content)}
        return reply_content(None, 5, metrics=metrics)

    strategy = MergeStrategy(
        wait_seconds=0.0, quorum=0.5, shadows="median()", shadow_scoring="silos", min_nodes=3
    )
    grid = FakeGrid(node, nodes=(11, 12, 13))
    result = strategy.start(grid, initial(), num_rounds=1, timeout=0.1)
    assert sorted(message.metadata.dst_node_id for message in asked(grid)) == [11, 12, 13]
    assert strategy.rounds[0].shadows[MEDIAN]["silos"]["node-11"] == 11.0
    assert result.evaluate_metrics_clientapp[1]["received/validation/loss"] == pytest.approx(12.0)


def test_others_go_where_none_of_the_first_went():
    _, grid, _ = play(shadow_scoring="silos")
    messages = asked(grid)
    assert others(messages, messages) == [] and others(messages, []) == messages


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"shadow_scoring": "server"}, "strategy.shadow-scoring is 'server', and nothing scores there"),
        ({"shadow_scoring": "silo"}, "strategy.shadow-scoring is 'silo': did you mean 'silos'"),
    ],
)
def test_a_scoring_that_can_not_be(arguments, reason):
    with pytest.raises(ConfigError, match=reason):
        MergeStrategy(**arguments)
