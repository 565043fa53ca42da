"""Whether a reply is what a silo of the roster said, to this message, and nobody else."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message, MessageType, Metadata, RecordDict

from fedmerge.server.identity import Identity, Member
from fedmerge.server.refusing import Refused, refusing
from fedmerge.wire.instruction import Instruction
from fedmerge.wire.payloads import reply_payload
from fedmerge.wire.query import QueryReply
from fedmerge.wire.records import count_bytes
from fedmerge.wire.schema import shown
from fedmerge.wire.sender import Sender, read_sender
from fedmerge.wire.signatures import verify

ROOM_BYTES = 2**24
"""What a reply may have beside tensors: scores, and a silo's labels."""

_TIMES = 4  # a delta, and statistics in float32 of adapters in half precision, are at most so many broadcasts


@dataclass(frozen=True)
class Expected:
    """A message that is out, and what its reply has to be.

    Args:
        instruction: what it asks for.
        metadata: Flower's; the message's id is known once it is pushed.
        most_bytes: of the reply's content.
        until: `time.monotonic` at which nobody waits for it any longer.
    """

    instruction: Instruction
    metadata: Metadata
    most_bytes: int
    until: float


@dataclass
class Verifier:
    """Remembers the messages that are out by their nonces, and checks replies against them.

    Args:
        identity: whose replies are believed.
    """

    identity: Identity
    _expected: dict[str, Expected] = field(default_factory=dict)

    def expect(self, message: Message, instruction: Instruction) -> None:
        """Note a message that is about to go out; those that nobody waits for any longer are forgotten."""
        now = time.monotonic()
        self._expected = {nonce: each for nonce, each in self._expected.items() if each.until > now}
        sent = sum(
            len(a.data) for r in message.content.values() if isinstance(r, ArrayRecord) for a in r.values()
        )
        self._expected[instruction.nonce] = Expected(
            instruction, message.metadata, _TIMES * sent + ROOM_BYTES, now + message.metadata.ttl
        )

    def check(self, reply: Message) -> None:
        """Let a reply pass that answers a message which is out, once; the message counts as answered then.

        The cheap checks come first, and those of the content only when the signature holds.

        Raises:
            Refused: with the reason.
        """
        with refusing("reply/records"):
            sender = read_sender(reply.content)
        member = self._member(sender)
        expected = self._expected.get(sender.nonce)
        most = expected.most_bytes if expected else ROOM_BYTES
        if (size := count_bytes(reply.content)) > most:
            raise Refused("reply/too-large", f"it has {size} bytes, at most {most} are taken")
        self._check_signature(reply, sender, member)
        if expected is None:
            raise Refused(
                "reply/replayed", "it answers no message that is out: its nonce was used, or is old"
            )
        _check_place(reply, sender, expected)
        _check_content(reply.content, sender, expected)
        del self._expected[sender.nonce]

    def _member(self, sender: Sender) -> Member:
        if not sender.signature:
            also = f"; it says that it failed with {shown(sender.failure)}" if sender.failure else ""
            raise Refused("reply/unsigned", f"it is not signed{also}")
        member = self.identity.members().get(sender.silo)
        if member is None:
            raise Refused("reply/stranger", f"{shown(sender.silo)} is no silo of the roster")
        if member.revoked:
            raise Refused("reply/revoked", f"the key of {shown(sender.silo)} is revoked")
        return member

    def _check_signature(self, reply: Message, sender: Sender, member: Member) -> None:
        payload = reply_payload(reply.content, reply.metadata.message_type, self.identity.federation)
        if not verify(member.key, payload, sender.signature):
            raise Refused(
                "reply/forged",
                f"its signature is not that of {shown(sender.silo)} over it: it was forged, or changed",
            )


def _check_place(reply: Message, sender: Sender, expected: Expected) -> None:
    """Hold what the silo has signed against the message that the reply came to."""
    asked = expected.instruction
    if asked.silo and sender.silo != asked.silo:
        raise Refused("reply/silo", f"it is of {shown(sender.silo)}, the message went to {shown(asked.silo)}")
    if reply.metadata.reply_to_message_id != expected.metadata.message_id:
        raise Refused("reply/replayed", "it is the answer to another message")
    if sender.run != asked.run:
        raise Refused("reply/run", f"it is of run {shown(sender.run)}, this is {shown(asked.run)}")
    if sender.round != asked.round:
        code = "reply/stale" if sender.round < asked.round else "reply/round"
        raise Refused(code, f"it is of round {sender.round}, this is round {asked.round}")
    if asked.fingerprint and not sender.failure and sender.fingerprint != asked.fingerprint:
        given = shown(sender.fingerprint[:16])
        raise Refused(
            "reply/base",
            f"its base is another: fingerprint {given}, expected {asked.fingerprint[:16]!r}",
        )


def _check_content(content: RecordDict, sender: Sender, expected: Expected) -> None:
    """A node tells of its own silo and no other: else it could take another's place in the roster."""
    if expected.metadata.message_type != MessageType.QUERY or sender.failure:
        return
    with refusing("reply/records"):
        told = QueryReply.from_content(content)
    if told.shared or [card.name for card in told.silos] != [sender.silo]:
        names = ", ".join(shown(card.name) for card in told.silos[:3])
        raise Refused(
            "reply/silo",
            f"silo {shown(sender.silo)} must tell of itself alone, it tells of {names or 'none'}",
        )
