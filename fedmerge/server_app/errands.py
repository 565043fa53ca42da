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
class Errand:
    """One message to one silo: "train" or "evaluate"."""

    silo: str
    message_type: str
    content: RecordDict


@dataclass(frozen=True)
class Errands:
    """Sends silos their messages and yields what comes back.

    Args:
        grid: of the run.
        roster: which node serves which silo.
        traffic: counted here.
    """

    grid: Grid
    roster: Roster
    traffic: Traffic = field(default_factory=Traffic)

    def run(
        self, errands: Mapping[str, Errand], *, timeout_seconds: float
    ) -> Iterator[tuple[str, RecordDict]]:
        """Send all, and yield each reply as it comes; what fails is logged and left out.

        Args:
            errands: by a key of the caller's; they are begun in this order.
            timeout_seconds: for all of them together.

        Yields:
            The errand's key and the content of the reply.
        """
        messages = self._messages(errands, timeout_seconds)
        self.traffic.down += sum(count_bytes(message.content) for message in messages.values())
        waiting = dict(errands)
        replies = self.grid.send_and_receive(list(messages.values()), timeout=timeout_seconds)
        asked = {message.metadata.message_id: key for key, message in messages.items()}
        for reply in replies:
            key = asked.get(reply.metadata.reply_to_message_id, "")
            if key not in waiting:  # to no message of ours, or for the second time
                continue
            content = self._content(waiting.pop(key).silo, reply)
            if content is not None:
                yield key, content
        if waiting:
            away = sorted({errand.silo for key, errand in waiting.items() if key not in messages})
            late = sorted({errand.silo for key, errand in waiting.items() if key in messages})
            parts = [f"not connected: {', '.join(away)}"] * bool(away)
            parts += [f"no reply within {timeout_seconds:g} seconds: {', '.join(late)}"] * bool(late)
            logger.warning("%d of %d are left out; %s", len(waiting), len(errands), "; ".join(parts))

    def _messages(self, errands: Mapping[str, Errand], timeout_seconds: float) -> dict[str, Message]:
        silos = sorted({errand.silo for errand in errands.values()})
        homes = self.roster.assign(silos, list(self.grid.get_node_ids()))
        return {
            key: Message(
                errand.content,
                homes[errand.silo],
                errand.message_type,
                ttl=timeout_seconds,
                group_id=errand.message_type,
            )
            for key, errand in errands.items()
            if errand.silo in homes
        }

    def _content(self, silo: str, reply: Message) -> RecordDict | None:
        problem = problem_of(reply, reveal=self.roster.shared)
        if problem:
            logger.warning("silo %r: %s", silo, problem)
            return None
        self.traffic.up += count_bytes(reply.content)
        return reply.content


def problem_of(reply: Message, *, reveal: bool) -> str:
    """Why a reply can't be used, or ""."""
    if reply.has_error():
        return error_of(reply, reveal=reveal)
    try:
        sender = read_sender(reply.content)
    except WireError as err:
        return str(err)
    return f"{sender.failure}: {sender.sentence or sender.code}".rstrip(": ") if sender.failure else ""
