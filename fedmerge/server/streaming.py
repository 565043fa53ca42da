"""Replies one by one as they come in, over any Flower grid.

Flower's grids collect all replies of a round in one list before the strategy sees the first: with 100 silos
that is 100 deltas in memory, still packed. Here each reply is pulled by itself, handed on, and can be
freed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from copy import copy
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedmerge.server.pulling import Awaited, pull
from fedmerge.wire.packing import pack

logger = logging.getLogger(__name__)

_SHORTEST_SECONDS = 0.005
_LONGEST_SECONDS = 1.0


class StreamingGrid(Grid):
    """A Flower grid whose `send_and_receive` yields replies as they come.

    The pause between two looks starts at 5 ms, doubles up to a second while nothing comes, and starts again
    with each reply: fast in one process, cheap over the network. Everything else is passed on to the grid.

    Args:
        grid: any Flower grid.
        longest_pause_seconds: between two looks for replies.
        packed: send the tensors of a message as one array (`fedmerge.wire.packing`), which only fedmerge's
            own ClientApp reads; it answers likewise. What comes packed is always unpacked.
    """

    def __init__(
        self, grid: Grid, *, longest_pause_seconds: float = _LONGEST_SECONDS, packed: bool = False
    ) -> None:
        """Wrap `grid`."""
        self.grid = grid
        self.packed = packed
        self.longest_pause_seconds = longest_pause_seconds

    def __getattr__(self, name: str) -> Any:
        """What Flower's grid has beside the abstract methods."""
        if name == "grid":  # not there yet while an instance is being unpickled or copied
            raise AttributeError(name)
        return getattr(self.grid, name)

    def set_run(self, run: Any) -> None:
        """Pass on."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run of the grid."""
        return self.grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Pass on."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on."""
        return self.grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Pass on."""
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push the messages at once, and yield each reply as it comes.

        Args:
            messages: to push.
            timeout: seconds after which no more replies are waited for; None waits for all. What has come in
                by then is still yielded, however long the receiver took over the replies before it.
        """
        outgoing = list(messages)
        pushed = list(self.grid.push_messages(self._as_sent(outgoing))) if outgoing else []
        waiting = {
            message_id: Awaited.of(message, message_id)
            for message, message_id in zip(outgoing, pushed, strict=True)
            if message_id
        }
        if len(waiting) < len(outgoing):
            logger.warning("%d of %d messages could not be sent", len(outgoing) - len(waiting), len(outgoing))
        end = None if timeout is None else time.monotonic() + timeout
        return self._replies(waiting, end)

    def _as_sent(self, messages: list[Message]) -> list[Message]:
        """The messages as they travel; those that were given keep their tensors, to judge the replies by."""
        if not self.packed:
            return messages
        known: dict[int, ArrayRecord] = {}  # one broadcast goes to all silos
        travelling = [copy(message) for message in messages]
        for message in travelling:
            message.content = pack(message.content, known)
        return travelling

    def _replies(self, waiting: dict[str, Awaited], end: float | None) -> Iterator[Message]:
        """Look for each reply in turn until all are there, or until one whole look after `end`."""
        pause = _SHORTEST_SECONDS
        while waiting:
            last = end is not None and time.monotonic() >= end
            came = False
            for message_id in list(waiting):
                for reply in pull(self.grid, waiting[message_id]):
                    waiting.pop(message_id, None)
                    came = True
                    yield reply
                    del reply
            if last:
                return
            if waiting and not came:
                time.sleep(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
            pause = _SHORTEST_SECONDS if came else min(2 * pause, self.longest_pause_seconds)
