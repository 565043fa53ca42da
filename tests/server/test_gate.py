"""The gate: what it makes of scores, and whole runs in which silos say that a merge hurt."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from fedmerge.adapters import Adapter
from fedmerge.adapters.merge import merge
from fedmerge.adapters.optimizers import parse_optimizer
from fedmerge.errors import ConfigError
from fedmerge.server import storage
from fedmerge.server.folder import RunFolder
from fedmerge.server.gate import Open, Silos, parse_gate
from fedmerge.server.scores import Summary, summarize
from fedmerge.server.strategy import MergeStrategy
from fedmerge.wire.protocol import read_instruction
from fedmerge.wire.records import from_record

from .world import ABC, EXAMPLES, FakeGrid, bits, honest, initial, roster_of, run, tensors

KEY = "received/validation/bits_per_byte"


def summary(metric="accuracy", **silos):
    found = summarize({name: {f"x/test/{metric}": value} for name, value in silos.items()}, "x", "test")
    assert found is not None
    return found


def rejects(before, after, gate=None):
    return bool((gate or Silos()).judge(before, after))


def test_more_than_the_share_must_have_lost_more_than_the_drop():
    before = summary(a=0.5, b=0.5, c=0.5, d=0.5)
    assert not rejects(before, summary(a=0.1, b=0.1, c=0.5, d=0.9))  # half of them
    assert rejects(before, summary(a=0.1, b=0.1, c=0.1, d=0.9))
    assert not rejects(before, summary(a=0.491, b=0.491, c=0.491, d=0.491))  # 1.8 %
    assert rejects(before, summary(a=0.489, b=0.489, c=0.489, d=0.5))
    assert rejects(before, summary(a=0.4, b=0.5, c=0.5, d=0.5), Silos(share=0.0))
    assert not rejects(summary(a=0.5, b=0.5, c=0.5), summary(a=0.1, b=0.5, c=0.5), Silos(share=1 / 3))
    assert not rejects(before, summary(a=0.3, b=0.3, c=0.3, d=0.3), Silos(drop=0.5))


def test_lower_is_better_where_it_is():
    before = summary("bits_per_byte", a=1.0, b=2.0)
    assert rejects(before, summary("bits_per_byte", a=1.021, b=2.05))
    assert not rejects(before, summary("bits_per_byte", a=1.019, b=2.03))
    assert not rejects(before, summary("bits_per_byte", a=0.1, b=0.1))


def test_of_a_reference_of_zero_any_worsening_counts():
    assert rejects(summary("loss", a=0.0), summary("loss", a=1e-9))
    assert not rejects(summary("loss", a=0.0), summary("loss", a=0.0))
    assert not rejects(summary("accuracy", a=0.0), summary("accuracy", a=0.5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_counts_as_lowered_and_is_no_reference(bad):
    assert rejects(summary(a=0.5, b=0.5, c=0.5), summary(a=bad, b=bad, c=0.5))
    assert not rejects(summary(a=bad, b=bad, c=0.5), summary(a=0.1, b=0.1, c=0.5))


def test_only_silos_that_scored_both_are_compared():
    assert not rejects(summary(a=0.5, b=0.5), summary(b=0.5, c=0.1, d=0.1))
    assert rejects(summary(a=0.5, b=0.5), summary(b=0.1, c=0.9, d=0.9))
    assert not rejects(summary(a=0.5), summary(b=0.1))
    assert not rejects(None, summary(a=0.1)) and not rejects(summary(a=0.5), None)


def test_the_sentence_names_silos_but_not_all_of_many():
    many = {f"s{number}": 0.5 for number in range(8)}
    said = Silos().judge(summary(**many), summary(**dict.fromkeys(many, 0.25)))
    assert said.startswith("lowered accuracy by more than 2 % at 8 of 8 silos (s0 0.500 to 0.250, ")
    assert said.endswith("s4 0.500 to 0.250 and 3 more)")


def test_off_keeps_everything():
    assert parse_gate("off()") == Open()
    assert not rejects(summary(a=1.0), summary(a=0.0), Open())


def test_the_text_of_a_gate():
    assert parse_gate("silos") == Silos() == parse_gate("silos(share=0.5, drop=0.02)")
    assert parse_gate("silos(share=0, drop=0)") == Silos(0, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("silo()", "did you mean 'silos'"),
        ("silos(shar=0.5)", "did you mean 'share'|has no knob 'shar'"),
        ("silos(share=1)", r"strategy\.gate: share is 1, expected a number at least 0 and below 1"),
        ("silos(share=-0.1)", "share is -0.1"),
        ("silos(drop='x')", r"strategy\.gate: drop is 'x', expected a number at least 0$"),
        ("silos(drop=1e999)", "drop is inf"),
        ("silos(drop=True)", "drop is True"),
    ],
)
def test_a_gate_that_is_none(text, reason):
    with pytest.raises(ConfigError, match=reason):
        MergeStrategy(gate=text)


# Whole runs: `scores` gives what a silo says of the broadcast that it received in a round


def node_of(scores):
    def answer(message):
        instruction = read_instruction(message.content)
        broadcast = from_record(message.content["arrays"])
        content = honest(instruction, broadcast)
        score = scores(instruction.silo, instruction.round, broadcast)
        del content["metrics"][KEY]
        if score is not None:
            content["metrics"][KEY] = score
        return content

    return answer


def by_round(*values):
    return lambda silo, round, broadcast: values[round - 1]


HURTS_IN_TWO = by_round(2.0, 1.9, 3.0, 1.9, 1.8)  # what round 2 made is received in round 3


def play(scores, rounds, names=ABC, **arguments):
    strategy = MergeStrategy(roster=roster_of(*names), wait_seconds=0.0, **arguments)
    grid = FakeGrid(node_of(scores))
    result = strategy.start(grid, initial(), num_rounds=rounds, timeout=0.1)
    received = {
        read_instruction(message.content).round: bits(message.content["arrays"]) for message in grid.sent
    }
    return strategy, received, result


def test_a_merge_that_hurts_is_taken_back_and_the_last_good_broadcast_returns(caplog):
    with caplog.at_level(logging.INFO, logger="fedmerge"):
        strategy, received, result = play(HURTS_IN_TWO, 4)
    assert received[4] == received[2] != received[3]
    assert [bool(report.rejected) for report in strategy.rounds] == [False, False, True, False]
    report = strategy.rounds[2]
    assert report.rejected == (
        "the merge of round 2 raised bits_per_byte by more than 2 % at 3 of 3 silos "
        "(a 1.900 to 3.000, b 1.900 to 3.000, c 1.900 to 3.000): back to the adapter of round 1"
    )
    assert {entry["weight"] for entry in report.admitted.values()} == {0.0}
    assert report.received.mean == 3.0 and report.merge is None
    assert json.loads(storage.to_json(report.to_dict()))["rejected"] == report.rejected
    [warning] = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert report.rejected in warning.getMessage() and "3 replies are discarded" in warning.getMessage()
    # round 4 goes on from what round 1 made, as if round 2 had never been
    deltas = [tensors(4000 + ord(name), 0.1) for name in ABC]
    first = Adapter(run(node_of(HURTS_IN_TWO), rounds=1)[0].broadcast.tensors)
    expected = merge(deltas, [EXAMPLES[name] for name in ABC], received=first, names=ABC, round=4)
    assert bits(result.arrays) == bits(expected.adapter.tensors)


def test_the_server_optimizer_goes_back_too():
    text = "momentum(rate=1.0, beta=0.9)"
    strategy, _, _ = play(HURTS_IN_TWO, 3, server_optimizer=text)
    once, _, _ = play(HURTS_IN_TWO, 1, server_optimizer=text)
    assert bits(strategy.merger.state) == bits(once.merger.state)
    assert bits(strategy.broadcast.tensors) == bits(once.broadcast.tensors)
    strategy, _, _ = play(HURTS_IN_TWO, 4, server_optimizer=text)
    deltas = [tensors(4000 + ord(name), 0.1) for name in ABC]
    weights = [EXAMPLES[name] for name in ABC]
    merged = merge(deltas, weights, received=once.broadcast, names=ABC, round=4)
    adapter, state = parse_optimizer(text).step(once.broadcast, merged, once.merger.state)
    assert bits(strategy.broadcast.tensors) == bits(adapter.tensors)
    assert bits(strategy.merger.state) == bits(state)


def test_the_first_merge_may_fall_back_to_the_initial_adapter():
    strategy, received, _ = play(by_round(2.0, 2.5, 2.0), 3)
    assert received[3] == received[1] == bits(initial())
    assert strategy.rounds[1].rejected.endswith("back to the initial adapter")
    assert strategy.merger.state == {}  # `none()` has no state
    assert strategy.best is None  # of what was made, nothing was good


def test_a_rule_that_always_hurts_is_taken_back_every_other_round():
    def distance(silo, round, broadcast):
        start = from_record(initial())
        return 1.0 + sum(float((broadcast[name] - start[name]).abs().sum()) for name in start)

    strategy, received, _ = play(distance, 6, rule="task_arithmetic(scale=100.0)")
    assert [report.round for report in strategy.rounds if report.rejected] == [2, 4, 6]
    assert received[1] == received[3] == received[5] == bits(strategy.broadcast.tensors)
    assert len({str(received[number]) for number in (2, 4, 6)}) == 3  # each try is another
    kept, _, _ = play(distance, 6, rule="task_arithmetic(scale=100.0)", gate="off()")
    assert not [report for report in kept.rounds if report.rejected]


@pytest.mark.parametrize(("hurt", "rejected"), [("ab", False), ("abc", True)])
def test_half_of_the_silos_is_not_enough(hurt, rejected):
    scores = lambda silo, round, _: 3.0 if round == 2 and silo in hurt else 2.0  # noqa: E731
    strategy, _, _ = play(scores, 2, names=("a", "b", "c", "d"))
    assert bool(strategy.rounds[1].rejected) == rejected


@pytest.mark.parametrize("roster", [roster_of(*ABC), None])
def test_without_scores_the_gate_never_acts(roster):
    none = lambda silo, round, broadcast: None  # noqa: E731
    answer = node_of(none)
    strategy, _ = run(answer if roster else named(answer), rounds=3, roster=roster, evaluate=False)
    assert not [report for report in strategy.rounds if report.rejected or report.failed]


def named(answer):
    """A node that plays silo "a" or "b" where messages name none."""

    def serve(message):
        message.content["config"]["silo"] = "ab"[message.metadata.dst_node_id - 11]
        return answer(message)

    return serve


def test_silos_that_fall_silent_are_not_compared():
    quiet = lambda silo, round, _: None if round == 2 and silo != "a" else float(round)  # noqa: E731
    strategy, _, _ = play(quiet, 2)
    assert "at 1 of 1 silos (a 1.000 to 2.000)" in strategy.rounds[1].rejected


def test_nan_counts_as_lowered():
    scores = lambda silo, round, _: math.nan if round == 2 and silo in "ab" else 2.0  # noqa: E731
    strategy, received, _ = play(scores, 3)
    assert "at 2 of 3 silos (a 2.000 to nan, b 2.000 to nan)" in strategy.rounds[1].rejected
    assert received[3] == received[1]


def test_of_sampled_silos_those_that_were_asked_both_times_are_compared():
    seen = set()
    for seed in range(20):
        strategy, received, _ = play(
            by_round(2.0, 3.0, 2.0), 3, names=("a", "b", "c", "d"), fraction=0.5, seed=seed
        )
        first, second, _ = (set(report.asked) for report in strategy.rounds)
        both = first & second
        seen.add(len(both))
        assert bool(strategy.rounds[1].rejected) == bool(both)
        assert f"at {len(both)} of {len(both)} silos" in strategy.rounds[1].rejected or not both
        assert (received[3] == received[1]) == bool(both)
    assert seen == {0, 1, 2}


def test_a_broadcast_that_returned_is_scored_by_further_silos():
    scores = by_round(2.0, 3.0, 2.0, 2.0)
    strategies = (
        play(scores, 3, names=("a", "b", "c", "d"), fraction=0.5, seed=seed)[0] for seed in itertools.count()
    )
    strategy = next(each for each in strategies if each.rounds[1].rejected)
    asked = {silo for number in (0, 2) for silo in strategy.rounds[number].asked}
    good = strategy.standing.good
    assert good.round == 0 and set(good.metrics) == asked


def test_what_was_taken_back_is_neither_best_nor_merged_at_the_end():
    better_on_average = lambda silo, round, _: {1: 2.0, 2: 1.9}.get(  # noqa: E731
        round, 0.0 if silo == "a" else 2.5
    )
    strategy, _, _ = play(better_on_average, 3, shadows="median()")
    assert strategy.rounds[2].received.mean < 1.9
    assert strategy.rounds[2].rejected
    assert strategy.best.round == 1
    assert strategy.last_replies == [] and strategy.shadow_adapters == {}
    assert strategy.standing.made(strategy.broadcast, 3) == 1
    assert strategy.standing.unsure(strategy.broadcast) is None


def test_the_run_folder_holds_together(tmp_path):
    folder = RunFolder(tmp_path / "run", {"run.seed": 0})
    folder.start({"torch": torch.__version__})
    play(HURTS_IN_TWO, 4, folder=folder, observer=folder, record=True, server_optimizer="momentum()")
    folder.close()
    rounds = [tmp_path / "run" / "rounds" / f"{number:04d}" for number in range(5)]
    states = [json.loads((each / "state.json").read_text()) for each in rounds]
    assert states[0]["previous"] == ""
    for before, after, state in zip(rounds, rounds[1:], states[1:], strict=False):
        assert state["previous"] == storage.hash_of(before / "state.json")
        assert state["sha256"] == {name: storage.hash_of(after / name) for name in state["sha256"]}
    for name in ("broadcast", "optimizer"):
        first, third = (load_file(rounds[number] / f"{name}.safetensors") for number in (1, 3))
        assert bits(first) == bits(third)
    assert states[3]["silos"] == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert re.match("the merge of round 2 raised bits_per_byte", states[3]["rejected"])
    assert ["rejected" in state for state in states] == [False, False, False, True, False]
    assert [(each / "deltas").is_dir() for each in rounds] == [False, True, True, False, True]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["rejected"] for line in lines] == ["", "", states[3]["rejected"], ""]
    assert isinstance(Summary(**lines[2]["received"]), Summary)
