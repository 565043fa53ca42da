from __future__ import annotations

import time

import pytest
from flwr.app import Error

from fedmerge.errors import ConfigError, RoundFailed
from fedmerge.server.roster import Roster, ask, check_devices, wait_for_nodes
from fedmerge.wire.protocol import Card, QueryReply, Sender, failure_content

from .world import FakeGrid, streaming

A, B, C = Card("a", 10), Card("b", 20), Card("c", 30)


def test_a_deployment():
    roster = Roster.of({2: QueryReply((C, A), fingerprint="f"), 1: QueryReply((B,), fingerprint="f")})
    assert roster == Roster((A, B, C), {"a": 2, "b": 1, "c": 2}, False, "f")
    assert roster.names == ("a", "b", "c")
    assert roster.assign(["a", "b"], [2]) == {"a": 2}


def test_a_simulation():
    reply, shuffled = QueryReply((A, B, C), True), QueryReply((C, B, A), True)
    roster = Roster.of({5: reply, 3: shuffled})
    assert roster == Roster((A, B, C), {}, True)
    assert roster.assign(["a", "b", "c"], [5, 3]) == {"a": 3, "b": 5, "c": 3}
    assert roster.assign(["a"], []) == {}


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ({}, "0 nodes answered, and none of them has a silo; check data.source"),
        ({1: QueryReply(())}, "1 nodes answered, and none of them has a silo"),
        (
            {1: QueryReply((A,)), 2: QueryReply((A,))},
            "more than one silo is called 'a'; give each node its own",
        ),
        ({1: QueryReply((A, A), True)}, "more than one silo is called 'a'"),
        ({1: QueryReply((A,), True), 2: QueryReply((A, B), True)}, "see different silos"),
        ({1: QueryReply((A,), True), 2: QueryReply((B,))}, "some nodes serve every silo"),
        (
            {n: QueryReply((card,), fingerprint="fg"[n == 2]) for n, card in enumerate((A, B, C))},
            "that of 'c' is not the others'; check base.model",
        ),
    ],
)
def test_what_makes_no_roster(replies, reason):
    with pytest.raises(ConfigError, match=reason):
        Roster.of(replies)


def test_nodes_are_asked_and_those_that_fail_are_left_out(caplog):
    answers = {
        1: QueryReply((A,)).to_content(),
        2: failure_content(Sender(failure="ConfigError", sentence="no file 'rows.csv'")),
        3: Error(8, "gone"),
        4: None,
    }
    grid = streaming(lambda message: answers[message.metadata.dst_node_id])
    assert ask(grid, [4, 3, 2, 1], timeout_seconds=0.1) == {1: QueryReply((A,))}
    assert "node 2 is left out: no file 'rows.csv'" in caplog.text
    assert "node 3 is left out: Flower error 8" in caplog.text


def test_nobody_waits_for_more_answers_than_are_wanted():
    grid = streaming(
        lambda message: QueryReply((A,)).to_content() if message.metadata.dst_node_id == 1 else None
    )
    asked = ask(grid, [1, 2], timeout_seconds=3600, enough=lambda answers: 1 in answers)
    assert asked == {1: QueryReply((A,))}


def test_nobody_answers():
    grid = streaming(
        lambda _: failure_content(Sender(failure="ConfigError", sentence="the base is not here"))
    )
    with pytest.raises(
        RoundFailed, match="none of 2 nodes told which silos it has; the first said: the base is not"
    ):
        ask(grid, [1, 2], timeout_seconds=0.1)
    with pytest.raises(RoundFailed, match=r"none of 1 nodes .* within 0\.05 seconds"):
        ask(streaming(lambda _: None), [1], timeout_seconds=0.05)


def test_waiting_is_bounded():
    began = time.monotonic()
    grid = FakeGrid(lambda _: None, nodes=(3, 1))
    assert wait_for_nodes(grid, lambda nodes: len(nodes) > 2, wait_seconds=0.1, pause_seconds=0.02) == [1, 3]
    assert 0.1 <= time.monotonic() - began < 2
    assert wait_for_nodes(grid, lambda nodes: len(nodes) == 2, wait_seconds=60) == [1, 3]


def test_devices():
    check_devices({"a": "cpu"}, expects_gpu=False)
    check_devices({"a": "cuda", "b": ""}, expects_gpu=True)
    with pytest.raises(RoundFailed, match=r"1 of 2 \('b' first\) compute on the CPU"):
        check_devices({"a": "cuda", "b": "cpu"}, expects_gpu=True)
