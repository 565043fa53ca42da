from __future__ import annotations

import copy
import threading
import time

import pytest
from flwr.app import Message, RecordDict

from fedmerge.server.reading import UNREADABLE
from fedmerge.server.streaming import StreamingGrid
from fedmerge.wire.digests import digest
from fedmerge.wire.packing import is_packed, pack

from .world import FakeGrid, initial


def messages(count: int) -> list[Message]:
    return [Message(RecordDict(), node, "train") for node in range(count)]


def grid_of(*, delays: dict[int, float]) -> FakeGrid:
    """Node n's reply is there after delays[n] seconds."""
    grid = FakeGrid(lambda message: None)
    push = grid.push_messages

    def pushed(given):
        ids = push(given)
        for message, name in zip(given, ids, strict=True):
            delay = delays.get(message.metadata.dst_node_id)
            reply = Message(RecordDict(), reply_to=message)
            if delay is not None:
                threading.Timer(delay, grid.replies.__setitem__, (name, reply)).start()
        return ids

    grid.push_messages = pushed
    return grid


def test_replies_are_yielded_as_they_come():
    grid = StreamingGrid(grid_of(delays={0: 0.3, 1: 0.0, 2: 0.15}))
    came = [reply.metadata.src_node_id for reply in grid.send_and_receive(messages(3), timeout=5)]
    assert came == [1, 2, 0]


def test_messages_are_out_before_the_first_reply_is_asked_for():
    grid = FakeGrid(lambda message: RecordDict())
    StreamingGrid(grid).send_and_receive(iter(messages(2)))
    assert len(grid.sent) == 2


def test_it_stops_at_the_deadline_and_takes_what_has_come_by_then():
    grid = StreamingGrid(grid_of(delays={0: 0.0, 1: 0.0, 2: 30}))
    replies = grid.send_and_receive(messages(3), timeout=0.1)
    began = time.monotonic()
    came = {next(replies).metadata.src_node_id}
    time.sleep(0.3)  # the receiver is slow: the second reply came in time, and counts
    came |= {reply.metadata.src_node_id for reply in replies}
    assert came == {0, 1}
    assert time.monotonic() - began < 5


def test_it_waits_for_all_without_a_deadline():
    grid = StreamingGrid(grid_of(delays={0: 0.05}))
    assert len(list(grid.send_and_receive(messages(1)))) == 1


def test_nothing_to_send():
    assert list(StreamingGrid(FakeGrid(lambda _: None)).send_and_receive([], timeout=60)) == []


def test_a_message_that_could_not_be_pushed_is_not_waited_for(caplog):
    grid = FakeGrid(lambda message: RecordDict())
    push = grid.push_messages
    grid.push_messages = lambda given: [None, *list(push(given))[1:]]
    assert len(list(StreamingGrid(grid).send_and_receive(messages(2), timeout=60))) == 1
    assert "1 of 2 messages could not be sent" in caplog.text


def test_everything_else_is_the_grids():
    grid = FakeGrid(lambda _: None)
    stream = StreamingGrid(grid)
    assert stream.sent is grid.sent and stream.run == "the run"
    assert stream.get_node_ids() == [11, 12] and stream.get_nodes() == []
    stream.set_run(None)
    message = stream.create_message(RecordDict(), "train", 3, "g")
    assert stream.pull_messages(stream.push_messages([message])) == []
    assert copy.copy(stream).grid is grid
    with pytest.raises(AttributeError):
        _ = stream.nothing


def test_packed_a_broadcast_is_made_once_and_answers_are_unpacked():
    shared = initial()
    grid = FakeGrid(lambda message: pack(RecordDict({"arrays": shared})))
    given = [Message(RecordDict({"arrays": shared}), node, "train") for node in range(3)]
    replies = list(StreamingGrid(grid, packed=True).send_and_receive(given))
    assert [digest(reply.content["arrays"]) for reply in replies] == 3 * [digest(shared)]
    assert all(is_packed(message.content) for message in grid.sent)
    assert len({id(message.content["arrays"]) for message in grid.sent}) == 1
    assert all(message.content["arrays"] is shared for message in given)


def test_a_packed_answer_that_is_none_stands_as_unreadable():
    def broken(message: Message) -> RecordDict:
        content = pack(RecordDict({"arrays": initial()}))
        content["arrays"]["packed"].data = content["arrays"]["packed"].data[:-64]
        return content

    [reply] = StreamingGrid(FakeGrid(broken), packed=True).send_and_receive(messages(1))
    assert reply.has_error() and reply.error.code == UNREADABLE
