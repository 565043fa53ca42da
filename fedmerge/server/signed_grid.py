"""Signatures both ways, in the one place that every message passes.

What goes out is signed, whatever it asks for; what comes in without the proof that it needs is marked as
refused before anybody reads it. Rounds, queries and evaluations treat it as the failure of its sender.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedmerge.errors import WireError
from fedmerge.server.identity import Identity
from fedmerge.server.refusing import Refused
from fedmerge.server.streaming import StreamingGrid
from fedmerge.server.verifying import Verifier
from fedmerge.wire.digests import Record, digest
from fedmerge.wire.instruction import CONFIG, Instruction, read_instruction
from fedmerge.wire.payloads import message_payload, put_signature
from fedmerge.wire.sender import FEDMERGE, Sender, read_sender
from fedmerge.wire.signatures import sign

logger = logging.getLogger(__name__)

UNPROVEN = "UnprovenReply"
"""As which a reply "failed" that is not proven to be its sender's."""


class SignedGrid(StreamingGrid):
    """A grid that signs every message, and marks every reply that is not signed as it must be.

    Args:
        grid: carries the messages; one that yields replies as they come keeps memory small.
        identity: signs, and says whose replies are believed.
    """

    def __init__(self, grid: Grid, identity: Identity) -> None:
        """Wrap `grid`."""
        super().__init__(grid)
        self.identity = identity
        self.verifier = Verifier(identity)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sign, and pass on."""
        return self.grid.push_messages(self._signed(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Check what comes."""
        return [self._checked(reply) for reply in self.grid.pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Any:
        """Sign and push the messages at once, and yield each reply as it comes, checked."""
        replies = self.grid.send_and_receive(self._signed(messages), timeout=timeout)
        return self._each_checked(replies)

    def _each_checked(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in replies:
            yield self._checked(reply)

    def _signed(self, messages: Iterable[Message]) -> list[Message]:
        known: dict[int, str] = {}  # one broadcast goes to all silos: it is hashed once

        def remembered(record: Record) -> str:
            if id(record) not in known:
                known[id(record)] = digest(record)
            return known[id(record)]

        outgoing = list(messages)
        for message in outgoing:
            instruction = self._sealed(message)
            payload = message_payload(
                message.content, message.metadata.message_type, self.identity.federation, remembered
            )
            put_signature(message.content, CONFIG, sign(self.identity.key, payload))
            self.verifier.expect(message, instruction)
        return outgoing

    def _sealed(self, message: Message) -> Instruction:
        """Make a message one of its own."""
        content = message.content
        if CONFIG not in content:  # a query asks for nothing else
            content[CONFIG] = Instruction().to_config()
        config = content[CONFIG]
        assert isinstance(config, ConfigRecord)
        instruction = replace(
            read_instruction(content),
            federation=self.identity.federation,
            nonce=secrets.token_hex(16),
            issued=int(time.time()),
            lifetime_seconds=message.metadata.ttl,
        )
        instruction.seal(config)
        return instruction

    def _checked(self, reply: Message) -> Message:
        """The reply; where it is not proven, it says that it failed instead of what it said."""
        if reply.has_error():
            return reply
        try:
            self.verifier.check(reply)
        except Refused as problem:
            _mark(reply, problem)
        except Exception as problem:  # whatever a reply holds, it ends neither the round nor the run
            logger.exception("a reply of node %d broke its check", reply.metadata.src_node_id)
            _mark(reply, Refused("reply/broken", f"it can't be read ({type(problem).__name__})"))
        return reply


def _mark(reply: Message, problem: Refused) -> None:
    """Put the reason in the place of who answers; the rest stays, to be counted and thrown away."""
    sender = Sender(failure=UNPROVEN, code=problem.code, sentence=str(problem))
    reply.content[FEDMERGE] = sender.to_config()


def check_proven(content: RecordDict) -> None:
    """Refuse what was marked.

    Raises:
        Refused: with the reason why it is not proven.
    """
    try:
        sender = read_sender(content)
    except WireError:
        return  # not ours: whoever reads the reply refuses it for this
    if sender.failure == UNPROVEN:
        raise Refused(sender.code or "reply/unsigned", sender.complaint)
