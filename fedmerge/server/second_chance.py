"""A silo whose node dies in the middle of a round: asked again when the node is back, while there is time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedmerge.server.asking import Asked, Asker
from fedmerge.server.hearing import Sent
from fedmerge.server.report import RoundReport
from fedmerge.wire.records import count_bytes


@dataclass(frozen=True)
class SecondChance:
    """Asks silos of an open round once more.

    Args:
        asker: finds their nodes, and writes the messages.
        grid: reaches the nodes.
        asked: whom the round asks.
        arrays: the broadcast.
        config: of the user's own.
        report: of the round; the bytes are counted there.
        end: of the round, a `time.monotonic`.
    """

    asker: Asker
    grid: Grid
    asked: Asked
    arrays: ArrayRecord
    config: ConfigRecord
    report: RoundReport
    end: float

    def __call__(self, silos: Sequence[str]) -> tuple[Sent, Iterable[Message]]:
        """Ask those of `silos` whose nodes are there, as soon as there is one; nobody where time is over."""
        nodes = self.asker.await_nodes(self.grid, silos, self._left)
        if not nodes or self._left <= 0:
            return (), ()
        again = replace(self.asked, nodes=nodes)
        messages = self.asker.train(again, self.arrays, self.config, self.report.round, self._left)
        self.report.bytes_down += count_bytes(*(message.content for message in messages))
        replies = self.grid.send_and_receive(messages, timeout=self._left)
        return tuple((m.metadata, silo) for m, silo in zip(messages, nodes, strict=True)), replies

    @property
    def _left(self) -> float:
        return self.end - time.monotonic()
