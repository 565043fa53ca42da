import os
import signal
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedmerge.engine.executors import Forked, InProcess, can_fork
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import CRASHED, RAISED, server_identity

forks = pytest.mark.skipif(not can_fork(), reason="another thread runs, or there is no fork")


def answer(message):
    wish = message.content["config"]["wish"]
    if wish == "raise":
        raise ValueError("as wished")
    if wish == "die":
        os._exit(3)
    if wish == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if wish == "nap":
        time.sleep(0.3)
    if wish == "sleep":
        time.sleep(60)
    return Message(RecordDict({"config": ConfigRecord({"wish": wish, "pid": os.getpid()})}), reply_to=message)


def ask(grid, *wishes, timeout=20.0, ttl=None):
    with server_identity(run_id=1):
        messages = [
            Message(
                RecordDict({"config": ConfigRecord({"wish": wish})}),
                dst_node_id=11,
                message_type="train",
                ttl=ttl,
            )
            for wish in wishes
        ]
        ids = {}
        replies = grid.send_and_receive(messages, timeout=timeout)
    for message, wish in zip(messages, wishes, strict=True):
        ids[message.metadata.message_id] = wish
    return [(ids[reply.metadata.reply_to_message_id], reply) for reply in replies]


@forks
def test_a_late_reply_is_dropped_when_the_next_messages_are_out():
    executor = Forked(answer, workers=2)
    grid = LocalGrid(executor, [11], 1)
    try:
        assert ask(grid, "nap", timeout=0.05, ttl=0.05) == []
        time.sleep(0.4)
        assert [wish for wish, _ in ask(grid, "a")] == ["a"]
        assert not grid._replies and not grid._pushed
    finally:
        executor.close()


@pytest.fixture(params=["in-process", pytest.param("forked", marks=forks)])
def executor(request):
    made = InProcess(answer) if request.param == "in-process" else Forked(answer, workers=2)
    yield made
    made.close()


def test_every_message_is_answered(executor):
    replies = ask(LocalGrid(executor, [11], 1), *"abcdefg")
    assert sorted(wish for wish, _ in replies) == list("abcdefg")
    assert all(reply.content["config"]["wish"] == wish for wish, reply in replies)


def test_an_app_that_raises_gives_an_error_reply_and_the_rest_goes_on(executor):
    replies = dict(ask(LocalGrid(executor, [11], 1), "a", "raise", "b"))
    assert replies["raise"].error.code == RAISED
    assert replies["raise"].error.reason == "ValueError: as wished"
    assert replies["a"].has_content() and replies["b"].has_content()


def test_nothing_to_wait_for_returns_at_once(executor):
    start = time.monotonic()
    assert executor.collect(5.0) == []
    assert time.monotonic() - start < 1


@pytest.fixture
def forked():
    made = Forked(answer, workers=2)
    yield made
    made.close()


@forks
@pytest.mark.parametrize("wish", ["die", "killed"])
def test_a_worker_that_dies_gives_an_error_reply_and_is_replaced(forked, wish):
    grid = LocalGrid(forked, [11], 1)
    replies = dict(ask(grid, "a", wish, "b", "c"))
    assert replies[wish].error.code == CRASHED
    assert all(replies[other].has_content() for other in "abc")
    assert len({reply.content["config"]["pid"] for _, reply in ask(grid, *"abcdefgh")}) == 2


@forks
def test_a_worker_that_was_killed_while_idle_costs_no_message(forked):
    grid = LocalGrid(forked, [11], 1)
    pids = {reply.content["config"]["pid"] for _, reply in ask(grid, *"abcdefgh")}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    replies = ask(grid, *"abcdefgh")
    assert len(replies) == 8 and all(reply.has_content() for _, reply in replies)


@forks
def test_a_worker_gets_again_what_it_had_before_and_nobody_is_idle():
    forked = Forked(answer, 2, key=lambda message: message.content["config"]["wish"])
    try:
        grid = LocalGrid(forked, [11], 1)
        for _ in range(5):
            ask(grid, "a")
        served = {ask(grid, "a")[0][1].content["config"]["pid"] for _ in range(5)}
        assert len(served) == 1
        both = {reply.content["config"]["pid"] for _, reply in ask(grid, "nap", "nap", "nap", "nap")}
        assert len(both) == 2
    finally:
        forked.close()


@forks
def test_large_messages_pass(forked):
    grid = LocalGrid(forked, [11], 1)
    wish = "x" * 30_000_000
    assert ask(grid, wish, wish)[0][1].content["config"]["wish"] == wish


@forks
def test_a_timeout_leaves_slow_workers_behind_and_close_kills_them(forked):
    grid = LocalGrid(forked, [11], 1)
    start = time.monotonic()
    assert [wish for wish, _ in ask(grid, "sleep", "a", timeout=1.0)] == ["a"]
    nursery = forked._nursery._pid
    forked.close()
    assert time.monotonic() - start < 5
    with pytest.raises(ProcessLookupError):
        os.kill(nursery, 0)
