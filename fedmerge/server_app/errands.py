"""Work for single silos outside of rounds: baselines to train, candidates to score."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedmerge.errors import WireError
from fedmerge.server.reading import error_of
from fedmerge.server.roster import Roster
from fedmerge.wire.protocol import read_sender
from fedmerge.wire.records import count_bytes

logger = logging.getLogger(__name__)


@dataclass
class Traffic:
    """Bytes of message contents, from the server (down) and to it (up)."""

    down: int = 0
    up: int = 0


@dataclass(frozen=True)
class Errands:
    """Sends each silo its message and yields what comes back.

    Args:
        grid: of the run.
        roster: which node serves which silo.
        traffic: counted here.
    """

    grid: Grid
    roster: Roster
    traffic: Traffic = field(default_factory=Traffic)

    def run(
        self, contents: Mapping[str, RecordDict], message_type: str, *, timeout_seconds: float
    ) -> Iterator[tuple[str, RecordDict]]:
        """Send, and yield each silo's reply as it comes; silos that fail are logged and left out.

        Args:
            contents: of the message to each silo, by name.
            message_type: "train" or "evaluate".
            timeout_seconds: for all of them together.
        """
        homes = self.roster.assign(list(contents), list(self.grid.get_node_ids()))
        messages = {
            silo: Message(contents[silo], node, message_type, ttl=timeout_seconds, group_id=message_type)
            for silo, node in homes.items()
        }
        self.traffic.down += sum(count_bytes(message.content) for message in messages.values())
        waiting = set(contents)
        replies = self.grid.send_and_receive(list(messages.values()), timeout=timeout_seconds)
        asked = {message.metadata.message_id: silo for silo, message in messages.items()}
        for reply in replies:
            silo = asked.get(reply.metadata.reply_to_message_id, "")
            if silo not in waiting:  # to no message of ours, or for the second time
                continue
            waiting.discard(silo)
            content = self._content(silo, reply)
            if content is not None:
                yield silo, content
        if waiting:
            logger.warning("no reply to a %s message from %s", message_type, ", ".join(sorted(waiting)))

    def _content(self, silo: str, reply: Message) -> RecordDict | None:
        problem = _problem(reply, reveal=self.roster.shared)
        if problem:
            logger.warning("silo %r: %s", silo, problem)
            return None
        self.traffic.up += count_bytes(reply.content)
        return reply.content


def _problem(reply: Message, *, reveal: bool) -> str:
    """Why a reply can't be used, or ""."""
    if reply.has_error():
        return error_of(reply, reveal=reveal)
    try:
        sender = read_sender(reply.content)
    except WireError as err:
        return str(err)
    return f"{sender.failure}: {sender.sentence}".rstrip(": ") if sender.failure else ""
