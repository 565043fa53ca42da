"""Flower's Grid without a SuperLink: messages go to an executor, and replies come back from it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence

from flwr.app import Message, Metadata, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedmerge.engine.executors import Executor
from fedmerge.engine.identity import empty_run, stamp
from fedmerge.engine.processes import raise_if_interrupted
from fedmerge.wire.lifetime import seconds_left

# How long one pull waits for a reply. A grid that returned at once would be polled, and sleep costs a round
# more than everything else in it.
_PULL_SECONDS = 0.25


class LocalGrid(Grid):
    """A Grid whose nodes are names: whoever is idle serves the next message.

    As with Flower, a message that has outlived itself is served by nobody, and a reply to it is dropped.

    Args:
        executor: answers messages.
        nodes: the node ids that there are.
        run_id: of the run.
    """

    def __init__(self, executor: Executor, nodes: Sequence[int], run_id: int) -> None:
        """Send to `executor`."""
        self._executor = executor
        self._nodes = tuple(nodes)
        self._run = empty_run(run_id)
        self._ids = (str(number) for number in itertools.count(1))
        self._replies: dict[str, Message] = {}
        self._latest: frozenset[str] = frozenset()
        self._pushed: dict[str, Metadata] = {}

    def set_run(self, run: Run) -> None:
        """Take the run as it is given."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message, by the method that older Flower apps use."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The nodes; all are connected from the start."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Give each message an id and hand it to the executor."""
        message_ids = [self._push(message) for message in messages]
        self._latest = frozenset(message_ids)
        return message_ids

    def _push(self, message: Message) -> str:
        message_id = next(self._ids)
        stamp(message, message_id)
        self._pushed[message_id] = message.metadata
        self._executor.submit(message)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that are there; waits a moment for one where none is."""
        return self._pull(list(message_ids), _PULL_SECONDS)

    def _pull(self, message_ids: Sequence[str], wait_seconds: float) -> list[Message]:
        if not any(message_id in self._replies for message_id in message_ids):
            # Whoever pulls id after id shall first get to the replies that are there.
            wait_seconds = 0.0 if self._latest & self._replies.keys() else wait_seconds
            raise_if_interrupted()
            for reply in self._executor.collect(wait_seconds):
                self._replies[reply.metadata.reply_to_message_id] = reply
            self._forget()
        ready = [message_id for message_id in message_ids if message_id in self._replies]
        for message_id in ready:
            self._pushed.pop(message_id, None)
        return [self._replies.pop(message_id) for message_id in ready]

    def _forget(self) -> None:
        """Drop replies that nobody waits for any more: of rounds that closed without them."""
        for message_id in [name for name, metadata in self._pushed.items() if seconds_left(metadata) <= 0]:
            if message_id not in self._latest:
                del self._pushed[message_id]
        for message_id in self._replies.keys() - self._pushed.keys():
            del self._replies[message_id]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull until every reply is there or the time is over."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        open_ids, replies = set(self.push_messages(messages)), []
        while open_ids and (left := end - time.monotonic()) > 0:
            for reply in self._pull(sorted(open_ids), min(left, _PULL_SECONDS)):
                open_ids.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies
